"""Correlated ensembles of a user's own action, flow, observable and vector field, without files.

For S = a/2 sum phi^2 the mean of phi^2 is 1/a, its derivative by a is -1/a^2, and ln Z = -V/2 ln a
up to a constant.  Pulls of 5 standard deviations have a false-alarm rate of 6e-7 each.
"""

import math

import numpy as np
import pytest
import torch
from springs import LATTICE, Redraw, Springs, Stretch, drawn

import flowmc
from flowmc.actions import FreeScalar
from flowmc.config.toml_text import toml_text
from flowmc.correlate import Context, Difference, Linear, Target, combine, correlate
from flowmc.correlate.config import read_correlate_config
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.session import Session
from flowmc.ensembles.stored import StoredEnsemble
from flowmc.flows import Identity
from flowmc.io import write_field
from flowmc.lattice import sum_over_sites
from flowmc.registry import ConfigError
from flowmc.vector_fields import VectorFields

SIGMAS = 5.0
HERE, THERE = Springs(LATTICE, 2.0), Springs(LATTICE, 2.6)
VOLUME = HERE.volume


def square(field, action):
    return sum_over_sites(field**2) / VOLUME


def energy(field, action):
    """Depends on the coupling itself: the mean is 1/2."""
    return action(field) / VOLUME


class Dilation(VectorFields):
    """v = phi: with the coefficient -1/2a it moves exact draws to exact draws."""

    names = ("dilation",)

    def velocities(self, field):
        return [field]

    def divergences(self, field, rng):
        return torch.full((len(field), 1), float(VOLUME), dtype=torch.float64)


def context(observables=(square, energy)):
    return Context.of(HERE, observables)


def to_there():
    """The exact flow to the other theory, whose weights are all equal."""
    return Stretch(0.5 * math.log(2.0 / 2.6))


def assert_is(result, exact, floor=1e-12):
    assert abs(result.value - exact) < SIGMAS * result.error + floor, result


def test_an_ensemble_at_another_coupling():
    here = context()
    targets = [Target("plain", here, THERE, Identity()), Target("flow", here, THERE, to_there())]
    found = correlate(drawn(HERE), here, targets)
    assert_is(found["source"].results["square"], 1 / 2.0)
    ratio = -VOLUME / 2 * math.log(2.6 / 2.0)
    for label in ("plain", "flow"):
        results = found[label].results
        assert_is(results["square"], 1 / 2.6)
        assert_is(results["energy"], 1 / 2)
        assert_is(results["ln Z_b / Z_a"], ratio, 1e-9)
        assert_is(results["change of square"], 1 / 2.6 - 1 / 2.0)
    weights = [found[label].weights[label] for label in ("plain", "flow")]
    assert weights[0].ess < 0.9 < 1 - 1e-9 < weights[1].ess
    change = next(e for e in found["flow"].entries if e.observable == "change of square")
    assert change.against["gain_reweighting"].value > 1
    assert len(found.series["ensemble"].history) == 480


def test_derivatives_by_steps_and_at_zero_step():
    here = context()
    flows = [[Stretch(0.5 * math.log(2 / (2 + s))) for s in (0.1, -0.1)]]
    measurements = [
        Difference("difference", here, coupling="a", steps=[0.1], flows=flows),
        Linear("linear", here, coupling="a", fields=[Dilation()]),
        Linear("plain", here, coupling="a", fields=[]),
    ]
    found = correlate(drawn(HERE), here, measurements)
    step = (1 / 2.1 - 1 / 1.9) / 0.2
    for label, exact in (("difference", step), ("linear", -1 / 4), ("plain", -1 / 4)):
        assert_is(found[label].results["square"], exact)
        assert_is(found[label].results["energy"], 0.0, 1e-9)
    # The exact field takes all noise out of the bracket; what is left is that of the mean itself.
    errors = {label: found[label].results["square"].error for label in ("linear", "plain")}
    assert errors["linear"] < 0.5 * errors["plain"]


def test_chains_lists_and_streams_are_the_same_ensemble():
    fields = drawn(HERE, 30, 4)

    class Stream:
        """Read as often as wanted, one measurement in memory."""

        def __iter__(self):
            return iter(fields)

    results = []
    for given in (fields, list(fields), Stream()):
        here = context()
        found = correlate(given, here, [Linear("linear", here, coupling="a", fields=[Dilation()])])
        results.append(found["linear"].results["square"].estimate)
        assert list(found.series["ensemble"].history.numbers) == ["r0", "r1", "r2", "r3"]
    assert results[0] == results[1] == results[2]
    series = found.series["ensemble"].columns["observables/square"].reshape(4, 30)
    assert np.array_equal(series.T, (fields**2).flatten(2).mean(2).numpy())


