"""Flow proposals per second: draws with their density, and densities of given fields.

    python examples/benchmarks/flow_throughput.py [--quick] [--threads 2] [--clock cpu] ...

``sample`` is what an independence step pays for a proposal, the action of it excluded;
``log_prob`` is what it pays after another kernel has moved the field, by the inverse flow (a
fixed-point iteration for residual flows).  Weights are random and small: the speed of an iterative
inverse depends on them, that of everything else does not.
"""

import argparse

import torch
from machine import CLOCKS, interleaved, print_header, print_row, processor

from flowmc.actions import Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    ContinuousFlow,
    FlowModel,
    GaussianPrior,
    HaarPrior,
    ResidualFlow,
)


def phi4(extent):
    return Phi4((extent, extent), m2=-4.0, lam=6.0)


CASES = [
    ("affine coupling, 16 layers", phi4(8), AffineCouplingFlow, {}, 1024),
    ("affine coupling, 16 layers", phi4(16), AffineCouplingFlow, {}, 256),
    ("continuous, RK4 50 steps", phi4(8), ContinuousFlow, {}, 256),
    ("continuous, RK4 50 steps", phi4(16), ContinuousFlow, {}, 64),
    ("residual, 1 sweep", Wilson("U(1)", (16, 16), beta=3.0), ResidualFlow, {}, 64),
    ("residual, 1 sweep", Wilson("SU(3)", (4,) * 4, beta=5.7), ResidualFlow, {}, 4),
]
QUICK = [("affine coupling, 2 layers", phi4(4), AffineCouplingFlow, {"layers": 2}, 16)]


@torch.no_grad()
def measure(action, flow_type, options, batch, rounds, clock):
    torch.manual_seed(1)
    flow = flow_type(action, **options)
    for parameter in flow.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    prior = HaarPrior(action) if action.is_gauge else GaussianPrior(action)
    model = FlowModel(prior, flow)
    if not action.is_gauge:
        model = model.to(torch.float32)
    rng = torch.Generator().manual_seed(1)
    fields, _ = model.sample(batch, rng)
    contenders = [lambda: model.sample(batch, rng), lambda: model.log_prob(fields)]
    cells = [str(fields.dtype).removeprefix("torch.")]
    for median, best in interleaved(contenders, rounds, clock):
        cells.append(f"{batch / median:.4g} ({batch / best:.4g})")
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads; torch {torch.__version__}\n")
    print_header(["flow", "theory", "batch", "precision", "samples / s", "log_prob / s"])
    for name, action, flow_type, keys, batch in QUICK if options.quick else CASES:
        cells = measure(action, flow_type, keys, batch, rounds, options.clock)
        theory = action.group.name if action.is_gauge else action.name
        size = "x".join(map(str, action.lattice))
        print_row([name, f"{theory} {size}", batch, *cells])


if __name__ == "__main__":
    main()
