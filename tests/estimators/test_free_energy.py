"""Estimators of ln Z on Gaussians, where everything is known in closed form."""

import math

import numpy as np
import pytest
from scipy import stats

from flowmc.estimators.free_energy import (
    bennett,
    chain_of_ensembles,
    compare,
    jarzynski,
    mode_coverage,
    p_estimator,
    q_estimator,
)

LOG_Z = 3.7


def rng(seed):
    return np.random.default_rng([20261127, seed])


def log_weight(x, log_z=LOG_Z, width=1.1):
    """ln w = -S - ln q with q = N(0, width) and target N(0, 1) times exp(log_z)."""
    target = -0.5 * x**2 - 0.5 * math.log(2 * math.pi) + log_z
    return target + 0.5 * (x / width) ** 2 + math.log(width) + 0.5 * math.log(2 * math.pi)


def chains(measurements, count, generator, rho=0.8):
    """Stationary AR(1) chains of N(0, 1) with tau_int = (1 + rho) / (1 - rho) / 2."""
    noise = generator.standard_normal((measurements, count))
    x = np.empty_like(noise)
    x[0] = noise[0]
    for t in range(1, measurements):
        x[t] = rho * x[t - 1] + math.sqrt(1 - rho**2) * noise[t]
    return x


def pulls(repetitions, one):
    estimates = [one(rng(seed)) for seed in range(repetitions)]
    return np.array([(e.value - e.bias - LOG_Z) / e.error for e in estimates])


def assert_standard_normal(values):
    """chi^2 of the pulls within its two-sided 1e-6 interval, and the mean within 5 sigma."""
    n = len(values)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], n)
    assert low < (values**2).sum() < high, f"width {math.sqrt((values**2).mean()):.3f}"
    assert abs(values.mean()) < 5 / math.sqrt(n)


ONE_RUN = {
    "q": lambda g: q_estimator(log_weight(1.1 * g.standard_normal(400))),
    "p": lambda g: p_estimator(log_weight(g.standard_normal(400))),
    "p from chains": lambda g: p_estimator(log_weight(chains(600, 4, g))),
    "bridge": lambda g: (
        bennett(
            -log_weight(1.1 * g.standard_normal(300)), log_weight(g.standard_normal(500))
        ).estimate
    ),
    "bridge with chains": lambda g: (
        bennett(-log_weight(1.1 * g.standard_normal(300)), log_weight(chains(600, 4, g))).estimate
    ),
}


# Both directions and the bridge, with and without chains; all five in the slow tests.
FAST = ("q", "bridge with chains")
assert set(FAST) <= set(ONE_RUN)


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ONE_RUN],
)
def test_pulls_have_unit_width(name):
    assert_standard_normal(pulls(200, ONE_RUN[name]))


def test_pulls_see_an_ignored_autocorrelation():
    """The planted error: chains of tau_int = 4.5 taken for independent draws."""
    values = pulls(200, lambda g: p_estimator(log_weight(chains(600, 4, g)).reshape(-1)))
    with pytest.raises(AssertionError):
        assert_standard_normal(values)


def test_formulas_of_bias_and_variance():
    logs = log_weight(1.1 * rng(1).standard_normal(5000))
    weights = np.exp(logs)
    relative = weights.var() / weights.mean() ** 2 / len(logs)
    for estimate, sign in ((q_estimator(logs), -1), (p_estimator(-logs), 1)):
        assert estimate.error**2 == pytest.approx(relative, rel=2e-3)
        assert estimate.bias == pytest.approx(sign * relative / 2, rel=2e-3)
    # The bias is there: s = 1 from 8 draws each, 20,000 times; ln w ~ N(0, 1), ln <w> = 1/2.
    logs = rng(2).standard_normal((20_000, 8))
    means = np.log(np.exp(logs).mean(1)) - 0.5
    jackknife = [q_estimator(row).bias for row in logs[:2000]]
    # (e - 1) / 16 = 0.107 to leading order in 1/N.
    assert abs(means.mean() + (math.e - 1) / 16) < 0.03
    assert abs(np.mean(jackknife) - means.mean()) < 0.03


