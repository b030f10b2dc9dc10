"""Several ensembles combined: exact free energies and means of the free field, pulls of width 1."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.stats import chi2, norm

from flowmc.actions import FreeScalar
from flowmc.estimators.history import History, result_of
from flowmc.estimators.multi_ensemble import MultiEnsemble
from flowmc.observables import phi2

LATTICE = (4, 4)
MASSES = (0.8, 1.1, 1.5)


def chain(action, length, rho, rng):
    """Return an exactly stationary chain with autocorrelation rho^t."""
    draws = action.sample(length, rng).numpy()
    draws[1:] *= (1 - rho**2) ** 0.5
    return torch.from_numpy(lfilter([1.0], [1.0, -rho], draws, axis=0))


def combined(lengths, rng, rho=0.0, masses=MASSES, tau=None):
    actions = [FreeScalar(LATTICE, m2=m2) for m2 in masses]
    fields = torch.cat([chain(a, n, rho, rng) for a, n in zip(actions, lengths, strict=True)])
    histories = [History.regular(f"m2={m2}", n) for m2, n in zip(masses, lengths, strict=True)]
    energies = np.stack([action(fields).numpy() for action in actions])
    return MultiEnsemble(histories, energies, tau), fields


def exact_phi2(m2):
    return float((0.5 / FreeScalar(LATTICE, m2=m2).mode_action()).mean())


def test_two_ensembles_are_bennetts_acceptance_ratio():
    found, _ = combined((300, 200), torch.Generator().manual_seed(1), masses=MASSES[:2])
    u = found.energies[1] - found.energies[0]
    shift = np.log(300 / 200)

    def balance(df):
        forward = 1 / (1 + np.exp(shift + u[:300] - df))
        backward = 1 / (1 + np.exp(-shift - u[300:] + df))
        return forward.sum() - backward.sum()

    assert found.free_energies[1] == pytest.approx(brentq(balance, -50, 50, xtol=1e-13), abs=1e-9)
    ratio = found.log_partition_ratio(found.energies[1])
    assert ratio.value == pytest.approx(-found.free_energies[1], abs=1e-10)


def test_error_of_two_ensembles_is_that_of_the_jackknife():
    rng = torch.Generator().manual_seed(2)
    found, fields = combined((400, 400), rng, masses=MASSES[:2])
    action = FreeScalar(LATTICE, m2=0.95)
    values, energies = phi2(fields, action).numpy(), action(fields).numpy()
    results = [
        result_of("z", found.log_partition_ratio(energies)),
        result_of("o", found.mean(values, energies)[()]),
    ]
    variance = np.zeros(2)
    for half in (slice(0, 400), slice(400, 800)):
        without = []
        for bins in np.array_split(np.arange(800)[half], 40):
            keep = np.setdiff1d(np.arange(800), bins)
            lengths = [(keep < 400).sum(), (keep >= 400).sum()]
            histories = [History.regular(str(i), n) for i, n in enumerate(lengths)]
            part = MultiEnsemble(histories, found.energies[:, keep])
            without.append(
                [
                    part.log_partition_ratio(energies[keep]).value,
                    part.mean(values[keep], energies[keep])[()].value,
                ]
            )
        variance += 39 / 40 * np.sum((np.array(without) - np.mean(without, 0)) ** 2, 0)
    for result, error in zip(results, variance**0.5, strict=True):
        # 80 blocks: the error of this error is 8 %.
        assert result.error == pytest.approx(error, rel=0.4)


@pytest.mark.parametrize("tau", [pytest.param(None, marks=pytest.mark.slow), (2.0, 2.0, 2.0)])
def test_pulls_have_unit_width(tau):
    """Autocorrelated chains of unequal lengths; mean and width each at a false alarm of 1e-5."""
    rng = torch.Generator().manual_seed(3)
    target = FreeScalar(LATTICE, m2=1.3)
    exact_z = target.log_partition() - FreeScalar(LATTICE, m2=MASSES[0]).log_partition()
    pulls = {"log_z": [], "phi2": []}
    for _ in range(200):
        found, fields = combined((300, 200, 250), rng, 0.6, tau=tau)
        energies = target(fields).numpy()
        z = result_of("z", found.log_partition_ratio(energies))
        pulls["log_z"].append((z.value - exact_z) / z.error)
        o = result_of("o", found.mean(phi2(fields, target).numpy(), energies)[()])
        pulls["phi2"].append((o.value - exact_phi2(1.3)) / o.error)
    for name, of_name in pulls.items():
        of_name = np.array(of_name)
        assert 2 * norm.sf(abs(of_name.mean()) * 200**0.5) > 1e-5, (name, of_name.mean())
        total = np.sum(of_name**2)
        assert 2 * min(chi2.sf(total, 200), chi2.cdf(total, 200)) > 1e-5, (name, of_name.std())


def test_three_are_better_than_one():
    rng = torch.Generator().manual_seed(4)
    found, fields = combined((1000, 1000, 1000), rng)
    target = FreeScalar(LATTICE, m2=1.3)
    together = result_of("o", found.mean(phi2(fields, target).numpy(), target(fields).numpy())[()])
    from flowmc.estimators.reweighting import reweight

    first = fields[:1000]
    logs = (FreeScalar(LATTICE, m2=MASSES[0])(first) - target(first)).numpy()
    alone = reweight(found.histories[0], phi2(first, target).numpy(), logs)[()]
    assert together.error < 0.6 * result_of("alone", alone).error
    rows = found.overlap.sum(1)
    np.testing.assert_allclose(rows, 1, atol=1e-9)
    assert not found.warnings and not found.verdict(target(fields).numpy()).warnings


def test_ensembles_that_do_not_overlap_are_named():
    rng = torch.Generator().manual_seed(5)
    with pytest.raises(ValueError, match="overlap"):
        combined((50, 50), rng, masses=(0.01, 4000.0))
    found, _ = combined((60, 60), rng, masses=(0.1, 20.0))
    assert found.warnings and "add an ensemble between" in found.warnings[0]
    with pytest.raises(ValueError, match="need actions of the shape"):
        MultiEnsemble(found.histories, found.energies[:1])
    with pytest.raises(ValueError, match="different names"):
        MultiEnsemble([found.histories[0]] * 2, found.energies)
    times = [1.0, 3.0]
    listed = MultiEnsemble(found.histories, found.energies, times)
    array = MultiEnsemble(found.histories, found.energies, np.array(times))
    np.testing.assert_array_equal(listed.free_energies, array.free_energies)
    with pytest.raises(ValueError, match="as many finite tau_int"):
        MultiEnsemble(found.histories, found.energies, [1.0])


def test_links_of_a_chain_and_of_many_equal_ensembles():
    rng = torch.Generator().manual_seed(6)
    # Two pairs with a gap: no ensemble is alone, and still the halves hardly know each other.
    found, fields = combined((200,) * 4, rng, masses=(0.3, 0.35, 20.0, 22.0))
    weakest, *others = found.links
    assert weakest.groups == ((0, 1), (2, 3)) and weakest.nearest == (1, 2)
    assert weakest.is_weak and not any(link.is_weak for link in others)
    assert "'m2=0.35' and 'm2=20.0'" in found.warnings[0]
    # Bennett's error from the shared configurations; 200 draws know their error to 10 %.
    pair, _ = combined((400, 300), rng, masses=MASSES[:2])
    [link] = pair.links
    expected = (1 / link.shared - 1 / 400 - 1 / 300) ** 0.5
    ratio = result_of("z", pair.log_partition_ratio(pair.energies[1]))
    assert ratio.error == pytest.approx(expected, rel=0.3)
    # What depends on the gap: ln Z beyond it, a mean only with weight on both sides.
    for m2, (of_ratio, of_means) in ((0.32, (0, 0)), (21.0, (1, 0)), (2.5, (1, 1))):
        doubts = found.doubts(FreeScalar(LATTICE, m2=m2)(fields).numpy())
        assert (len(doubts[0]), len(doubts[1])) == (of_ratio, of_means), m2
    # Every pair of forty equal ensembles shares little, and nothing is wrong.
    same, _ = combined((20,) * 40, rng, masses=tuple(1.0 + 1e-9 * i for i in range(40)))
    assert not same.warnings and min(link.share for link in same.links) > 0.9


def test_one_ensemble_is_reweighting_and_tension_finds_a_wrong_action():
    from flowmc.estimators.reweighting import log_partition_ratio, reweight

    rng = torch.Generator().manual_seed(7)
    one, fields = combined((200,), rng, masses=(1.0,), tau=(1.5,))
    target = FreeScalar(LATTICE, m2=1.05)
    energies, values = target(fields).numpy(), phi2(fields, target).numpy()
    logs = one.energies[0] - energies
    pairs = [
        (one.mean(values, energies)[()], reweight(one.histories[0], values, logs)[()]),
        (one.log_partition_ratio(energies), log_partition_ratio(one.histories[0], logs)),
    ]
    for mine, plain in pairs:
        mine, plain = result_of("", mine), result_of("", plain)
        assert mine.value == pytest.approx(plain.value, rel=1e-10)
        assert mine.error == pytest.approx(plain.error, rel=1e-8)
    assert one.links == [] and one.warnings == []
    for planted, is_wrong in ((1.0, False), (1.5, True)):
        found, fields = combined((800, 800), rng, masses=(1.0, 1.1))
        wrong = np.stack([found.energies[0], found.energies[1]])
        wrong[0] += (planted - 1.0) * fields.square().sum((1, 2)).numpy()
        found = MultiEnsemble(found.histories, wrong)
        for k in range(2):
            tension = result_of("", found.tension(phi2(fields, target).numpy(), k)[()])
            # 6 standard deviations, from 800 draws: 1e-8.
            assert (abs(tension.value) > 6 * tension.error) == is_wrong, (k, tension)
