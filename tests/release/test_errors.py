"""Every error says where, what and what next, and owns an exit code."""

from __future__ import annotations

import pytest

from release import errors
from release.errors import ReleaseError, StageError, VerdictError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ReleaseError)]
CODES = {
    **{"ReleaseError": 1, "UsageError": 2, "MatrixError": 2, "StoreError": 3, "StageError": 3, "VerdictError": 4},
    **{"VerificationError": 5, "UnsignedError": 10, "WrongKeyError": 11, "IncompleteError": 12, "PolicyError": 13},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_the_exit_code_of_its_kind(kind: type[ReleaseError]) -> None:
    assert kind.exit_code == (3 if issubclass(kind, StageError) else CODES[kind.__name__])
    assert kind.exit_code != 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_named_after_what_is_wrong_and_explains_itself(kind: type[ReleaseError]) -> None:
    assert kind.__name__.endswith("Error")
    assert kind.__doc__


def test_a_place_is_put_in_front_of_the_message_once_for_each_that_knows_more() -> None:
    problem = StageError("no", next_step="do")
    assert str(problem) == "no"
    assert problem.located("unpatch") is problem
    assert str(problem) == "unpatch: no"
    assert str(problem.located("cpu/tiny-qwq@bf16")) == "cpu/tiny-qwq@bf16: unpatch: no"
    assert (problem.message, problem.next_step) == ("no", "do")


def test_a_located_error_keeps_its_kind() -> None:
    with pytest.raises(VerdictError, match=r"^a: b$"):
        raise VerdictError("b").located("a")
