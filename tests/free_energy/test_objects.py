"""Free energies from a user's own action, flow, prior and kernel, without files.

Pulls of 5 standard deviations have a false-alarm rate of 6e-7 each.
"""

import math

import pytest
from springs import LATTICE, Redraw, Springs, Stretch, Unit, drawn

from flowmc.actions import FreeScalar
from flowmc.flows import FlowModel
from flowmc.flows.priors import EnsemblePrior
from flowmc.free_energy import Chains, along_line, by_process, from_flow
from flowmc.free_energy.config import read_free_energy_config
from flowmc.free_energy.measure import measure
from flowmc.free_energy.rows import Rows
from flowmc.kernels import HMC
from flowmc.nonequilibrium import ExactStart, Process, StochasticFlow, line_of_actions
from flowmc.registry import ConfigError
from flowmc.training.loop import Settings, Trainer
from flowmc.training.work import MeanWork

SIGMAS = 5.0


TARGET = Springs(LATTICE, 3.0)
CHAINS = Chains(
    kernels=lambda action: [Redraw(action)], count=8, measurements=60, thermalization=30
)


def assert_covers(outcome, exact):
    assert outcome.best.estimate.bound == "none", outcome.warnings
    for one in (named.estimate for named in outcome.estimates):
        # The error of a bound means nothing.
        if one.bound == "none":
            assert one.error > 0 and abs(one.value - exact) < SIGMAS * one.error, one


def model(scale=0.6):
    return FlowModel(Unit(), Stretch(math.log(scale)))


@pytest.mark.parametrize("target", [None, CHAINS, drawn(TARGET), list(drawn(TARGET))])
@pytest.mark.parametrize("samples", [0, 2000])
def test_from_a_flow(samples, target):
    if target is None and not samples:
        with pytest.raises(ConfigError, match="samples = 0 with configurations"):
            from_flow(TARGET, model(), samples=0)
        return
    found = from_flow(TARGET, model(), samples=samples, batch=700, target=target, seed=2)
    expected = {"q": samples > 0, "p": target is not None}
    expected = {"bridge": all(expected.values()), **expected}
    assert [named.key for named in found.estimates] == [k for k, here in expected.items() if here]
    assert_covers(found, TARGET.log_z)
    assert found.exact is None and not found.is_ratio


def test_a_density_without_our_classes():
    """The model is an object with four methods, of another scale than the target."""

    class Mine:
        def sample(self, n, rng):
            return model().sample(n, rng)

        def log_prob(self, x):
            return model().log_prob(x)

        def fingerprint(self):
            return "mine"

        def at(self, action):
            return self

    mine = from_flow(TARGET, Mine(), samples=500, target=drawn(TARGET), seed=2)
    ours = from_flow(TARGET, model(), samples=500, target=drawn(TARGET), seed=2)
    assert mine.best.estimate == ours.best.estimate


@pytest.mark.parametrize("from_chains", [True, False])
def test_along_a_line(from_chains):
    line = line_of_actions(TARGET, {"a": [1.0, 1.7, 3.0]})
    found = along_line(line, CHAINS if from_chains else [drawn(one) for one in line], seed=1)
    assert found.is_ratio
    for (couplings, estimate, overlap), action in zip(found.line, line[1:], strict=True):
        assert couplings == action.parameters and overlap > 0.3
        pull = (estimate.value - action.log_z + line[0].log_z) / estimate.error
        assert abs(pull) < SIGMAS
    assert_covers(found, TARGET.log_z - line[0].log_z)


def process(layers=None):
    line = line_of_actions(TARGET, {"a": [1.0, 3.0]}, steps=4)[1:]
    return Process(line, [[Redraw(action)] for action in line], layers)


