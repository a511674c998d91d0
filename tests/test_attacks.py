"""The table of attacks names tests that are there: it cannot promise what nobody shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from release import errors

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs" / "attacks.md").read_text().splitlines() if re.match(r"\| [0-9]+ ", line)]
NAMED = re.compile(r"`(tests/[^`:]+)::([^`]+)`")


def test_all_fourteen_attacks_are_in_the_table_each_with_tests() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 15))
    assert all(NAMED.search(row) for row in ROWS)


def test_every_test_that_the_table_names_is_there() -> None:
    named = sorted(set(NAMED.findall("\n".join(ROWS))))
    trees = {file: ast.parse((ROOT / file).read_text()).body for file, _ in named}
    there = {(file, node.name) for file, body in trees.items() for node in body if isinstance(node, ast.FunctionDef)}
    assert [each for each in named if each not in there] == []


def test_every_row_names_errors_that_there_are_with_their_exit_codes() -> None:
    for row in ROWS:
        told = row.split(" | ")[2]
        codes = {str(getattr(errors, name).exit_code) for name in re.findall(r"`(\w+Error)`", told)}
        said = set(re.findall(r"(?:exit |Error` )([0-9]+)", told))
        assert said == codes, row[:60]
        assert said, row[:60]
