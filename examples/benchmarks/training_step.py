"""One training step of the continuous flow by objective, and beside bijx where that is installed.

    python examples/benchmarks/training_step.py [--quick] [--threads 2] [--clock cpu] ...

A step is a batch of draws, the loss and the gradient with respect to all weights; the optimiser,
the same for all, is left out.  The forward divergence draws from as many HMC chains, one trajectory
each; alpha = 2 anneals in four trajectories of four leapfrog steps.  The flow is that of
arXiv:2207.00283 with its sizes (49 frequencies, 20 site and 20 time channels, kernels of the size
of the lattice, fourth-order Runge-Kutta), from a Gaussian prior, in float32.  bijx (pip install
bijx) has the same flow; its gradient comes from the adjoint equation, solved backwards.  JAX uses
all the cores it may: for one thread start this as ``taskset -c 0 python ... --threads 1``.  Weights
are random: speeds do not depend on them.
"""

import argparse
import importlib.util
import math
from functools import partial

import torch
from machine import CLOCKS, interleaved, native, print_header, print_row, processor

from flowmc.actions import Phi4
from flowmc.flows import ContinuousFlow, FlowModel, GaussianPrior
from flowmc.training import ReverseKL
from flowmc.training.ensemble import Ensemble
from flowmc.training.objectives import AlphaTwo, ForwardKL, LogVariance, Reinforce

M2, LAMBDA = -4.0, 6.0


def forward_kl(model, action, batch, gradient):
    ensemble = Ensemble(action, "target", 1, chains=batch, thermalization=20, dtype=torch.float32)
    return ForwardKL(model, ensemble, gradient=gradient)


def alpha_two(model, action):
    """Return the objective with leapfrog steps that even an untrained flow does not throw off."""
    objective = AlphaTwo(model, action)
    objective.load_state_dict({"log_step_size": torch.tensor([math.log(0.01)])})
    return objective


def ours(extent, batch, steps, objective, is_native=True):
    action = Phi4((extent, extent), m2=M2, lam=LAMBDA)
    torch.manual_seed(1)
    flow = ContinuousFlow(action, steps=steps)
    torch.nn.init.normal_(flow.kernels, std=1e-3)
    model = FlowModel(GaussianPrior(action), flow).to(torch.float32)
    loss = objective(model, action)
    rng = torch.Generator().manual_seed(1)

    def run():
        with native(is_native):
            model.zero_grad()
            loss.evaluate(batch, rng).surrogate.backward()

    return run


def draws(extent, batch, steps):
    action = Phi4((extent, extent), m2=M2, lam=LAMBDA)
    torch.manual_seed(1)
    flow = ContinuousFlow(action, steps=steps)
    torch.nn.init.normal_(flow.kernels, std=1e-3)
    model = FlowModel(GaussianPrior(action), flow).to(torch.float32)
    rng = torch.Generator().manual_seed(1)

    @torch.no_grad()
    def run():
        model.sample(batch, rng)

    return run


def bijx_step(extent, batch, steps):
    import bijx
    import jax
    import jax.numpy as jnp
    from bijx.bijections.conv_cnf import ConvVF
    from bijx.lattice.scalar import phi4_term
    from flax import nnx

    field = ConvVF.build((extent, extent), (), rngs=nnx.Rngs(1))
    flow = bijx.ContFlowRK4(field, steps=steps)
    graph, weights, rest = nnx.split(flow, nnx.Param, ...)
    volume = extent * extent

    def loss(weights, z):
        log_prior = -0.5 * (z**2).sum((1, 2)) - 0.5 * volume * jnp.log(2 * jnp.pi)
        x, log_q = nnx.merge(graph, weights, rest).forward(z, log_prior)
        action = jax.vmap(lambda phi: phi4_term(phi, M2, LAMBDA).sum())(x)
        return (log_q + action).mean()

    step = jax.jit(jax.grad(loss))
    key = jax.random.key(1)

    def run():
        nonlocal key
        key, own = jax.random.split(key)
        jax.block_until_ready(step(weights, jax.random.normal(own, (batch, extent, extent))))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds, rough numbers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--extents", type=int, nargs="+", default=[8, 12])
    parser.add_argument("--peer", action="store_true", help="bijx, too")
    args = parser.parse_args()
    if args.peer and importlib.util.find_spec("bijx") is None:
        parser.error("--peer needs bijx: pip install bijx")
    torch.set_num_threads(args.threads)
    print(f"{processor()}, {args.threads} threads, {args.clock} clock; seconds per step, ", end="")
    print("median (best) and ratio to the first\n")
    cases = [(4, 8, 2)] if args.quick else [(extent, 256, 50) for extent in args.extents]
    print_header(["lattice", "batch", "RK4 steps", "what", "seconds", "ratio"])
    for extent, batch, steps in cases:
        size = extent, batch, steps
        contenders = {
            "reverse KL": ours(*size, ReverseKL),
            "reverse KL, path gradient": ours(*size, partial(ReverseKL, gradient="path")),
            "reverse KL, score (REINFORCE)": ours(*size, Reinforce),
            "variance of log-weights": ours(*size, LogVariance),
            "forward KL, path gradient": ours(
                *size, partial(forward_kl, batch=batch, gradient="path")
            ),
            "forward KL, maximum likelihood": ours(
                *size, partial(forward_kl, batch=batch, gradient="score")
            ),
            "alpha = 2, annealed": ours(*size, alpha_two),
            "draws only": draws(*size),
            "reverse KL, torch": ours(*size, ReverseKL, False),
        }
        if args.peer:
            contenders["reverse KL, bijx"] = bijx_step(*size)
        times = interleaved(list(contenders.values()), 1 if args.quick else args.rounds, args.clock)
        for name, (median, best) in zip(contenders, times, strict=True):
            print_row(
                [
                    f"{extent}x{extent}",
                    batch,
                    steps,
                    name,
                    f"{median:.3f} ({best:.3f})",
                    f"{median / times[0][0]:.2f}",
                ]
            )


if __name__ == "__main__":
    main()
