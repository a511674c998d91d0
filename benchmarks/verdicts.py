"""How often rules of acceptance are wrong: what peers decide by beside what we do, simulated on the same runs of the same questions.

    python benchmarks/verdicts.py [--runs 1000] [--seed 20261120] [--set NAME]

Each question has a chance of its own of being answered rightly, drawn once for each simulated benchmark from a Beta distribution in
which the share λ of all variance lies within questions: two runs of one endpoint then differ in λ·2p(1 − p) of the questions (0.35 to 0.4
was measured on GPQA-Diamond). A candidate that is worse by Δ has every chance scaled to the mean p + Δ. "passes" is CONSISTENT for us,
"blocks" is REGRESSED; what is neither is INCONCLUSIVE, which no peer can say. Peers, each from one run:

    drop <= 5 points      one-sided, on one run each (FlagRelease)
    ratio >= 0.95         candidate / reference (tt-inference-server; the lower side of the next one)
    isclose, rtol 0.05    two-sided, against a typed-in number: the reference's true mean here (vLLM's lm-eval tests)
    within +-5 points     two-sided, against a typed-in number (nightly baselines)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from release.validators.judgement import Finding, Judgement
from release.validators.verdicts import Plan, judge_pairs, judge_repeats

Counts = NDArray[np.int64]
TEMPERATURE = 0.6


@dataclass(frozen=True)
class Setting:
    """A benchmark to simulate: n questions, the reference's mean, the margin as a share, λ."""

    name: str
    n: int
    mean: float
    margin: float
    within: float = 0.5


SETTINGS = (
    Setting("50 questions", 50, 0.26, 0.05),
    Setting("AIME", 30, 0.80, 0.05),
    Setting("GPQA-Diamond", 198, 0.64, 0.03),
    Setting("MATH-500", 500, 0.94, 0.02),
    Setting("GSM8K", 1319, 0.73, 0.02),
)


class Endpoint:
    """A simulated endpoint: its chance of answering each question rightly, and every answer it has given."""

    def __init__(self, chances: NDArray[np.float64], random: np.random.Generator) -> None:
        self.chances, self.random = chances, random
        self.answers = np.empty((len(chances), 0), dtype=bool)

    def ask(self, repeats: int) -> NDArray[np.bool_]:
        """Return the answers of the first `repeats` runs; what was answered before is kept, never asked anew."""
        missing = repeats - self.answers.shape[1]
        if missing > 0:
            new = self.random.random((len(self.chances), missing)) < self.chances[:, None]
            self.answers = np.concatenate((self.answers, new), axis=1)
        return self.answers[:, :repeats]


def pair_of(setting: Setting, delta: float, random: np.random.Generator) -> tuple[Endpoint, Endpoint]:
    """Return candidate and reference, the candidate worse by −delta on average."""
    size = setting.within / (1 - setting.within)
    chances = random.beta(setting.mean * size, (1 - setting.mean) * size, setting.n)
    worse = chances * (1 + delta / setting.mean)
    return Endpoint(worse, random), Endpoint(chances, random)


def judge(candidate: Endpoint, reference: Endpoint, repeats: int, plan: Plan) -> Judgement:
    """Return our judgement of so many runs of each side."""
    one, two = candidate.ask(repeats), reference.ask(repeats)
    if repeats == 1:
        a, b = one[:, 0], two[:, 0]
        return judge_pairs(int((a & ~b).sum()), int((b & ~a).sum()), len(a), int(a.sum()), plan)
    rows = zip(one.astype(float).tolist(), two.astype(float).tolist(), strict=True)
    return judge_repeats(list(rows), plan)


Rule = Callable[[Endpoint, Endpoint, Setting], Finding]


def _share(endpoint: Endpoint) -> float:
    return float(endpoint.ask(1).mean())


def _typed_in(reference: Endpoint) -> float:
    """Return the number that somebody typed in: the best there can be, the reference's true mean on these questions."""
    return float(reference.chances.mean())


