"""The models of the field: shapes, sizes, names, licences and floors as their makers' configs and the papers print them."""

from __future__ import annotations

from typing import Final

import pytest

from release.matrix.load import Matrix
from release.matrix.memory import GIB, Format, kv_bytes, weight_bytes
from release.matrix.tensors import parameters
from release.types import Architecture, Experts, LatentAttention, Unknown

MATRIX: Final = Matrix()

# layers, hidden, feed-forward (or one expert's), heads, key-value heads, head dimension, vocabulary
Shape = tuple[int, int, int, int, int, int, int]
# billions of parameters, GiB in bf16, KiB of cache a token in bf16, GiB of cache for 32,768 tokens
Size = tuple[float, float, float, float]

PUBLISHED: Final[dict[str, tuple[tuple[str, ...], Shape, Size]]] = {
    "Qwen2.5-0.5B": (("qwen2.5-0.5b",), (24, 896, 4864, 14, 2, 64, 151936), (0.494, 0.9, 12, 0.38)),
    "Qwen2.5-1.5B": (("qwen2.5-1.5b",), (28, 1536, 8960, 12, 2, 128, 151936), (1.544, 2.9, 28, 0.88)),
    "Qwen2.5-7B": (
        ("qwen2.5-7b", "qwen2.5-coder-7b", "qwen2-7b", "gte-qwen2-7b"),
        (28, 3584, 18944, 28, 4, 128, 152064),
        (7.616, 14.2, 56, 1.75),
    ),
    "Qwen2.5-14B": (("qwen2.5-14b",), (48, 5120, 13824, 40, 8, 128, 152064), (14.770, 27.5, 192, 6.00)),
    "Qwen2.5-32B": (
        ("qwen2.5-32b", "qwen2.5-coder-32b", "qwq-32b", "qwq-32b-preview"),
        (64, 5120, 27648, 40, 8, 128, 152064),
        (32.764, 61.0, 256, 8.00),
    ),
    "Qwen2.5-72B": (("qwen2.5-72b", "qwen2-72b"), (80, 8192, 29568, 64, 8, 128, 152064), (72.706, 135.4, 320, 10.00)),
    "Qwen3-4B": (("qwen3-4b",), (36, 2560, 9728, 32, 8, 128, 151936), (4.022, 7.5, 144, 4.50)),
    "Qwen3-8B": (("qwen3-8b",), (36, 4096, 12288, 32, 8, 128, 151936), (8.191, 15.3, 144, 4.50)),
    "Qwen3-14B": (("qwen3-14b",), (40, 5120, 17408, 40, 8, 128, 151936), (14.768, 27.5, 160, 5.00)),
    "Qwen3-32B": (("qwen3-32b",), (64, 5120, 25600, 64, 8, 128, 151936), (32.762, 61.0, 256, 8.00)),
    "Qwen3-30B-A3B": (("qwen3-30b-a3b",), (48, 2048, 768, 32, 4, 128, 151936), (30.532, 56.9, 96, 3.00)),
    "Qwen3-235B-A22B": (("qwen3-235b-a22b",), (94, 4096, 1536, 64, 4, 128, 151936), (235.094, 437.9, 188, 5.88)),
    "DeepSeek-R1": (("deepseek-r1",), (61, 7168, 2048, 128, 128, 128, 129280), (671.026, 1250, 68.6, 2.14)),
}
PAIRS: Final = [(model, name) for name, (models, _, _) in PUBLISHED.items() for model in models]

LINKS: Final = {
    "qwen2-7b": ("Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B"),
    "gte-qwen2-7b": ("Alibaba-NLP/gte-Qwen2-7B-instruct",),
    "qwen2-72b": ("Qwen/Qwen2-72B-Instruct", "Qwen/Qwen2-72B"),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B-Instruct",),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct",),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct",),
    "qwen2.5-14b": ("Qwen/Qwen2.5-14B-Instruct",),
    "qwen2.5-32b": ("Qwen/Qwen2.5-32B-Instruct",),
    "qwen2.5-72b": ("Qwen/Qwen2.5-72B-Instruct",),
    "qwen2.5-coder-7b": ("Qwen/Qwen2.5-Coder-7B-Instruct",),
    "qwen2.5-coder-32b": ("Qwen/Qwen2.5-Coder-32B-Instruct",),
    "qwen3-32b": ("Qwen/Qwen3-32B",),
    "qwen3-14b": ("Qwen/Qwen3-14B",),
    "qwen3-8b": ("Qwen/Qwen3-8B",),
    "qwen3-4b": ("Qwen/Qwen3-4B",),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B",),
    "qwen3-235b-a22b": ("Qwen/Qwen3-235B-A22B",),
    "qwq-32b": ("Qwen/QwQ-32B",),
    "qwq-32b-preview": ("Qwen/QwQ-32B-Preview",),
    "deepseek-r1": ("deepseek-ai/DeepSeek-R1",),
}
"""The checkpoints that the papers link, the one that is released first."""
FLOORS: Final = {"qwen2": ">=4.40.1", "qwen2.5": "==4.43.1", "qwen2.5-coder": ">=4.43.1", "qwen3": ">=4.51.0"}
"""The Ascend guide's table of transformers versions."""


