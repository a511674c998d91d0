"""Errors that usual inputs hide: a stride taken for granted, an axis with one program, too large an epsilon.

Each is planted in a copy of the room, and the check shows it in the cases that are there for it, and in no other.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import pytest
from planting import failed, planted

from release.operators import PYTHON


class Error(NamedTuple):
    """What is planted in the file of an operator: what stood there, what stands there now, and words of the cases that show it."""

    operator: str
    was: str
    now: str
    shows: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"{self.operator.replace('-', '_')}.py"


def spread(*names: str) -> tuple[str, ...]:
    """Return the words of the cases in which these are every other element of what is longer."""
    return tuple(f"every other element of {name}" for name in names)


LAID: Final = ("laid otherwise",)
ERRORS: Final = {
    "the tokens of a cache follow one another": Error(
        "cache-write", "slot % PAGE * cache_place", "slot % PAGE * (heads * size)", LAID
    ),
    "the heads of a cache follow one another": Error("cache-write", "head * cache_head", "head * size", LAID),
    "the heads of new keys follow one another": Error("cache-write", "head * key_head", "head * size", LAID),
    "the heads of new values follow one another": Error("cache-write", "head * value_head", "head * size", LAID),
    "the tokens of a cache that is read follow one another": Error(
        "paged-attention", "place % PAGE * cache_place", "place % PAGE * (tl.num_programs(1) * SIZE)", LAID
    ),
    "the heads of a cache that is read follow one another": Error("paged-attention", "group * cache_head", "group * SIZE", LAID),
    "the heads of a query follow one another": Error(
        "paged-attention", "head[:, None] * query_head", "head[:, None] * SIZE", LAID
    ),
    "the tokens of a prefix follow one another": Error(
        "prefill-attention", "place % PAGE * cache_place", "place % PAGE * (tl.num_programs(1) // SHARE * KEY_SIZE)", LAID
    ),
    "the heads of a prefix follow one another": Error(
        "prefill-attention", "head // SHARE * cache_head", "head // SHARE * KEY_SIZE", LAID
    ),
    "the heads of keys follow one another": Error(
        "prefill-attention", "head // SHARE * key_head", "head // SHARE * KEY_SIZE", LAID
    ),
    "the heads of values follow one another": Error(
        "prefill-attention", "head // SHARE * value_head", "head // SHARE * VALUE_SIZE", LAID
    ),
    "the tokens of a latent cache follow one another": Error(
        "latent-attention", "place % PAGE * cache_place", "place % PAGE * (LATENT + ROTATED)", LAID
    ),
    "the heads of latent queries follow one another": Error(
        "latent-attention", "head[:, None] * query_head", "head[:, None] * LATENT", LAID
    ),
    "the heads of turned queries follow one another": Error(
        "latent-attention", "head[:, None] * rotated_head", "head[:, None] * ROTATED", LAID
    ),
    "the heads of turned keys follow one another": Error(
        "rotary", "kv_heads, key_head_stride, cos", "kv_heads, 2 * half, cos", LAID
    ),
    "the rows of a table of angles follow one another": Error(
        "rotary", ".to(tl.int64) * table_stride", ".to(tl.int64) * (2 * half)", LAID
    ),
    "a weight has its columns one after the other": Error(
        "matmul", "(column % columns)[None, :] * b_column", "(column % columns)[None, :] * depth", (*LAID, "of b")
    ),
    "a weight has its depth in one piece": Error("matmul", "step[:, None] * b_depth", "step[:, None]", (*LAID, "of b")),
    "activations have their depth in one piece": Error(
        "w8a8-matmul", "step[None, :] * a_depth", "step[None, :]", (*LAID, "of a")
    ),
    "an int8 weight has its depth in one piece": Error(
        "w8a8-matmul", "step[:, None] * w_depth", "step[:, None]", (*LAID, "of w")
    ),
    "scales of columns follow one another": Error("w8a8-matmul", "w_scale.contiguous()", "w_scale", (*LAID, "of w_scale")),
    "scales of groups are rows": Error(
        "fp8-matmul", "(row % rows) * a_scale_row", "(row % rows) * tl.cdiv(depth, 128)", (*LAID, "of a_scale")
    ),
    "scales of blocks are rows": Error(
        "fp8-matmul", "// 128 * w_scale_block", "// 128 * tl.cdiv(depth, 128)", (*LAID, "of w_scale")
    ),
    "scales of blocks have columns next to each other": Error(
        "fp8-dequantise", "(column // 128)[None, :] * scale_column", "(column // 128)[None, :]", (*LAID, "of scale")
    ),
    "the weight of an expert has its depth in one piece": Error(
        "expert-matmul", "step[:, None] * w_depth", "step[:, None]", (*LAID, "of w")
    ),
    "logits of groups lie next to each other": Error("grouped-topk", "expert * logits_column", "expert", (*LAID, "of logits")),
    "logits lie next to each other": Error("softmax-topk", "expert * logits_column", "expert", (*LAID, "of logits")),
    "slots and scales that are spread are taken": Error(
        "cache-write",
        "    whole(slots=slots, key_scale=key_scale, value_scale=value_scale)\n",
        "",
        spread("slots", "key_scale", "value_scale"),
    ),
    "caches that are spread are taken": Error(
        "cache-write", " or key_cache.stride(3) != 1:", ":", spread("key_cache, value_cache")
    ),
    "tables that are spread are taken": Error(
        "paged-attention", 'rows_of(tables, "tables").stride(0)', "tables.stride(0)", spread("tables")
    ),
    "lengths and scales that are spread are taken": Error(
        "paged-attention",
        "    whole(lengths=lengths, key_scale=key_scale, value_scale=value_scale)\n",
        "",
        spread("lengths", "key_scale", "value_scale"),
    ),
    "prefixes and starts that are spread are taken": Error(
        "prefill-attention",
        "    whole(starts=starts, prefixes=prefixes)\n",
        "",
        spread("starts", "prefixes"),
    ),
    "an order that is spread is taken": Error(
        "expert-matmul",
        "    whole(order=order, owners=owners, used=used, weights=weights)\n",
        "",
        spread("order", "owners", "weights"),
    ),
    "programs of a token write the same channels": Error(
        "cache-write", "tl.program_id(1) * BLOCK + ", "", ("more channels than a program",)
    ),
    "programs of a token turn the same keys": Error("rotary", "(block - blocks) * HEADS + ", "", ("more heads than a block",)),
    "ten times the epsilon": Error("rms-norm", "/ width + epsilon", "/ width + 10 * epsilon", ("small rows",)),
    "ten times the epsilon of a sum": Error("add-rms-norm", "/ width + epsilon", "/ width + 10 * epsilon", ("small rows",)),
}


def rooms() -> list[dict[str, Error]]:
    """Deal out the errors to rooms, so that no room has two of one operator."""
    found: list[dict[str, Error]] = []
    had: Counter[str] = Counter()
    for name, error in ERRORS.items():
        if had[error.operator] == len(found):
            found.append({})
        found[had[error.operator]][name] = error
        had[error.operator] += 1
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return by error the cases that failed of its operator."""
    found: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(PYTHON, raising=False)
        for errors in rooms():
            room = planted(tmp_path_factory.mktemp("room"), [(error.file, error.was, error.now) for error in errors.values()])
            verdicts = failed(room, {error.operator for error in errors.values()})
            for name, error in errors.items():
                found[name] = {one.figures["case"] for one in verdicts if one.figures["operator"] == error.operator}
    return found


@pytest.mark.integration
@pytest.mark.parametrize("error", ERRORS)
def test_what_usual_inputs_hide_shows_in_the_cases_that_are_there_for_it_and_in_no_other(
    shown: dict[str, set[str]], error: str
) -> None:
    words = ERRORS[error].shows
    assert all(any(word in case for case in shown[error]) for word in words), shown[error]
    assert all(any(word in case for word in words) for case in shown[error]), shown[error]
