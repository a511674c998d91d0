"""Caches laid out anew for peers: what they read is what ours reads, attended to by plain arithmetic over the new layout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

CPU = torch.device("cpu")


def plain(query: Any, key: Any, value: Any, scale: float) -> Any:
    """Attend in float64 with queries at the end of the keys, [tokens, heads, size] each."""
    share = query.shape[1] // key.shape[1]
    q, k, v = (x.double().transpose(0, 1) for x in (query, key, value))
    score = q @ k.repeat_interleave(share, 0).transpose(1, 2) * scale
    unseen = torch.ones(score.shape[1:], dtype=torch.bool).triu(score.shape[2] - score.shape[1] + 1)
    return (score.masked_fill(unseen, float("-inf")).softmax(-1) @ v.repeat_interleave(share, 0)).transpose(0, 1)


def prefills() -> list[tuple[str, dict[str, int]]]:
    rest = {"rows": 41, "share": 3, "wide": 24, "count": 4}
    return [
        ("prefill-attention", {**rest, "groups": 2, "slim": 24, "prefix": 0}),
        ("prefill-attention", {**rest, "groups": 2, "slim": 24, "prefix": 40}),
        ("prefill-attention", {**rest, "groups": 1, "slim": 16, "prefix": 0}),
        ("paged-attention", {"rows": 5, "groups": 2, "share": 3, "size": 24, "page": 7, "context": 61, "narrow": 0}),
    ]


@pytest.mark.parametrize(("name", "sizes"), prefills())
def test_keys_in_one_piece_and_in_other_pages_are_those_that_the_reference_reads(name: str, sizes: dict[str, int]) -> None:
    from release.kernels.attending import one_piece
    from release.kernels.cases import generator
    from release.kernels.operators import OPERATORS
    from release.kernels.pages import cached, repaged

    inputs = OPERATORS[name].inputs(sizes, torch.float32, CPU, generator(CPU))
    wanted = OPERATORS[name].reference(**inputs)
    laid, paged = one_piece(inputs), repaged(inputs, 16)
    starts, ends = laid["starts"].tolist(), laid["ends"].tolist()
    assert max(b - a for a, b in itertools.pairwise(starts)) == laid["asking"]
    assert max(b - a for a, b in itertools.pairwise(ends)) == laid["longest"]
    assert laid["value"].shape[2] == laid["query"].shape[2]
    for number, length in enumerate(paged["lengths"].tolist()):
        own, keys = slice(*starts[number : number + 2]), slice(*ends[number : number + 2])
        assert length == keys.stop - keys.start
        query = laid["query"][own]
        packed = plain(query, laid["key"][keys], laid["value"][keys], inputs["scale"])[..., : laid["slim"]]
        pages = [cached(paged[f"{part}_cache"], paged["tables"][number], length) for part in ("key", "value")]
        for found in (packed, plain(query, *pages, inputs["scale"])):
            torch.testing.assert_close(found, wanted[own], rtol=1e-9, atol=1e-9)


def test_what_no_token_fills_is_zero_and_not_what_stood_in_the_old_page() -> None:
    from release.kernels.cases import generator
    from release.kernels.operators import OPERATORS
    from release.kernels.pages import repaged

    sizes = {"rows": 3, "groups": 1, "share": 1, "size": 16, "page": 16, "context": 20, "narrow": 0}
    inputs = OPERATORS["paged-attention"].inputs(sizes, torch.float32, CPU, generator(CPU))
    assert inputs["key_cache"].isnan().any()
    paged = repaged(inputs, 8)
    filled = int(inputs["lengths"].sum())
    assert int((paged["key_cache"] != 0).all(-1).sum()) == filled
    assert not paged["key_cache"].isnan().any()
    pages = [
        page
        for table, length in zip(paged["tables"].tolist(), paged["lengths"].tolist(), strict=True)
        for page in table[: -(-length // 8)]
    ]
    assert sorted(pages) == list(range(len(pages))) != pages, "each page has one owner, and they are in no order"