def shape_of(model: str) -> Architecture:
    return MATRIX.model(model).architecture


def test_every_model_of_the_papers_is_there_once() -> None:
    assert sorted(model for model, _ in PAIRS) == sorted(LINKS)
    assert set(LINKS) <= set(MATRIX.models())


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_shapes_are_the_published_ones(model: str, name: str) -> None:
    a = shape_of(model)
    width = a.moe.intermediate if a.moe else a.intermediate
    assert (a.layers, a.hidden, width, a.heads, a.kv_heads, a.head_dim, a.vocabulary) == PUBLISHED[name][1]


@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_sizes_are_the_published_ones_within_half_a_percent(model: str, name: str) -> None:
    billions, gib, kib, cache = PUBLISHED[name][2]
    a = shape_of(model)
    assert parameters(a) / 1e9 == pytest.approx(billions, rel=0.005)
    # The table rounds to a tenth (and a hundredth) of a GiB, which is more than half a percent of a small model.
    assert weight_bytes(a, Format("bf16", 2)) / GIB == pytest.approx(gib, rel=0.005, abs=0.05)
    assert kv_bytes(a, 2) / 1024 == pytest.approx(kib, rel=0.005)
    assert kv_bytes(a, 2) * 32768 / GIB == pytest.approx(cache, rel=0.005, abs=0.0051)


def test_the_smallest_share_their_embeddings_with_the_head() -> None:
    assert {model for model in LINKS if shape_of(model).tied_embeddings} == {"qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-4b"}


def test_qwen3_says_its_head_dimension_and_does_not_divide_for_it() -> None:
    own = {
        model
        for model in LINKS
        if not shape_of(model).mla and shape_of(model).head_dim * shape_of(model).heads != shape_of(model).hidden
    }
    assert own == {"qwen3-4b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b"}


@pytest.mark.parametrize("model", LINKS)
def test_each_architecture_has_what_its_class_has(model: str) -> None:
    a = shape_of(model)
    assert a.qkv_bias is (a.class_ == "Qwen2ForCausalLM")
    assert a.qk_norm is a.class_.startswith("Qwen3")
    assert (a.moe is not None) is (a.class_ in ("Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM"))
    assert (a.mla is not None) is (a.class_ == "DeepseekV3ForCausalLM")


def test_the_mixtures_of_experts_are_as_published() -> None:
    assert shape_of("qwen3-30b-a3b").moe == Experts(experts=128, experts_per_token=8, intermediate=768)
    assert shape_of("qwen3-235b-a22b").moe == Experts(experts=128, experts_per_token=8, intermediate=1536)


def test_deepseek_r1_is_in_fp8_blocks_with_latent_attention_and_a_layer_for_multi_token_prediction() -> None:
    model = MATRIX.model("deepseek-r1")
    a = model.architecture
    assert (model.precision, model.checkpoint.block, a.nextn_layers, a.intermediate) == ("fp8", 128, 1, 18432)
    assert a.moe == Experts(
        **{"experts": 256, "experts_per_token": 8, "intermediate": 2048, "shared_experts": 1, "dense_layers": 3},
        **{"router_bias": True, "scoring": "sigmoid", "scaling": 2.5, "groups": 8, "groups_per_token": 4},
    )
    assert a.mla == LatentAttention(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)


@pytest.mark.parametrize("model", LINKS)
def test_the_checkpoint_is_the_one_that_the_papers_link_at_no_revision(model: str) -> None:
    found = MATRIX.model(model)
    hub = found.checkpoint.hub
    assert hub
    assert (hub.repository, *found.also) == LINKS[model]
    assert isinstance(hub.revision, Unknown), "no paper names one"
    assert found.source


@pytest.mark.parametrize("model", LINKS)
def test_floors_are_those_of_the_guide(model: str) -> None:
    found = MATRIX.model(model)
    # QwQ's is its own card's; nobody names one for DeepSeek-R1.
    other = {"qwq-32b": ">=4.37.0", "qwq-32b-preview": ">=4.37.0", "deepseek-r1": None}
    assert found.requires.get("transformers") == other.get(model, FLOORS.get(found.family))


def test_licences_are_upstreams() -> None:
    licences = {model: MATRIX.model(model).license for model in LINKS}
    own = {model: licence for model, licence in licences.items() if licence != "apache-2.0"}
    assert own == {"qwen2-72b": "tongyi-qianwen", "qwen2.5-72b": "qwen", "deepseek-r1": "mit"}


def test_one_model_embeds_and_all_others_generate() -> None:
    assert [model for model in LINKS if MATRIX.model(model).kind == "embed"] == ["gte-qwen2-7b"]
