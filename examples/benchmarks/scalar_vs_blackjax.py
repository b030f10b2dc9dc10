"""Complete phi^4 HMC updates beside blackjax's, on the same batch, lattice, steps and precision.

    python examples/benchmarks/scalar_vs_blackjax.py [--quick] [--threads 2] [--clock cpu] ...

An update is one HMC step: fresh momenta, ten leapfrog steps, energies, Metropolis.  blackjax runs
vmapped over the chains, jitted, with several updates in one lax.scan.  The columns count millions
of chain x update x site per second: medians of alternating runs, the best in brackets.  JAX uses
all the cores it may: for one thread start it as ``taskset -c 0 python ... --threads 1``.
"""

import argparse
import functools

import torch
from machine import CLOCKS, interleaved, native, print_header, print_row, processor

from flowmc.actions import Phi4
from flowmc.kernels import HMC

STEPS = 10
UPDATES = 10
M2, LAMBDA = -4.0, 8.0


def ours(extent, chains, dtype, step_size, is_native):
    action = Phi4((extent, extent), m2=M2, lam=LAMBDA)
    kernel = HMC(
        action,
        trajectory=STEPS * step_size,
        steps=STEPS,
        integrator="leapfrog",
        jitter=0.0,
        check_reversibility=0.0,
    )
    rng = torch.Generator().manual_seed(1)
    with native(is_native):
        state = kernel.init(0.1 * action.hot(chains, rng, dtype))
    accepted = []

    def run():
        nonlocal state
        with native(is_native):
            for _ in range(UPDATES):
                state, info = kernel.step(state, rng)
                accepted.append(info.is_accepted.double().mean())

    return run, lambda: float(torch.stack(accepted[-UPDATES:]).mean())


def blackjax_hmc(extent, chains, dtype, step_size):
    import blackjax
    import jax
    import jax.numpy as jnp

    kind = jnp.float64 if dtype == torch.float64 else jnp.float32

    def log_density(phi):
        neighbours = jnp.roll(phi, -1, 0) + jnp.roll(phi, -1, 1)
        square = phi * phi
        return -jnp.sum(square * (4 + M2 + LAMBDA * square) - 2 * phi * neighbours)

    # blackjax takes flat positions with a diagonal mass matrix.
    def flat_density(position):
        return log_density(position.reshape(extent, extent))

    kernel = blackjax.hmc(
        flat_density,
        step_size=jnp.asarray(step_size, kind),
        inverse_mass_matrix=jnp.ones(extent * extent, kind),
        num_integration_steps=STEPS,
    )

    @jax.jit
    def updates(key, states):
        def one(states, key):
            states, info = jax.vmap(kernel.step)(jax.random.split(key, chains), states)
            return states, info.is_accepted.mean()

        return jax.lax.scan(one, states, jax.random.split(key, UPDATES))

    key = jax.random.PRNGKey(1)
    start = 0.1 * jax.random.normal(key, (chains, extent * extent), kind)
    states = jax.vmap(kernel.init)(start)
    accepted = 0.0

    def run():
        nonlocal key, states, accepted
        key, now = jax.random.split(key)
        states, rate = updates(now, states)
        accepted = rate.block_until_ready().mean()
        if states.position.dtype != kind:
            raise SystemExit(f"blackjax left {kind.__name__} for {states.position.dtype}")

    return run, lambda: float(accepted)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, two rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    try:
        import blackjax
        import jax

        other = f"blackjax {blackjax.__version__}, jax {jax.__version__}"
    except ImportError:
        jax = None
        other = "blackjax is not installed (pip install blackjax): its column stays empty"
    print(f"{processor()}, {options.threads} threads; torch {torch.__version__}; {other}\n")
    print_header(
        [
            *["lattice", "chains", "precision", "flowmc native", "flowmc torch", "blackjax"],
            *["native / blackjax", "acceptance: native, torch, blackjax"],
        ]
    )
    cases = [(8, 1024, 0.07), (32, 64, 0.045)]
    for extent, chains, step_size in [(8, 16, 0.07)] if options.quick else cases:
        for dtype in (torch.float32, torch.float64):
            makers = [functools.partial(ours, is_native=on) for on in (True, False)]
            if jax is not None:
                jax.config.update("jax_enable_x64", dtype == torch.float64)
                makers.append(blackjax_hmc)
            contenders = [maker(extent, chains, dtype, step_size) for maker in makers]
            times = interleaved([run for run, _ in contenders], rounds, options.clock)
            work = UPDATES * chains * extent**2 / 1e6
            cells = [f"{work / median:.1f} ({work / best:.1f})" for median, best in times]
            if jax is not None:
                cells.append(f"{times[2][0] / times[0][0]:.1f} ({times[2][1] / times[0][1]:.1f})")
            else:
                cells += ["", ""]
            cells.append(", ".join(f"{accepted():.2f}" for _, accepted in contenders))
            name = str(dtype).removeprefix("torch.")
            print_row([f"{extent}x{extent}", chains, name, *cells])


if __name__ == "__main__":
    main()
