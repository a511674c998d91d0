"""The table of attacks names tests that are there: it cannot promise what nobody shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = [line for line in (ROOT / "docs" / "attacks.md").read_text().splitlines() if re.match(r"\| [0-9]+ ", line)]
NAMED = re.compile(r"`(tests/[^`:]+)::([^`]+)`")


def test_all_fourteen_attacks_are_in_the_table_each_with_tests() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 15))
    assert all(NAMED.search(row) for row in ROWS)


def test_every_test_that_the_table_names_is_there() -> None:
    missing = []
    for file, name in NAMED.findall("\n".join(ROWS)):
        tree = ast.parse((ROOT / file).read_text())
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")
    assert missing == []