def test_jarzynski_and_crooks_of_gaussian_work():
    """W_F ~ N(dF + s^2/2, s), W_R ~ N(-dF + s^2/2, s) fulfil Crooks' relation."""
    s, shift = 1.5, -LOG_Z
    generator = rng(3)
    forward = shift + s * s / 2 + s * generator.standard_normal(4000)
    reverse = -shift + s * s / 2 + s * generator.standard_normal(4000)
    bridge = bennett(forward, reverse)
    for estimate in (jarzynski(forward), bridge.estimate, bridge.forward, bridge.reverse):
        assert abs(estimate.value - LOG_Z) < 5 * estimate.error
    assert bridge.estimate.error < 0.7 * bridge.forward.error
    # Bennett's own formula, from his equation (10a) with f the Fermi functions.
    shift = -bridge.estimate.value
    left = 1 / (1 + np.exp(forward - shift))
    right = 1 / (1 + np.exp(reverse + shift))
    formula = sum(((f**2).mean() / f.mean() ** 2 - 1) / len(f) for f in (left, right))
    assert bridge.estimate.error == pytest.approx(math.sqrt(formula), rel=0.02)
    # A sign flipped in the reverse work: the two one-sided estimates contradict each other.
    wrong = bennett(forward, -reverse)
    assert abs(wrong.estimate.value - LOG_Z) > 5 * wrong.estimate.error


def test_equal_ends_overlap_fully_and_distant_ends_refuse():
    same = bennett(np.zeros(100), np.zeros(70))
    assert same.overlap == pytest.approx(1.0)
    assert same.estimate.value == pytest.approx(0.0, abs=1e-12)
    far = bennett(30 + rng(4).standard_normal(500), 25 + rng(5).standard_normal(500))
    assert far.estimate.bound == "both"
    assert str(far.estimate).startswith("~ ")
    assert "overlap" in far.estimate.warnings[-1]


def harmonic_chain(generator, measurements=400, count=4):
    """Chains of N(0, 1/k) along k = 1, 1.5, 2.2, 3: ln Z_k = -1/2 ln k."""
    stiffness = [1.0, 1.5, 2.2, 3.0]
    samples = [chains(measurements, count, generator) / math.sqrt(k) for k in stiffness]
    forward = [
        0.5 * (b - a) * x**2 for a, b, x in zip(stiffness, stiffness[1:], samples, strict=False)
    ]
    reverse = [
        0.5 * (a - b) * x**2 for a, b, x in zip(stiffness, stiffness[1:], samples[1:], strict=False)
    ]
    return chain_of_ensembles(forward, reverse)


@pytest.mark.slow
def test_chain_of_ensembles_counts_shared_samples_once():
    truths = [-0.5 * math.log(k) for k in (1.5, 2.2, 3.0)]
    runs = [harmonic_chain(rng(seed)) for seed in range(80)]
    for index, truth in enumerate(truths):
        values = [run.estimates[index] for run in runs]
        assert_standard_normal(np.array([(v.value - truth) / v.error for v in values]))
    # Adding the errors of the bridges in quadrature, as if they shared nothing, is another number.
    naive = math.sqrt(sum(b.estimate.error**2 for b in runs[0].bridges))
    spread = np.std([run.estimates[-1].value for run in runs])
    honest = np.mean([run.estimates[-1].error for run in runs])
    assert abs(honest / spread - 1) < 0.25
    assert abs(naive / honest - 1) > 0.1


def two_wells(generator, n, covered):
    """Target: equal wells at +-5 of width 1 and weight exp(LOG_Z) in all."""

    def log_target(x):
        wells = [-0.5 * (x - c) ** 2 for c in (-5.0, 5.0)]
        return np.logaddexp(*wells) - math.log(2) - 0.5 * math.log(2 * math.pi) + LOG_Z

    def log_q(x):
        shift = np.logaddexp(*[-0.5 * ((x - c) / 1.1) ** 2 for c in (-5.0, 5.0)]) - math.log(2)
        one = -0.5 * ((x - 5.0) / 1.1) ** 2
        return (shift if covered else one) - math.log(1.1) - 0.5 * math.log(2 * math.pi)

    signs = np.where(generator.random(n) < 0.5, -1, 1)
    p = 5.0 * signs + generator.standard_normal(n)
    signs = np.where(generator.random(n) < 0.5, -1, 1) if covered else 1
    q = 5.0 * signs + 1.1 * generator.standard_normal(n)
    return tuple(log_target(x) - log_q(x) for x in (q, p))


