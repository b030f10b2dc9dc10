"""How much the vector fields of linear response gain: SU(3) in two and four dimensions.

    python examples/derivatives/gains.py [--quick] [--only 2d 4d] [--output FILE.json]
    python examples/derivatives/gains.py --only 4d --extents 4 --betas 6 --krylov 2 --length 20

For d/d beta of Wilson loops and of a glueball-like correlator (connected, of the time slices'
spatial plaquettes; in two dimensions of all plaquettes), on chains of HMC.  Gains are ratios of
variances at equal numbers of configurations, against plain reweighting and against two independent
ensembles at beta +- 0.05.  The cost is processor time per configuration, for the vector fields and
for a trajectory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmc.actions import Wilson
from flowmc.estimators.gain import variance_ratio
from flowmc.estimators.history import History, fluctuations_of, result_of
from flowmc.estimators.linear_response import (
    advection,
    bracket,
    bracket_terms,
    cross_fit,
    linear_derivative,
)
from flowmc.kernels import HMC
from flowmc.loops import SHAPES, images, loop_trace
from flowmc.observables import wilson_loop
from flowmc.random import stream
from flowmc.vector_fields import KrylovFields, LoopFields

STEP = 0.05
LOOPS = ((1, 1), (2, 1), (2, 2))


@dataclasses.dataclass(frozen=True)
class Case:
    """One ensemble: chains x length configurations, ``skip`` trajectories apart."""

    lattice: tuple[int, ...]
    beta: float
    chains: int
    length: int
    skip: int = 3


def correlator(field: Tensor, action: Wilson) -> Tensor:
    """Return C(0), C(1) and the vacuum expectation value of time slices of plaquettes."""
    time_axis = action.dimensions
    words = images(SHAPES["plaquette"], action.dimensions)
    if action.dimensions > 2:
        words = tuple(w for w in words if time_axis not in map(abs, w))
    slices = loop_trace(field, words, action.group).flatten(1, -2).sum(1) / action.group.n
    slices = slices / (len(words) * action.volume / action.lattice[-1])
    products = [(slices * slices.roll(-t, 1)).mean(1) for t in (0, 1)]
    return torch.stack([*products, slices.mean(1)], 1)


def run(case: Case, degree: int | None, seed: int = 1) -> dict:
    """Measure the gains of one ensemble."""
    action = Wilson("SU(3)", case.lattice, beta=case.beta)
    families: list = [LoopFields(action)]
    if degree is not None:
        families.append(KrylovFields(action, "beta", degree=degree))
    rng = stream(seed, 0, "gains")
    kernel = HMC(action, trajectory=1.0, steps=8, integrator="omelyan2")
    state = kernel.init(action.hot(case.chains, rng))
    for _ in range(100):
        state, _ = kernel.step(state, rng)
    fields = []
    started = time.process_time()
    for _ in range(case.length):
        for _ in range(case.skip):
            state, _ = kernel.step(state, rng)
        fields.append(state.field)
    hmc_seconds = time.process_time() - started

    def observables(field: Tensor) -> Tensor:
        loops = [wilson_loop(field, action, extents=extents) for extents in LOOPS]
        return torch.cat([torch.stack(loops, 1), correlator(field, action)], 1)

    started = time.process_time()
    surveyed = [bracket_terms(action, "beta", families, field, rng) for field in fields]
    # From time in front to chains in front.
    insertion = torch.stack([one for one, _ in surveyed], 1)
    terms = torch.stack([one for _, one in surveyed], 1)
    history = History.regular("gains", case.length, case.chains)
    coefficients = cross_fit(history, insertion.flatten(), terms.flatten(0, 1))
    table = torch.from_numpy(coefficients).reshape(*terms.shape)
    advected = torch.stack(
        [
            advection(action, families, table[:, i], field, observables)
            for i, field in enumerate(fields)
        ],
        1,
    )
    field_seconds = time.process_time() - started
    values = torch.stack([observables(field) for field in fields], 1).flatten(0, 1).numpy()
    moved = advected.flatten(0, 1).numpy()
    brackets = bracket(insertion.flatten(), terms.flatten(0, 1), coefficients)
    better = linear_derivative(history, values, moved, brackets)
    plain = linear_derivative(history, values, np.zeros_like(moved), insertion.flatten().numpy())
    means = history.observables(values)
    names = [f"W({r}x{t})" for r, t in LOOPS] + ["C(0)", "C(1)"]
    results = {}
    for i, name in enumerate(names):
        d, p, m = better[i], plain[i], means[i]
        if name.startswith("C"):
            vacuum = means[-1]
            d, p, m = d - 2 * vacuum * better[-1], p - 2 * vacuum * plain[-1], m - vacuum**2
        found, reference = result_of(name, d), result_of(name, p)
        own = fluctuations_of(d, history)
        against = variance_ratio("", history, fluctuations_of(p, history), own)
        factor = 2 / (2 * STEP) ** 2
        two = variance_ratio("", history, fluctuations_of(m, history), own, factor)
        results[name] = {
            "derivative": str(found),
            "reweighting": str(reference),
            "gain": [against.value, against.error],
            "gain_two_ensembles": [two.value, two.error],
        }
    count = case.length * case.chains
    return {
        "lattice": list(case.lattice),
        "beta": case.beta,
        "configurations": count,
        "fields": [name for family in families for name in family.names],
        "bracket": float(np.var(insertion.flatten().numpy()) / np.var(brackets)),
        "results": results,
        "seconds_per_trajectory": hmc_seconds / count / case.skip,
        "seconds_per_configuration": field_seconds / count,
    }


def selected(found: list[Case], args: argparse.Namespace) -> list[Case]:
    """Return the cases of the betas, extents and length asked for."""
    return [
        dataclasses.replace(case, length=args.length or case.length)
        for case in found
        if (args.betas is None or case.beta in args.betas)
        and (args.extents is None or case.lattice[0] in args.extents)
    ]


def cases(names: list[str], quick: bool) -> list[Case]:
    found = []
    if "2d" in names:
        sizes = (4,) if quick else (8, 16, 32)
        for extent in sizes:
            chains = 4 if quick else {8: 64, 16: 32, 32: 16}[extent]
            for beta in (4.0,) if quick else (2.0, 4.0, 6.0):
                found.append(Case((extent,) * 2, beta, chains, 10 if quick else 40))
    if "4d" in names:
        for extent in (2,) if quick else (4, 8):
            chains = 4 if quick else {4: 16, 8: 4}[extent]
            for beta in (2.0,) if quick else (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
                if extent == 8 and beta not in (1.0, 2.0, 6.0):
                    continue
                found.append(Case((extent,) * 4, beta, chains, 10 if quick else 40))
    return found


def line(entry: dict) -> str:
    cells = ["x".join(map(str, entry["lattice"])), f"{entry['beta']:g}"]
    cells.append(str(entry["configurations"]))
    for result in entry["results"].values():
        value, error = result["gain"]
        two, _ = result["gain_two_ensembles"]
        digits = 0 if not math.isfinite(error) or error >= 2 else 1
        cells.append(f"{value:.{digits}f}({error:.{digits}f}); {two:.0f}")
    ratio = entry["seconds_per_configuration"] / entry["seconds_per_trajectory"]
    cells.append(f"{ratio:.0f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--only", nargs="+", choices=["2d", "4d"], default=["2d", "4d"])
    parser.add_argument("--krylov", type=int, help="add Krylov fields of this degree")
    parser.add_argument("--betas", nargs="+", type=float, help="only these")
    parser.add_argument("--extents", nargs="+", type=int, help="only these")
    parser.add_argument("--length", type=int, help="configurations per chain")
    parser.add_argument("--output", type=Path, help="write all numbers here, as JSON")
    args = parser.parse_args()
    head = ["lattice", "beta", "N", *(f"W({r}x{t})" for r, t in LOOPS), "C(0)", "C(1)"]
    head.append("cost / trajectory")
    print("Gain in variance against plain reweighting; against two ensembles at beta +- 0.05\n")
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head), flush=True)
    entries = []
    for case in selected(cases(args.only, args.quick), args):
        entries.append(run(case, args.krylov))
        print(line(entries[-1]), flush=True)
        if args.output:
            args.output.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
