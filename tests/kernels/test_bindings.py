"""FlagGems' operators under our names: every operator has one or the reason, and those that there are compute the right thing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

import pytest

from release.matrix.load import Matrix
from release.operators import check
from release.types import Status

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

MATRIX: Final = Matrix()
SMALL: Final = ("align-experts", "expert-matmul", "fp8-matmul", "grouped-topk", "latent-attention", "w8a8-matmul")
WRONG: Final = {("w8a8-matmul", "bfloat16")}
"""Rounded before the bias is added, which shows where both nearly cancel: FlagGems 5.0.2."""


def test_every_operator_has_one_of_flaggems_or_the_reason_why_not() -> None:
    from release.kernels.bindings import NONE, READY
    from release.kernels.operators import OPERATORS

    assert {*READY, "align-experts"} | set(NONE) == set(OPERATORS)
    assert not {*READY, "align-experts"} & set(NONE)


def test_pairs_of_an_expert_in_any_order_and_blocks_that_are_not_in_use_come_to_what_ours_gives() -> None:
    from release.kernels.bindings import _ordered
    from release.kernels.cases import generator
    from release.kernels.operators import OPERATORS

    operator, device = OPERATORS["align-experts"], torch.device("cpu")
    inputs = operator.inputs({"rows": 40, "experts": 10, "best": 3, "size": 16}, torch.float32, device, generator(device))
    order, owners, used = (part.int() for part in operator.reference(**inputs))
    shuffled = order.view(-1, 16).flip(1).flatten()
    found = _ordered(inputs, (shuffled, owners.clamp(min=0), used))
    assert all(torch.equal(one, other) for one, other in zip(found, (order, owners, used), strict=True))
    shuffled[0], shuffled[17] = shuffled[17].item(), shuffled[0].item()
    assert not torch.equal(_ordered(inputs, (shuffled, owners, used))[0], order)


@pytest.mark.integration
@pytest.mark.skipif(find_spec("flag_gems") is None, reason="FlagGems is not here")
@pytest.mark.parametrize(
    ("model", "operators"), [("tiny-r1", SMALL), ("tiny-qwq", ("cache-write", "paged-attention", "prefill-attention"))]
)
def test_what_flaggems_offers_passes_our_check_but_where_it_is_known_to_be_wrong(model: str, operators: tuple[str, ...]) -> None:
    found = check(MATRIX.chip("cpu"), MATRIX.model(model), operators, library="flaggems")
    passed, failed = (
        {(verdict.figures["operator"], verdict.figures["dtype"]) for verdict in found.verdicts if verdict.status is status}
        for status in (Status.PASSED, Status.FAILED)
    )
    assert failed <= WRONG
    assert {operator for operator, _ in passed} == set(operators)