def test_mode_dropping():
    kept = mode_coverage(*two_wells(rng(6), 20_000, covered=True))
    assert abs(kept.share - 1) < 5 * kept.error < 0.05
    assert kept.log_z_q.bound == kept.log_z_p.bound == "none" and not kept.warnings

    lost = mode_coverage(*two_wells(rng(7), 20_000, covered=False))
    assert abs(lost.share - 0.5) < 5 * lost.error
    assert lost.error < 0.02
    assert lost.reverse_ess > 0.95
    assert lost.forward_ess < 0.1
    assert lost.log_z_q.bound == "lower"
    assert lost.log_z_q.value == pytest.approx(LOG_Z - math.log(2), abs=0.01)
    assert "misses 50% of the target" in " ".join(lost.warnings)


def test_each_end_knows_the_tail_of_the_other():
    """q broader than p: q/p has a tail of index 0.77 that samples of p hardly see."""
    found = 0
    for seed in range(20):
        generator = rng(100 + seed)
        width = 2.1  # index 1 - 1/width^2
        q = log_weight(width * generator.standard_normal(1000), width=width)
        p = log_weight(generator.standard_normal(1000), width=width)
        coverage = mode_coverage(q, p)
        bridge = bennett(-q, p)
        assert coverage.log_z_p.bound == bridge.reverse.bound == "upper"
        found += any("have not been" in text for text in coverage.log_z_p.warnings)
        # What uses both ends is right, and says so.
        assert abs(bridge.estimate.value - LOG_Z) < 5 * bridge.estimate.error
        assert bridge.estimate.bound == bridge.forward.bound == "none"
    assert found == 20
    mild = mode_coverage(
        log_weight(1.1 * rng(1).standard_normal(1000)), log_weight(rng(2).standard_normal(1000))
    )
    assert not mild.warnings


def test_target_samples_of_one_mode_are_found_the_wrong_way_round():
    covering, _ = two_wells(rng(8), 20_000, covered=True)
    _, both = two_wells(rng(9), 20_000, covered=True)
    # Chains that saw weights of half the truth: 1/w twice as large.
    q, p = compare(q_estimator(covering), p_estimator(both - math.log(2)))
    assert q.bound == p.bound == "both"
    assert "not equilibrated" in q.warnings[-1]


def test_refusals_are_named_and_mark_a_bound():
    few = q_estimator(3 * rng(10).standard_normal(50))
    assert few.bound == "lower" and str(few).startswith(">= ")
    assert any("effective configurations" in text for text in few.warnings)
    assert any("of the total weight" in text for text in few.warnings)
    heavy = q_estimator(-1.2 * np.log(rng(11).random(20_000)))
    assert heavy.bound == "lower"
    assert any("Pareto k" in text for text in heavy.warnings)
    assert str(p_estimator(3 * rng(12).standard_normal(40))).startswith("<= ")
    frozen = p_estimator(log_weight(chains(60, 2, rng(13), rho=0.995)))
    assert frozen.error_is_bound and frozen.warnings


@pytest.mark.parametrize(
    ("bad", "said"),
    [(np.zeros((2, 2, 2)), "measurements"), ([math.nan, 0.0], "NaN"), ([], "measurements")],
)
def test_unusable_input(bad, said):
    with pytest.raises(ValueError, match=said):
        q_estimator(bad)
    with pytest.raises(ValueError, match="one list of works"):
        chain_of_ensembles([[0.0]], [])
    with pytest.raises(ValueError, match="both directions"):
        bennett([math.inf, math.inf], [0.0, 1.0])
