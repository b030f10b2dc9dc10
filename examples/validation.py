"""Chains against exact results, as a table: what docs/validation.md quotes.

python examples/validation.py [--quick]

Every line is one set of chains: mean with its error by the Gamma method, the exact value (or that
of a long independent run, with its error), and the pull, their difference in standard deviations.
"""

import argparse

import torch

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.estimators.autocorrelation import analyse, format_value
from flowmc.flows import Inverse, ResidualFlow
from flowmc.kernels import HMC, Cycle, EachReplica, Exchange
from flowmc.observables import phi2, plaquette, susceptibility, topological_charge
from flowmc.random import stream


def charge_squared(field, action):
    return topological_charge(field, action).square()


def series(kernel, start, action, observables, updates, thermalization, rng):
    """Run chains; return (updates, chains) arrays of the target replica."""
    state = kernel.init(start)
    rows = [[] for _ in observables]
    for update in range(thermalization + updates):
        state, info = kernel.step(state, rng)
        if update < thermalization:
            kernel.adapt(info, update)
            continue
        field = state.replicas[0].field if hasattr(state, "replicas") else state.field
        for row, observable in zip(rows, observables, strict=True):
            row.append(observable(field, action))
    return [torch.stack(row).numpy() for row in rows]


def hmc(action, **options):
    return HMC(action, steps=8, target_acceptance=0.85, **options)


def ladder(actions, flows):
    """HMC on every replica, then exchange through the flows."""
    return Cycle([EachReplica([hmc(a) for a in actions], actions), Exchange(actions, flows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the statistics")
    shorter = 20 if parser.parse_args().quick else 1
    rng = stream(2026, 0, "validation")
    lines = []

    def compare(label, kernel, start, action, observables, expected, updates):
        updates = max(20, updates // shorter)
        results = series(kernel, start, action, observables, updates, updates // 4, rng)
        for observable, values, (exact, error) in zip(observables, results, expected, strict=True):
            estimate = analyse(values)
            pull = (estimate.mean - exact) / (estimate.error**2 + error**2) ** 0.5
            reference = format_value(exact, error) if error else f"{exact:.8g}"
            lines.append(
                f"| {label} | {observable.__name__} | "
                f"{format_value(estimate.mean, estimate.error)} | {reference} | {pull:+.1f} | "
                f"{estimate.tau_int:.1f} |"
            )
            print(lines[-1], flush=True)

    print("| chains | observable | measured | exact or reference | pull | tau_int |")
    print("|---|---|---|---|---|---|", flush=True)
    u1 = Wilson("U(1)", [8, 8], beta=2.0)
    u1_exact = [(0.69777466, 0.0), (1.239299, 0.0)]
    for start, field in (("cold", u1.cold(64)), ("hot", u1.hot(64, rng))):
        label = f"U(1) 8x8 beta=2, HMC, {start} start"
        compare(label, hmc(u1), field, u1, [plaquette, charge_squared], u1_exact, 2000)
    actions = [u1, u1.at(beta=3.0), u1.at(beta=4.0)]
    flows = [ResidualFlow(u1, initial_coefficient=0.05) for _ in range(2)]
    compare(
        "U(1) 8x8 beta=2, T-REX up to 4",
        ladder(actions, flows),
        [action.hot(64, rng) for action in actions],
        u1,
        [plaquette, charge_squared],
        u1_exact,
        2000,
    )
    actions = [u1.at(beta=4.0), u1.at(beta=3.0), u1]
    flows = [Inverse(ResidualFlow(u1, initial_coefficient=0.05)) for _ in range(2)]
    compare(
        "U(1) 8x8 beta=4, T-REX down to 2",
        ladder(actions, flows),
        [action.hot(64, rng) for action in actions],
        actions[0],
        [plaquette, charge_squared],
        [(0.86353004, 0.0), (0.482016, 0.0)],
        2000,
    )
    for group, beta, exact in (
        ("SU(2)", 2.2, 0.46447903),
        ("SU(2)", 4.0, 0.65804727),
        ("SU(3)", 4.0, 0.27961915),
        ("SU(3)", 6.0, 0.42253174),
    ):
        action = Wilson(group, [8, 8], beta=beta)
        for start, field in (("cold", action.cold(32)), ("hot", action.hot(32, rng))):
            label = f"{group} 8x8 beta={beta:g}, HMC, {start} start"
            compare(label, hmc(action), field, action, [plaquette], [(exact, 0.0)], 800)
    phi4 = Phi4([8, 8], m2=-4.0, lam=8.0)
    for start, field in (("cold", phi4.cold(256)), ("hot", phi4.hot(256, rng))):
        label = f"phi^4 8x8 m2=-4 lambda=8, HMC, {start} start"
        compare(
            label,
            hmc(phi4),
            field,
            phi4,
            [susceptibility, phi2],
            [(0.7450, 0.0021), (0.143466, 0.000044)],
            2000,
        )
    free = FreeScalar([8, 6], m2=0.3)
    propagator = free.propagator()
    compare(
        "free field 8x6 m2=0.3, HMC",
        hmc(free),
        free.cold(256),
        free,
        [phi2, susceptibility],
        [(float(propagator[0, 0]), 0.0), (float(propagator.sum()), 0.0)],
        2000,
    )


if __name__ == "__main__":
    main()
