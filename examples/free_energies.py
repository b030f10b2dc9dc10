"""ln Z by every estimator on the same systems, against exact values.

    python examples/free_energies.py [--scale 0.25] [--quick] [--only NAME ...]

prints the table of docs/validation.md: draws of a flow (q), samples of the target (p), the bridge
between both, the share of the target that the flow covers, annealing from a solved start and back,
a stochastic normalizing flow, and a line of ensembles with bridges between neighbours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmc.actions import Action, DoubleWell, FreeScalar, Phi4, Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import (
    FreeEnergy,
    bennett,
    chain_of_ensembles,
    jarzynski,
    mode_coverage,
)
from flowmc.flows import (
    AffineCouplingFlow,
    FlowModel,
    FreeFieldPrior,
    GaussianPrior,
    HaarPrior,
    Identity,
    PlaquetteFlow,
    ResidualFlow,
)
from flowmc.flows.base import Flow
from flowmc.kernels import HMC, Kernel, SignFlip
from flowmc.nonequilibrium import (
    ExactStart,
    MarkovStart,
    Process,
    StochasticFlow,
    line_of_actions,
)
from flowmc.random import stream
from flowmc.training.loop import Settings, Trainer
from flowmc.training.objectives import ReverseKL
from flowmc.training.work import MeanWork


@dataclass
class System:
    """A theory with what each estimator needs.

    Attributes:
        title: for the table.
        action: the target.
        reference: ln Z and its error.
        model: a flow, trained if ``training`` says so.
        protocol: couplings from a solved start to the target.
        steps: of plain annealing.
        layers: of the stochastic flow.
        layer: makes one layer of the stochastic flow.
        ensembles: number of them in the line.
        exact_draws: of the target, if there are; else Markov chains.
    """

    title: str
    action: Action
    model: Callable[[], FlowModel]
    protocol: Mapping[str, Sequence[float]]
    steps: int
    layers: int
    ensembles: int
    reference: tuple[float, float] | None = None
    training: dict = field(default_factory=dict)
    layer: Callable[[Action], Flow] | None = None
    exact_draws: Callable[[int, torch.Generator], Tensor] | None = None
    trajectory: dict = field(default_factory=lambda: {"trajectory": 1.0, "steps": 4})

    def kernels(self, action: Action, flip: bool = False) -> list[Kernel]:
        kernels: list[Kernel] = [
            HMC(action, jitter=0.3, check_reversibility=0.0, **self.trajectory)
        ]
        return [*kernels, SignFlip(action)] if flip else kernels

    def target(self, measurements: int, chains: int) -> Iterator[Tensor]:
        """Yield configurations of the target."""
        rng = stream(7, 0, "target")
        if self.exact_draws is not None:
            for _ in range(measurements):
                yield self.exact_draws(chains, rng)
            return
        kernels = self.kernels(self.action, flip=not self.action.is_gauge)
        start = MarkovStart(self.action, kernels, chains=chains, thermalization=300, separation=5)
        yield from start.configurations(measurements, rng)


def systems() -> dict[str, System]:
    free = FreeScalar([8, 6], m2=0.3)
    u1 = Wilson("U(1)", [8, 8], beta=2.0)
    su3 = Wilson("SU(3)", [4, 4], beta=1.0)
    su3_fine = Wilson("SU(3)", [8, 8], beta=5.0)
    well = DoubleWell([8], m0=2.75, spacing=0.5)
    well_deep = DoubleWell([16], m0=3.0, spacing=0.25)
    phi4 = Phi4([16, 8], kappa=0.2, lam=0.022)
    to_two_wells = {"mu2": [1.0, -1.0], "lambda": [0.0, 1.0]}

    def affine(action: Action, scale: float, **options) -> Callable[[], FlowModel]:
        def make() -> FlowModel:
            torch.manual_seed(1)
            flow = AffineCouplingFlow(action, **{"layers": 8, "hidden": [8], **options})
            return FlowModel(GaussianPrior(action, scale=scale), flow).double()

        return make

    def layer(action: Action) -> Flow:
        return AffineCouplingFlow(action, layers=2, hidden=[8], odd=True).double()

    return {
        "free": System(
            "free field 8x6, m2 = 0.3",
            free,
            lambda: FlowModel(FreeFieldPrior(free, m2=0.5), Identity()).double(),
            {"m2": [2.0, 0.3]},
            30,
            8,
            5,
            layer=layer,
            exact_draws=free.sample,
        ),
        "u1": System(
            "U(1) 8x8, beta = 2",
            u1,
            lambda: FlowModel(
                HaarPrior(u1), PlaquetteFlow(u1, bins=24, initial_transport=(0.0, 2.0))
            ).double(),
            {"beta": [0.0, 2.0]},
            80,
            10,
            9,
            layer=lambda a: ResidualFlow(a, initial_coefficient=0.02).double(),
            exact_draws=lambda n, rng: sample_wilson_2d(u1, n, rng),
        ),
        "su3": System(
            "SU(3) 4x4, beta = 1",
            su3,
            lambda: FlowModel(HaarPrior(su3), Identity()).double(),
            {"beta": [0.0, 1.0]},
            20,
            5,
            3,
            layer=lambda a: ResidualFlow(a, initial_coefficient=0.01).double(),
        ),
        "su3_fine": System(
            "SU(3) 8x8, beta = 5",
            su3_fine,
            lambda: FlowModel(HaarPrior(su3_fine), Identity()).double(),
            {"beta": [0.0, 5.0]},
            100,
            0,
            11,
        ),
        "well": System(
            "double well, m0 = 2.75, 8 x 0.5",
            well,
            affine(well, 0.8),
            to_two_wells,
            60,
            15,
            9,
            training={"steps": 1500, "batch": 256, "learning_rate": 5e-3},
            layer=layer,
            trajectory={"trajectory": 1.0, "steps": 8},
        ),
        "well_deep": System(
            "double well, m0 = 3, 16 x 0.25",
            well_deep,
            affine(well_deep, 0.8, layers=12),
            to_two_wells,
            100,
            25,
            9,
            training={"steps": 1500, "batch": 256, "learning_rate": 5e-3},
            layer=layer,
            trajectory={"trajectory": 1.0, "steps": 12},
        ),
        "phi4": System(
            "phi^4 16x8, kappa = 0.2, lambda = 0.022",
            phi4,
            affine(phi4, 0.75, hidden=[8, 8], odd=True),
            {"kappa": [0.0, 0.2]},
            40,
            10,
            7,
            reference=(80.0999, 0.0034),
            training={"steps": 500, "batch": 128, "learning_rate": 5e-3},
            layer=layer,
        ),
    }


def rows(
    system: System, scale: float, training_scale: float
) -> Iterator[tuple[str, str, str, str]]:
    """Yield estimator, ln Z, pull and remarks."""
    action = system.action
    exact, exact_error = system.reference or (log_partition(action), 0.0)
    samples, chains, measurements = round(4096 * scale), 64, max(10, round(64 * scale))

    def row(name: str, estimate: FreeEnergy, remark: str = "") -> tuple[str, str, str, str]:
        error = (estimate.error**2 + exact_error**2) ** 0.5
        pull = f"{(estimate.value - exact) / error:+.1f}"
        return name, str(estimate) + ("!" if estimate.error_is_bound else ""), pull, remark

    model = system.model()
    if system.training:
        settings = Settings(seed=1, **_shortened(system.training, training_scale))
        Trainer(ReverseKL(model, action), settings).run()
    with torch.no_grad():
        q = []
        for index in range(0, samples, 512):
            x, log_q = model.sample(min(512, samples - index), stream(5, index, "flow"))
            q.append(-action(x) - log_q)
        fields = list(system.target(measurements, chains))
        p = torch.stack([-action(x) - model.log_prob(x) for x in fields])
    if system.exact_draws is not None:
        p = p.reshape(-1)
    coverage = mode_coverage(torch.cat(q), p)
    bridge = bennett(-torch.cat(q), p)
    ess = f"reverse ESS {coverage.reverse_ess:.3f}, forward {coverage.forward_ess:.3f}"
    yield row("q", coverage.log_z_q, ess)
    yield row("p", coverage.log_z_p, f"share covered {coverage}")
    yield row("bridge q, p", bridge.estimate, f"overlap {bridge.overlap:.2f}")

    start, *actions = line_of_actions(action, system.protocol, system.steps)
    annealed = StochasticFlow(
        ExactStart(start), Process(actions, [system.kernels(a) for a in actions])
    )
    yield from driven(system, row, annealed, f"{system.steps} steps", samples, fields)

    if system.layer is not None:
        start, *actions = line_of_actions(action, system.protocol, system.layers)
        layers = [system.layer(a) for a in actions]
        stochastic = StochasticFlow(
            ExactStart(start), Process(actions, [system.kernels(a) for a in actions], layers)
        )
        training = {"steps": 100, "batch": 64, "learning_rate": 5e-3}
        settings = Settings(seed=2, **_shortened(training, training_scale))
        Trainer(MeanWork(stochastic), settings).run()
        note = f"{len(actions)} trained layers between updates"
        yield from driven(system, row, stochastic, note, samples, fields)

    line = line_of_actions(action, system.protocol, system.ensembles - 1)
    forward, reverse = [], []
    with torch.no_grad():
        for index, at in enumerate(line):
            up, down = [], []
            begin = MarkovStart(
                at,
                system.kernels(at, flip=not at.is_gauge),
                chains=chains,
                thermalization=300,
                separation=3,
            )
            for x in begin.configurations(2 * measurements, stream(9, index, "line")):
                own = at(x)
                if index + 1 < len(line):
                    up.append(line[index + 1](x) - own)
                if index:
                    down.append(line[index - 1](x) - own)
            forward += [torch.stack(up)] if up else []
            reverse += [torch.stack(down)] if down else []
    found = chain_of_ensembles(forward, reverse)
    constant = log_partition(line[0])
    smallest = min(bridge.overlap for bridge in found.bridges)
    note = f"{len(line)} ensembles, smallest overlap {smallest:.2f}"
    yield row("chain of ensembles", found.estimates[-1].shifted(constant), note)


def driven(
    system: System,
    row: Callable[..., tuple[str, str, str, str]],
    model: StochasticFlow,
    note: str,
    samples: int,
    fields: Sequence[Tensor],
) -> Iterator[tuple[str, str, str, str]]:
    kind = "stochastic flow" if system.layer and "layers" in note else "annealing"
    with torch.no_grad():
        forward = [
            model.evolve(min(1024, samples - i), stream(11, i, kind)).work
            for i in range(0, samples, 1024)
        ]
        reverse = [model.reverse(x, stream(13, i, kind)).work for i, x in enumerate(fields[::2])]
    ahead = torch.cat(forward)
    back = torch.stack(reverse)
    if system.exact_draws is not None:
        back = back.reshape(-1)
    bridge = bennett(ahead, back)
    dissipated = float(ahead.mean()) + bridge.estimate.value
    yield row(f"{kind}, Jarzynski", jarzynski(ahead), f"{note}, dissipates {dissipated:.2f}")
    yield row(f"{kind}, reverse", bridge.reverse)
    yield row(f"{kind}, Bennett", bridge.estimate, f"overlap {bridge.overlap:.2f}")


def _shortened(training: dict, scale: float) -> dict:
    return {**training, "steps": max(2, round(training["steps"] * min(1.0, scale)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--quick", action="store_true", help="a twentieth of samples and training")
    parser.add_argument("--only", nargs="+", choices=list(systems()), help="these systems")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale, training = (0.05, 0.05) if arguments.quick else (arguments.scale, 1.0)
    print("| system | exact or reference | estimator | ln Z | pull | remarks |")
    print("|---|---|---|---|---|---|")
    for name, system in systems().items():
        if arguments.only and name not in arguments.only:
            continue
        begin = time.perf_counter()
        value = log_partition(system.action)
        shown = f"{value:.6f}" if value is not None else "{}({})".format(*system.reference or ())
        for estimator, log_z, pull, remark in rows(system, scale, training):
            print(f"| {system.title} | {shown} | {estimator} | {log_z} | {pull} | {remark} |")
            sys.stdout.flush()
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
