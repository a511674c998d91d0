"""Simulated, with a seed: identical models are hardly ever called REGRESSED, and a loss of two margins is caught at the k that is asked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

RUNS = 1000


def load() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("benchmarks_verdicts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


simulation = load()
OURS = {name: rule for name, rule in simulation.RULES.items() if name.startswith("ours")}
SMALL = [setting for setting in simulation.SETTINGS if setting.n <= 500]


@pytest.mark.parametrize("setting", SMALL, ids=lambda setting: setting.name)
def test_identical_models_are_called_regressed_in_at_most_five_percent(setting: object) -> None:
    found = simulation.rates(setting, 0.0, OURS, RUNS, 20261120)
    assert {name: blocked for name, (_, blocked) in found.items() if blocked > 0.05} == {}
    assert all(found[name][0] > 0.65 for name in ("ours, k asked for", "ours, two looks"))


@pytest.mark.parametrize("setting", SMALL, ids=lambda setting: setting.name)
def test_a_loss_of_two_margins_is_caught_at_the_k_that_is_asked_for(setting: object) -> None:
    rules = {name: rule for name, rule in OURS.items() if name != "ours, k = 1"}
    found = simulation.rates(setting, -2 * setting.margin, rules, RUNS // 4, 20261120)  # type: ignore[attr-defined]
    assert all(blocked >= 0.8 and passed <= 0.05 for passed, blocked in found.values())


def test_a_loss_of_the_margin_is_called_consistent_hardly_ever() -> None:
    setting = simulation.SETTINGS[2]
    found = simulation.rates(setting, -setting.margin, OURS, RUNS // 2, 20261120)
    assert all(passed <= 0.08 for passed, _ in found.values())


def test_peers_reject_identical_models_or_pass_broken_ones() -> None:
    peers = {name: rule for name, rule in simulation.RULES.items() if name not in OURS}
    aime = simulation.SETTINGS[1]
    same, broken = (simulation.rates(aime, delta, peers, RUNS // 4, 20261120) for delta in (0.0, -0.10))
    assert all(blocked > 0.2 for _, blocked in same.values())
    assert all(passed > 0.1 for passed, _ in broken.values())


def test_what_a_dead_server_said_first_is_told_before_its_last_lines() -> None:
    from release.validators.serving import tail

    cause = "RuntimeError: expect weight to be bfloat16, float16, int8"
    log = "\n".join(
        [f"(Worker pid=28) ERROR {cause}", f"(Worker pid=28) ERROR {cause}", *(f"line {n}" for n in range(40)), "the end"]
    )
    assert tail(log).splitlines()[:2] == [f"it said: {cause}", "the last lines of its log:"]
    assert tail(log).endswith("the end")
    echo = "RuntimeError: Engine core initialization failed. See root cause above."
    assert tail(f"{echo}\n{log}") == tail(log), "which says that another process had an error"
    assert tail("one\nValueError: no\n").count("ValueError") == 1
    assert tail(" \n") == "its log is empty"
    warned = "WARNING This can cause errors like `OSError: [Errno 24] Too many open files`."
    assert tail(f"{warned}\n{log}") == tail(log), "which is a warning's example"
    young = "\n".join(["ValueError: what a client asked an hour ago", *["200 OK"] * 500, log])
    assert tail(young) == tail(log), "which did not end it"