@pytest.mark.parametrize("from_chains", [True, False])
def test_annealing(from_chains):
    begin = Springs(LATTICE, 1.0)
    start = {"start": CHAINS, "start_action": begin} if from_chains else {"start": Unit()}
    found = by_process(process(), **start, samples=1000, batch=300, target=CHAINS, seed=4)
    assert [one.key for one in found.estimates] == ["bridge", "jarzynski", "jarzynski_reverse"]
    assert found.is_ratio == from_chains
    assert_covers(found, TARGET.log_z - (begin.log_z if from_chains else 0.0))
    assert found.process.dissipated > 0 and found.process.dissipated_reverse > 0


def test_a_stochastic_flow_that_is_trained_first():
    """Of the best scales of all layers none dissipates anything: e^s = sqrt(a_{n-1} / a_n)."""
    layers = [Stretch(0.0) for _ in range(4)]
    whole = process(layers)
    plain = by_process(process(), Unit(), samples=300, seed=1).process.dissipated
    settings = Settings(steps=60, batch=32, learning_rate=0.05, seed=1)
    Trainer(MeanWork(StochasticFlow(Unit(), whole)), settings).run()
    found = by_process(whole, Unit(), samples=300, target=drawn(TARGET), seed=1)
    assert found.process.dissipated < 0.2 * plain
    assert_covers(found, TARGET.log_z)


def test_the_command_does_nothing_else(tmp_path):
    target = FreeScalar([4, 4], m2=0.5)
    keys = {"trajectory": 1.0, "steps": 3}
    chains = {"count": 4, "measurements": 12, "thermalization": 10, "separation": 2}
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": 0.5},
        "free_energy": {"method": "annealing", "seed": 3, "samples": 50, "batch": 20},
        "protocol": {"m2": [2.0, 0.5], "steps": 3},
        "update": [{"kernel": "hmc", **keys}],
        "chains": chains,
    }
    start, *line = line_of_actions(target, {"m2": [2.0, 0.5]}, 3)
    found = by_process(
        Process(line, [[HMC(action, **keys)] for action in line]),
        ExactStart(start),
        samples=50,
        batch=20,
        target=Chains(kernels=[HMC(target, **keys)], **chains),
        seed=3,
    )
    configured = measure(read_free_energy_config(tables, tmp_path))
    assert found.best.estimate == configured.best.estimate and found.exact == configured.exact
    assert (found.process.step_work == configured.process.step_work).all()


def test_a_measurement_that_was_interrupted_goes_on():
    rows = Rows()

    class Stopped(Rows):
        def look(self):
            if len(self.rows("target")) == 20:
                raise KeyboardInterrupt

    stopped = Stopped()
    keys = {"samples": 100, "target": CHAINS, "seed": 7}
    with pytest.raises(KeyboardInterrupt):
        from_flow(TARGET, model(), rows=stopped, **keys)
    rows.__dict__.update(stopped.__dict__)
    whole = from_flow(TARGET, model(), **keys)
    assert from_flow(TARGET, model(), rows=rows, **keys).best.estimate == whole.best.estimate


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: along_line(
                line_of_actions(TARGET, {"a": [1.0, 3.0]}),
                Chains(kernels=[Redraw(TARGET)], count=2, measurements=4),
            ),
            "Redraw samples .* give kernels as a function",
        ),
        (lambda: along_line([TARGET], CHAINS), "at least two actions"),
        (lambda: along_line([TARGET, TARGET], [drawn(TARGET)]), "one ensemble for each"),
        (
            lambda: from_flow(TARGET, model(), target=drawn(TARGET)[:, 0]),
            r"\(measurements, chains, ...\)",
        ),
        (lambda: from_flow(TARGET, model(), target=drawn(TARGET) / 0), "is not finite"),
        (lambda: from_flow(TARGET, model(), target=[]), "at least one measurement"),
        (lambda: from_flow(TARGET, model(), samples=1), "at least 2"),
        (lambda: by_process(process(), CHAINS), "give start_action"),
        (lambda: by_process(process(), Unit(), samples=1), "at least 2"),
        (
            lambda: by_process(process(), EnsemblePrior(drawn(TARGET)[0], TARGET)),
            "up to a constant only",
        ),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call()
