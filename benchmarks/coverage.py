"""How often the 95 % intervals of an evaluation hold the truth, on simulated scores whose truth is known.

    python benchmarks/coverage.py           the table of docs/evaluation.md (about ten minutes on a slow core)

Every simulated evaluation draws prompts and noises anew; a figure is covered where its interval holds the value of the
whole population.
"""

import argparse
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from reneg_core.evaluation.statistics import Estimate, better_half, estimate, share, wins, within

OWN, SHARED = False, True
Table = np.ndarray


class World:
    """Scores of two modes with prompt, noise and interaction effects of known size.

    prompt, noise, rest: standard deviations of the baseline's effects; the other mode's gain over it is ``gain`` with
    effects a third as large, less ``slope`` times the baseline's score.
    """

    def __init__(self, prompt: float, noise: float, rest: float, gain: float = 0.2, slope: float = 0.3) -> None:
        self.effects, self.gain, self.slope = (prompt, noise, rest), gain, slope

    def effect(self, generator: np.random.Generator, prompts: int, k: int, crossed: bool) -> Table:
        prompt, noise, rest = self.effects
        noises = generator.normal(size=(1, k) if crossed else (prompts, k))
        return (
            prompt * generator.normal(size=(prompts, 1)) + noise * noises + rest * generator.normal(size=(prompts, k))
        )

    def draw(self, generator: np.random.Generator, prompts: int, k: int, crossed: bool) -> tuple[Table, Table]:
        base = self.effect(generator, prompts, k, crossed)
        return base + self.gain + self.effect(generator, prompts, k, crossed) / 3 - self.slope * base, base

    @property
    def spread(self) -> float:
        return sum(effect**2 for effect in self.effects) ** 0.5

    @property
    def win_rate(self) -> float:
        return NormalDist().cdf(self.gain / (self.spread * (1 / 9 + self.slope**2) ** 0.5))

    @property
    def upper_half(self) -> float:
        """Mean gain in the half that is best with the baseline, whose mean is sqrt(2 / pi) deviations up."""
        return self.gain - self.slope * self.spread * (2 / np.pi) ** 0.5


Finder = Callable[[Table, Table, bool, int], Estimate]
"""New and old scores ``[prompts, k]``, whether noises are shared, resamples."""

FIGURES: dict[str, tuple[Finder, Callable[[World], float]]] = {
    "mean": (
        lambda new, old, crossed, resamples: estimate(new, crossed=crossed, resamples=resamples),
        lambda world: world.gain,
    ),
    "difference": (
        lambda new, old, crossed, resamples: estimate(new - old, crossed=crossed, resamples=resamples),
        lambda world: world.gain,
    ),
    "win rate": (
        lambda new, old, crossed, resamples: share(wins(new, old), crossed=crossed, resamples=resamples),
        lambda world: world.win_rate,
    ),
    "better half": (
        lambda new, old, crossed, resamples: estimate(
            within(new - old, better_half(old), old), crossed=crossed, resamples=resamples
        ),
        lambda world: world.upper_half,
    ),
}
MODERATE, DOMINANT = World(1, 0.3, 1), World(0.5, 1, 0.5)
ROWS: dict[str, tuple[World, int, int, bool]] = {
    "64 x 4 own": (MODERATE, 64, 4, OWN),
    "72 x 4 own": (MODERATE, 72, 4, OWN),
    "24 x 2 own": (MODERATE, 24, 2, OWN),
    "256 x 1 own": (MODERATE, 256, 1, OWN),
    "64 x 4 shared": (MODERATE, 64, 4, SHARED),
    "72 x 4 shared": (MODERATE, 72, 4, SHARED),
    "24 x 2 shared": (MODERATE, 24, 2, SHARED),
    "64 x 4 own, the noise matters twice as much as the prompt": (DOMINANT, 64, 4, OWN),
    "64 x 4 shared, the noise matters twice as much as the prompt": (DOMINANT, 64, 4, SHARED),
    "24 x 2 shared, the noise matters twice as much as the prompt": (DOMINANT, 24, 2, SHARED),
}
"""Designs by name: the world, prompts, noises a prompt, whether prompts share them."""


def coverage(row: str, times: int, resamples: int = 200, seed: int = 1) -> dict[str, float]:
    """How often the 95 % interval of each figure holds the truth, over ``times`` evaluations of the design ``row``."""
    world, prompts, k, crossed = ROWS[row]
    generator, hits = np.random.default_rng(seed), dict.fromkeys(FIGURES, 0)
    for _ in range(times):
        new, old = world.draw(generator, prompts, k, crossed)
        for name, (find, truth) in FIGURES.items():
            hits[name] += not find(new, old, crossed, resamples).excludes(truth(world))
    return {name: count / times for name, count in hits.items()}


def main() -> None:
    from measure import publish, table  # beside this file: there where it runs as a script, not where a test imports it

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4000, help="evaluations per row (%(default)s)")
    parser.add_argument("--resamples", type=int, default=600, help="bootstrap resamples of each (%(default)s)")
    args = parser.parse_args()
    found = {row: coverage(row, args.times, args.resamples) for row in ROWS}
    shown = [[row, *(f"{100 * share:.1f}" for share in figures.values())] for row, figures in found.items()]
    print(table(shown, ["prompts x noises", *FIGURES]))
    publish("coverage", {"times": args.times, "resamples": args.resamples, "coverage": found})


if __name__ == "__main__":
    main()
