"""Throughput of HMC trajectories: native kernels against the torch path, in one run.

    python examples/benchmarks/hmc_throughput.py [--quick | --loops] [--threads 1 2] ...

A trajectory is ten leapfrog steps: eleven force evaluations and ten updates of every link (or
site).  The columns count millions of link-force evaluations per second of whole-trajectory time,
conversion to and from torch's layout included; a scalar site counts as one link.  Native and torch
trajectories alternate; numbers are medians, with the best of the rounds in brackets.
"""

import argparse

import torch
from machine import CLOCKS, interleaved, native, print_header, print_row, processor

from flowmc.actions import ImprovedGauge, Iwasaki, Phi4, SchroedingerFunctional, Wilson
from flowmc.kernels.integrators import trajectory
from flowmc.native import find_trajectory
from flowmc.splitting import INTEGRATORS

CASES = [
    (Wilson("SU(3)", (4,) * 4, beta=5.7), 1, torch.float64),
    (Wilson("SU(3)", (4,) * 4, beta=5.7), 16, torch.float64),
    (Wilson("SU(3)", (8,) * 4, beta=5.7), 1, torch.float64),
    (Wilson("SU(3)", (8,) * 4, beta=5.7), 1, torch.float32),
    (Wilson("SU(2)", (8,) * 4, beta=2.3), 1, torch.float64),
    (Wilson("SU(2)", (16,) * 2, beta=2.3), 64, torch.float64),
    (Wilson("U(1)", (16,) * 2, beta=5.0), 256, torch.float64),
    (Wilson("U(1)", (16,) * 2, beta=5.0), 256, torch.float32),
    (Wilson("U(1)", (8,) * 4, beta=1.0), 1, torch.float64),
    (Phi4((8, 8), m2=-4.0, lam=8.0), 1024, torch.float64),
    (Phi4((8, 8), m2=-4.0, lam=8.0), 1024, torch.float32),
    (Phi4((32, 32), m2=-4.0, lam=8.0), 64, torch.float64),
    (Phi4((32, 32), m2=-4.0, lam=8.0), 64, torch.float32),
    (Phi4((8,) * 4, kappa=0.1, lam=0.5), 1, torch.float64),
]
# The same field and trajectory under loops of more and more shapes, beside Wilson's.
LOOPS = [
    *(
        (kind("SU(3)", lattice, **keys), 1, torch.float64)
        for lattice in ((4,) * 4, (8,) * 4)
        for kind, keys in (
            (Wilson, {"beta": 5.7}),
            (Iwasaki, {"beta": 2.6}),
            (Iwasaki, {"beta": 2.6, "time_boundary": "open"}),
            (ImprovedGauge, {"beta": 4.0, "c1": -0.1, "c3": -0.03}),
            (SchroedingerFunctional, {"beta": 5.7}),
            (SchroedingerFunctional, {"beta": 2.6, "c1": -0.331}),
        )
    ),
    (Wilson("SU(2)", (8,) * 4, beta=2.3), 1, torch.float64),
    (Iwasaki("SU(2)", (8,) * 4, beta=1.0), 1, torch.float64),
    (Wilson("U(1)", (16,) * 2, beta=5.0), 256, torch.float64),
    (Iwasaki("U(1)", (16,) * 2, beta=2.0), 256, torch.float64),
]
QUICK = [
    (Wilson("SU(3)", (4,) * 4, beta=5.7), 1, torch.float64),
    (Phi4((8, 8), m2=-4.0, lam=8.0), 64, torch.float64),
]
STEPS = 10


def measure(action, chains, dtype, rounds, clock):
    rng = torch.Generator().manual_seed(1)
    field = action.hot(chains, rng, dtype) if action.is_gauge else action.cold(chains, dtype)
    momentum = action.group.draw_algebra(field, rng)
    step_size = torch.full((chains,), 0.05, dtype=torch.float64)
    leapfrog = INTEGRATORS["leapfrog"]
    run = find_trajectory(action, field, leapfrog)
    if run is None:
        raise SystemExit("the native kernels are switched off: unset FLOWMC_NATIVE")

    def ours():
        run(field, momentum, step_size, STEPS)

    def theirs():
        with native(False):
            trajectory(action, action.group, field, momentum, leapfrog, step_size, STEPS)

    evaluations = chains * action.volume * (action.dimensions if action.is_gauge else 1)
    evaluations *= STEPS + 1
    (median, best), (torch_median, torch_best) = interleaved([ours, theirs], rounds, clock)
    return [
        f"{evaluations / median / 1e6:.2f} ({evaluations / best / 1e6:.2f})",
        f"{evaluations / torch_median / 1e6:.2f} ({evaluations / torch_best / 1e6:.2f})",
        f"{torch_median / median:.1f} ({torch_best / best:.1f})",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small cases, two rounds")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--loops", action="store_true", help="gauge actions beside Wilson's")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds

    print(f"{processor()}; torch {torch.__version__}\n")
    print_header(
        ["theory", "lattice", "chains", "precision", "threads", "native", "torch", "ratio"]
    )
    for action, chains, dtype in QUICK if options.quick else LOOPS if options.loops else CASES:
        for threads in options.threads[:1] if options.quick else options.threads:
            torch.set_num_threads(threads)
            cells = measure(action, chains, dtype, rounds, options.clock)
            name = action.group.name if action.is_gauge else action.name
            if options.loops:
                name = f"{name} {action.name}{' open' * action.has_open_time}"
            size = "x".join(map(str, action.lattice))
            print_row([name, size, chains, str(dtype).removeprefix("torch."), threads, *cells])


if __name__ == "__main__":
    main()