def _says(good: bool) -> Finding:
    return Finding.CONSISTENT if good else Finding.REGRESSED


def drop(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Pass where the candidate is at most 5 points below."""
    return _says(_share(reference) - _share(candidate) <= 0.05 + 1e-12)


def ratio(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Pass where the candidate has at least 95 % of the reference's score."""
    return _says(_share(candidate) >= 0.95 * _share(reference) - 1e-12)


def isclose(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Pass where numpy calls the score close to a typed-in number."""
    return _says(bool(np.isclose(_share(candidate), _typed_in(reference), rtol=0.05)))


def threshold(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Pass where the score lies within 5 points of a typed-in number."""
    return _says(abs(_share(candidate) - _typed_in(reference)) <= 0.05 + 1e-12)


def once(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Judge one run of each side."""
    return judge(candidate, reference, 1, Plan(setting.margin, temperature=TEMPERATURE)).finding


def asked(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Judge, in one planned look, the k that 2p(1 − p)·λ asks for; λ is known from earlier runs."""
    plan = Plan(setting.margin, temperature=TEMPERATURE)
    return judge(candidate, reference, k_for(setting), plan).finding


def looks(candidate: Endpoint, reference: Endpoint, setting: Setting) -> Finding:
    """Judge one run, and where that is INCONCLUSIVE once more at the k that it asks for: two looks, planned as such."""
    plan = Plan(setting.margin, looks=2, temperature=TEMPERATURE)
    first = judge(candidate, reference, 1, plan)
    if first.finding is not Finding.INCONCLUSIVE or not first.need or not first.need.repeats:
        return first.finding
    return judge(candidate, reference, first.need.repeats, plan).finding


def k_for(setting: Setting) -> int:
    """Return the repeats that our plan asks for before anything is measured but λ."""
    from release.validators.statistics import repeats_needed

    return repeats_needed(setting.within * 2 * setting.mean * (1 - setting.mean), setting.margin, setting.n)


RULES: dict[str, Rule] = {
    "drop <= 5 points": drop,
    "ratio >= 0.95": ratio,
    "isclose, rtol 0.05": isclose,
    "within +-5 points": threshold,
    "ours, k = 1": once,
    "ours, k asked for": asked,
    "ours, two looks": looks,
}


def rates(setting: Setting, delta: float, rules: dict[str, Rule], runs: int, seed: int) -> dict[str, tuple[float, float]]:
    """Return for each rule how often it passes and how often it blocks a candidate that is worse by −delta, all on the same runs."""
    random = np.random.default_rng(seed)
    counts = {name: [0, 0] for name in rules}
    for _ in range(runs):
        candidate, reference = pair_of(setting, delta, random)
        for name, rule in rules.items():
            found = rule(candidate, reference, setting)
            counts[name][0] += found is Finding.CONSISTENT
            counts[name][1] += found is Finding.REGRESSED
    return {name: (passed / runs, blocked / runs) for name, (passed, blocked) in counts.items()}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--set", dest="only", default="")
    options = parser.parse_args()
    started = time.monotonic()
    for setting in SETTINGS:
        if options.only.casefold() not in setting.name.casefold():
            continue
        margin = setting.margin
        steps = {"no difference": 0.0, "one margin": -margin, "two margins": -2 * margin, "-10 points": -0.10}
        print(
            f"\n{setting.name}: n = {setting.n}, mean {100 * setting.mean:g} %, margin {100 * margin:g}, λ = {setting.within}, "
            f"k asked for {k_for(setting)}; passes / blocks in % of {options.runs} runs"
        )
        print("  ".join([f"{'':<20}", *(f"{step:>15}" for step in steps)]))
        table = {step: rates(setting, delta, RULES, options.runs, options.seed) for step, delta in steps.items()}
        for name in RULES:
            cells = (f"{100 * table[step][name][0]:5.1f} / {100 * table[step][name][1]:5.1f}" for step in steps)
            print("  ".join([f"{name:<20}", *(f"{cell:>15}" for cell in cells)]))
    print(f"\n{time.monotonic() - started:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
