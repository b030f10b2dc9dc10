r"""Are error bars what they claim?  Series whose answers are known, analysed again and again.

``python examples/error_bars.py`` (six minutes of one core) prints, for autoregressive series of
mean 0 and known tau_int, how many estimates come out without a mark and how far *their* means
scatter in units of their errors (1 is right); how often chains around two means that are d standard
deviations apart are found; how often sound chains are taken for such; how often energy errors of a
sound chain are called wrong, beside those that are; and the gain of one series over another.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from flowmc.estimators.autocorrelation import Estimate, analyse
from flowmc.estimators.gain import variance_ratio
from flowmc.estimators.history import History
from flowmc.reports.analysis.kernel_summary import energy_warnings

# tau_int, measurements, chains, repetitions
SERIES = (
    (0.5, 50, 1, 1000),
    (0.5, 100, 1, 1000),
    (0.5, 1000, 1, 1000),
    (1.0, 100, 1, 1000),
    (2.0, 100, 1, 1000),
    (5.0, 100, 1, 2000),
    (5.0, 500, 1, 1000),
    (5.0, 1000, 1, 1000),
    (5.0, 5000, 1, 1000),
    (50.0, 2500, 1, 1000),
    (50.0, 5000, 1, 1000),
    (50.0, 20000, 1, 500),
    (3.0, 100, 8, 1000),
)
OFFSETS = (0.2, 0.5, 0.7, 1.0, 1.3, 2.0)


def autoregressive(rng: np.random.Generator, length: int, chains: int, tau: float) -> NDArray:
    """Return stationary series of unit variance with rho(t) = a^t, ``(length, chains)``."""
    coefficient = (2 * tau - 1) / (2 * tau + 1)
    noise = rng.normal(size=(length, chains))
    noise[1:] *= math.sqrt(1 - coefficient**2)
    return lfilter([1], [1, -coefficient], noise, axis=0)


def disagrees(estimate: Estimate) -> bool:
    return any("disagree" in text for text in estimate.warnings)


def pulls_of_unmarked(estimates: list[Estimate]) -> str:
    pulls = [one.mean / one.error for one in estimates if not one.is_bound]
    share = len(pulls) / len(estimates)
    width = f"{np.sqrt(np.mean(np.square(pulls))):.2f}" if len(pulls) >= 20 else "-"
    return f"| {share:.1%} | {width} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed

    print("| tau_int | measurements x chains | N / tau_int | unmarked | width of their pulls |")
    print("|---|---|---|---|---|")
    for tau, length, chains, count in SERIES:
        rng = np.random.default_rng(seed)
        estimates = [analyse(autoregressive(rng, length, chains, tau)) for _ in range(count)]
        label = f"| {tau:g} | {length} x {chains} | {length * chains / tau:.0f} "
        print(label + pulls_of_unmarked(estimates), flush=True)
    for share, tau in ((0.1, 300.0), (0.03, 1000.0)):
        rng = np.random.default_rng(seed)
        estimates = []
        for _ in range(100):
            slow = math.sqrt(share) * autoregressive(rng, 100_000, 1, tau)
            fast = math.sqrt(1 - share) * rng.normal(size=(100_000, 1))
            estimates.append(analyse(slow + fast))
        whole = share * tau + 0.5 * (1 - share)
        label = f"| {whole:.1f}: {share:.0%} of the variance at {tau:g} | 100000 x 1 "
        print(label + f"| {100_000 / whole:.0f} " + pulls_of_unmarked(estimates), flush=True)

    print("\n| chains x measurements | " + " | ".join(f"d = {d:g}" for d in OFFSETS) + " |")
    print("|---" * (len(OFFSETS) + 1) + "|")
    for chains, length, count in ((2, 500, 100), (4, 500, 100), (4, 20_000, 20), (32, 500, 100)):
        rng = np.random.default_rng(seed)
        cells = []
        for offset in OFFSETS:
            places = offset * (np.arange(chains) % 2)
            estimates = [analyse(places + rng.normal(size=(length, chains))) for _ in range(count)]
            marked = np.mean([one.is_bound for one in estimates])
            cells.append(f"{marked:.0%}, {np.median([one.error for one in estimates]):.3f}")
        print(f"| {chains} x {length} | " + " | ".join(cells) + " |", flush=True)

    print("\n| tau_int | chains x measurements | sound runs whose chains are said to disagree |")
    print("|---|---|---|")
    for tau, chains, length, count in (
        (0.5, 4, 200, 3000),
        (0.5, 100, 200, 3000),
        (5.0, 4, 500, 2000),
        (5.0, 16, 250, 2000),
        (50.0, 16, 1000, 1000),
    ):
        rng = np.random.default_rng(seed)
        found = sum(
            disagrees(analyse(autoregressive(rng, length, chains, tau))) for _ in range(count)
        )
        print(f"| {tau:g} | {chains} x {length} | {found} of {count} |", flush=True)

    print("\n| sd(dH) | trajectories | <exp(-dH)> off by 4 errors | warnings | ... for dH + 0.5 |")
    print("|---|---|---|---|---|")
    for spread in (0.5, 1.0, 2.0, 4.0, 5.0, 7.0):
        rng = np.random.default_rng(seed)
        off = sound = wrong = 0
        for _ in range(200):
            errors = rng.normal(spread**2 / 2, spread, size=(5000, 4))
            check = analyse(np.exp(-errors))
            off += abs(check.mean - 1) > 4 * check.error
            sound += bool(warned(errors, rng))
            wrong += bool(warned(errors + 0.5, rng))
        print(f"| {spread:g} | 20000 | {off / 2:.1f}% | {sound / 2:.1f}% | {wrong / 2:.1f}% |")

    print("\n| tau_int | over | gain | mean | scatter | error quoted |")
    print("|---|---|---|---|---|---|")
    history = History.regular("e", 4000)
    for tau, other in ((10.0, 0.5), (0.5, 10.0), (5.0, 5.0)):
        rng = np.random.default_rng(seed)
        gains = []
        for _ in range(100):
            series = [autoregressive(rng, 4000, 1, one)[:, 0] for one in (tau, other)]
            gains.append(variance_ratio("gain", history, *(one - one.mean() for one in series)))
        values = np.array([gain.value for gain in gains])
        error = np.mean([gain.error for gain in gains])
        print(
            f"| {tau:g} | {other:g} | {tau / other:g} | {values.mean():.4g} | "
            f"{values.std():.3g} | {error:.3g} |"
        )


def warned(errors: NDArray, rng: np.random.Generator) -> list[str]:
    """Return what the report says about energy errors of trajectories, ``(rows, chains)``."""
    accepted = rng.random(errors.shape) < np.exp(-np.maximum(errors, 0))
    values = {"energy_error": errors, "accepted": accepted, "tried": np.ones(errors.shape)}
    return energy_warnings("hmc", values, analyse(np.exp(-errors)))


if __name__ == "__main__":
    main()
