"""A model as types: shapes as in its config.json, where its checkpoint comes from, and what it needs of a library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from release.types.chip import Access, Name
from release.types.words import Commit, Digest, Floor, Frozen, Precision, RelativePath, Slug, Unknown


class Experts(Frozen):
    """A mixture of experts: in every layer but the first `dense-layers`, each token goes to `experts-per-token` of `experts`.

    `intermediate` is one expert's; the shared experts are one feed-forward of `shared-experts` times that. `router-bias`: the router has
    DeepSeek-V3's `e_score_correction_bias`. `scoring` makes the router's logits scores (`scoring_func`), and the weights of the chosen
    experts are those times `scaling` (`routed_scaling_factor`). `groups` (`n_group`) and `groups-per-token` (`topk_group`): a token's experts
    are all of its best groups; 0 where it chooses among all of them.
    """

    experts: int = Field(gt=0)
    experts_per_token: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared_experts: int = Field(default=0, ge=0)
    dense_layers: int = Field(default=0, ge=0)
    router_bias: bool = False
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    scaling: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    groups: int = Field(default=0, ge=0)
    groups_per_token: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _chosen(self) -> Experts:
        if self.experts_per_token > self.experts:
            raise ValueError(f"a token cannot go to {self.experts_per_token} of {self.experts} experts")
        if bool(self.groups) != bool(self.groups_per_token):
            raise ValueError("give both of 'groups' and 'groups-per-token', or neither")
        if self.groups and (self.experts % self.groups or self.experts < 2 * self.groups):
            raise ValueError(f"{self.experts} experts make no {self.groups} groups of one size, each of two at least")
        if self.groups_per_token > self.groups:
            raise ValueError(f"a token cannot use {self.groups_per_token} of {self.groups} groups")
        if self.groups and self.experts_per_token > (most := self.experts // self.groups * self.groups_per_token):
            raise ValueError(
                f"a token cannot go to {self.experts_per_token} experts: its {self.groups_per_token} groups have {most}"
            )
        return self


class LatentAttention(Frozen):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): ranks and head dimensions as in config.json."""

    q_lora_rank: int | None = Field(default=None, gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)


class Architecture(Frozen):
    """Shapes of a decoder-only model, as in its config.json; `class` is the name in `architectures`.

    `intermediate` is the dense feed-forward's (of the dense layers, where there are experts); `nextn-layers` counts the layers for multi-token
    prediction that the checkpoint carries beside the `layers`.
    """

    class_: Name = Field(alias="class")
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    context: int = Field(gt=0)
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    moe: Experts | None = None
    mla: LatentAttention | None = None
    nextn_layers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shared(self) -> Architecture:
        if self.mla is None and self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads do not share {self.kv_heads} kv-heads equally: heads must be a multiple of kv-heads"
            )
        return self


class Hub(Frozen):
    """A repository on a model hub, at a revision: `sites` are the hubs that have it under this name."""

    repository: str = Field(pattern=r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
    revision: Commit | Unknown
    sites: tuple[Literal["huggingface", "modelscope"], ...] = ("huggingface",)


class Checkpoint(Frozen):
    """The upstream weights at a pinned state: a folder relative to the matrix with the digest of every file in it, or a hub's repository.

    `block` is the side of a quantisation block of the upstream weights (128 for DeepSeek's FP8), none if they have no such blocks.
    """

    path: RelativePath | None = None
    recipe: RelativePath | None = None
    hub: Hub | None = None
    access: Access | None = None
    files: dict[RelativePath, Digest] = {}
    block: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Checkpoint:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of 'path' and 'hub'")
        if self.path is not None and not self.files:
            raise ValueError("'files' names no file: a folder is pinned by the digest of every file in it")
        return self


class Model(Frozen):
    """An upstream checkpoint at a pinned revision, with its architecture facts; `example` is a question for the card.

    `requires` are floors of libraries, `also` are checkpoints of the same architecture that the same cells serve.
    """

    id: Slug
    name: Name
    family: Slug
    vendor: Name
    license: Slug
    languages: tuple[Slug, ...] = ("en",)
    description: str
    example: str
    kind: Literal["generate", "embed"] = "generate"
    precision: Precision
    architecture: Architecture
    checkpoint: Checkpoint
    also: tuple[str, ...] = ()
    requires: dict[str, Floor] = {}
    source: str = ""
