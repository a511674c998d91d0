"""What an operator of this room is: a kernel with its launcher, its reference, and the shapes and inputs it is tried with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import torch

Sizes = Mapping[str, int]
"""The lengths that shape one call, by name: `rows`, `width`, …"""
Orders = Mapping[str, tuple[int, ...]]
"""Of inputs, by name, their dimensions from the outermost in memory to the innermost."""
Inputs = dict[str, Any]
"""The arguments of one call, by name: tensors and numbers."""

DECODE: Final = (1, 8, 64, 256)
"""Tokens of a step that answers so many sequences at once."""
PREFILL: Final = (1024, 8192)
"""Tokens of a step that reads prompts."""
TOKENS: Final = DECODE + PREFILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the room needs to know of a model, as in its config.json. What a model does not have is 0.

    `heads`, `kv_heads` and `head_dim` are the attention's; with latent attention (`kv_lora_rank` > 0) `qk_nope_head_dim`, `qk_rope_head_dim`
    and `v_head_dim` hold instead of `head_dim`. `rope` says which dimensions turn together: NeoX's halves or neighbours (`interleaved`).
    `intermediate` is the dense feed-forward's, `expert_intermediate` one expert's. `scoring` makes the router's logits scores, it chooses
    in the `top_groups` best of its `groups`, and the weights are multiplied by `scaling` (DeepSeek-V3). `block` is the side of an FP8 block
    of the weights.
    """

    model: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool = False
    qkv_bias: bool = False
    rope: Literal["halves", "interleaved"] = "halves"
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    expert_intermediate: int = 0
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    scaling: float = 1.0
    groups: int = 0
    top_groups: int = 0
    block: int = 0


REFUSED: Final = "refused"
"""What is measured of a launch that refused inputs which it may refuse."""


class NotOffered(Exception):  # an answer, not an error
    """What a launcher says of inputs that its library does not offer the operator for: they are skipped with this reason."""


def nothing(inputs: Inputs) -> int:
    """Return 0: what is not counted."""
    return 0


def one(inputs: Inputs) -> int:
    """Return 1: nothing is summed up."""
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator: how it is started, what it must give, and what it is tried with.

    - `launch(**inputs, configuration=None)` runs the kernel and returns its output, or a tuple of outputs, those written in place among
      them. It allocates outputs with `torch.empty` and its like and writes every element. What it cannot take it refuses with ValueError.
      `configuration` replaces what `configurations.json` says.
    - `reference(**inputs)` returns the same outputs computed in float64 (whole numbers stay whole), and changes none of its inputs.
    - `inputs(sizes, dtype, device, generator)` makes random inputs of the kind that a model gives.
    - `shapes(facts)` lists the sizes at which a model calls it; none where the model has no such operator.
    - `reduced(sizes)` gives sizes small enough for Triton's interpreter (about a millisecond a program: under 200 programs), of the same kind.
    - `edges` are sizes at which kernels break, by name: `one row`, `empty`, `odd`, …
    - `hostile` names the floating inputs that also take large values (`largest` times the usual; less where terms cancel and only the
      absolute tolerance can hold), −0, and, unless it is defined for `finite` numbers only, NaN and infinities.
    - `strided` names the inputs whose first dimension may have any stride, up to offsets past 2³¹ (outputs of two dimensions then have it
      too). `in_place` names those that the launch changes; all others must stay as they were.
    - `laid` says of edges how inputs lie when they are tried a second time, where a stride that is taken for granted shows: of each input
      its dimensions from the outermost in memory to the innermost, with a gap behind all that lies within one step of a dimension.
    - `spread` says that each input is also given as every other element of a longer one: the launch takes that for what it is, or refuses.
    - `adversarial(dtype, device, generator)` gives inputs of its own that are known to break such kernels, by name.
    - `moved(inputs)` counts the bytes that must be read and written at least, `flops(inputs)` the arithmetic, a multiply-add as two.
    - `reduces(inputs)` is the length of the sums in it, which the absolute tolerance grows with; `steps` by how much whole numbers may
      differ (a value between two steps of a quantisation may go either way).
    """

    name: str
    family: str
    launch: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Callable[[Sizes, torch.dtype, torch.device, torch.Generator], Inputs]
    shapes: Callable[[Facts], list[Sizes]]
    reduced: Callable[[Sizes], Sizes]
    edges: Mapping[str, Sizes]
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    hostile: tuple[str, ...] = ()
    largest: float = 1e15
    finite: bool = False
    strided: tuple[str, ...] = ()
    laid: Mapping[str, Orders] = field(default_factory=dict)
    spread: bool = True
    in_place: tuple[str, ...] = ()
    adversarial: Callable[[torch.dtype, torch.device, torch.Generator], dict[str, Inputs]] | None = None
    moved: Callable[[Inputs], int] = nothing
    flops: Callable[[Inputs], int] = nothing
    memory_bound: bool = True
    reduces: Callable[[Inputs], int] = one
    steps: int = 0


def shrunk(sizes: Sizes, **most: int) -> Sizes:
    """Return sizes with each named one no larger than given."""
    return {name: min(size, most.get(name, size)) for name, size in sizes.items()}


def size_of(*tensors: torch.Tensor) -> int:
    """Return the bytes of tensors, each element counted once."""
    return sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in tensors)