def test_autocorrelation_of_chains_is_in_the_errors():
    """Redraw keeps every other site: the mean square of a site has tau_int = 1.5."""
    samples = flowmc.sample(Redraw(HERE), drawn(HERE, 1, 16)[0], 1, observables=[square], seed=3)
    fields = []
    for _ in range(200):
        samples = samples.more(1)
        fields.append(samples.field)
    result = correlate(fields, context([square]))["source"].results["square"]
    assert result.tau_int == pytest.approx(1.5, abs=SIGMAS * result.tau_int_error)
    assert_is(result, 1 / 2.0)


def test_the_command_does_nothing_else(tmp_path):
    action = FreeScalar([4, 4], m2=0.5)
    fields = action.sample(60, torch.Generator().manual_seed(1))
    for number, field in enumerate(fields, start=1):
        write_field(tmp_path / f"free.{number}.h5", field, action, format="hdf5")
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": 0.5},
        "ensemble": {"files": "free.*.h5"},
        "measure": {"observables": ["action", "correlator"]},
        "target": [{"m2": 0.55}],
        "derivative": [{"method": "linear", "coupling": "m2", "label": "slope"}],
    }
    (tmp_path / "c.toml").write_text(toml_text(tables))
    session = Session(read_correlate_config(tables, tmp_path), CorrelateDirectory(tmp_path / "out"))
    configured = {one.label: one for one in session.analyse(session.measure())}
    here = Context.of(action, ["action", "correlator"])
    measurements = [
        Target("m2=0.55", here, action.at(m2=0.55), Identity()),
        Linear("slope", here, coupling="m2"),
    ]
    files = StoredEnsemble.of_files([str(tmp_path / "free.*.h5")])
    for given in (fields[:, None], files):
        found = correlate(given, here, measurements)
        for section in found.sections:
            ours = {name: one.estimate for name, one in section.results.items()}
            theirs = {name: one.estimate for name, one in configured[section.label].results.items()}
            assert ours == theirs


def test_ensembles_combined():
    theories = {f"a={a}": Springs(LATTICE, a) for a in (1.6, 2.0, 2.6)}
    ensembles = {
        label: (action, drawn(action, seed=k)) for k, (label, action) in enumerate(theories.items())
    }
    found = combine(ensembles, {"between": Springs(LATTICE, 2.3)}, [square, energy])
    assert [one.label for one in found.sections] == [
        "combination",
        *(f"ensemble {label}" for label in theories),
        "between",
    ]
    results = found["between"].results
    assert_is(results["square"], 1 / 2.3)
    assert_is(results["energy"], 1 / 2)
    assert_is(results["ln Z / Z(a=1.6)"], -VOLUME / 2 * math.log(2.3 / 1.6))
    # One of the others is not what it says.
    ensembles["a=2.0"] = (Springs(LATTICE, 2.0), drawn(Springs(LATTICE, 3.2)))
    assert any("contradict each other" in text for text in combine(ensembles).warnings)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: correlate(drawn(HERE)[:, 0], c), r"\(measurements, chains, ...\)"),
        (lambda c: correlate([drawn(HERE)[0], drawn(HERE)[0, :3]], c), "has 3 chains"),
        (lambda c: correlate(drawn(HERE) / 0, c), "is not finite"),
        (lambda c: correlate([], c), "there is no configuration"),
        (
            lambda c: correlate(iter(drawn(HERE)), c, [Linear("l", c, coupling="a", fields=[])]),
            "not an iterator",
        ),
        (
            lambda c: correlate(drawn(HERE), context(), [Target("t", c, THERE, to_there())]),
            "another context",
        ),
        (
            lambda c: correlate(drawn(HERE), c, [Target("t", c, THERE, to_there())] * 2),
            "two measurements are called 't'",
        ),
        (
            lambda c: Difference("d", c, coupling="a", steps=[0.1], flows=[["mine", "mine"]]),
            "flow = 'mine': should be a flowmc.flows.Flow",
        ),
        (lambda c: Context.of(HERE, ["nothing"]), "nothing"),
        (lambda c: Context.of(HERE, [square, square]), "square is listed twice"),
        (lambda c: Context.of(HERE, [square], masses={"correlator": (1, 2)}), "'correlator'"),
        (lambda c: combine({}), "at least one ensemble"),
        (lambda c: combine({"a": (HERE, drawn(HERE))}, {"a": THERE}), "labels that differ"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call(context())
