"""What a trajectory of length 1 is in other codes: docs/trajectory.md, against a leapfrog in numpy.

Each code is its kinetic energy K(P), in its own words, and the equation U' = P U, from which the
equation of P follows: P' = -D F with D = -tr P^2 / K and F = sum_a T_a d_a S.
"""

import re

import numpy as np
import pytest
import torch

from flowmc.actions import Wilson
from flowmc.groups import SUN
from flowmc.kernels.integrators import trajectory
from flowmc.random import stream
from flowmc.splitting import INTEGRATORS
from tests.processes import ROOT

LATTICE, BETA = (2, 3, 2, 2), 5.5
GELL_MANN = np.zeros((8, 3, 3), complex)
for _number, (_row, _column) in ((0, (0, 1)), (3, (0, 2)), (5, (1, 2))):
    GELL_MANN[_number, _row, _column] = GELL_MANN[_number, _column, _row] = 1
    GELL_MANN[_number + 1, _row, _column], GELL_MANN[_number + 1, _column, _row] = -1j, 1j
# The diagonal ones have the numbers 3 and 8.
GELL_MANN = np.insert(GELL_MANN[[0, 1, 3, 4, 5, 6]], 2, np.diag([1, -1, 0]), 0)
GELL_MANN = np.append(GELL_MANN, [np.diag([1, 1, -2]) / np.sqrt(3)], 0)


def squares(p):
    """Return -sum tr P^2 of antihermitian matrices."""
    return float((np.abs(p) ** 2).sum())


def milc(p):
    """Half the squares of the diagonal, and those above it: anti_hermitmat stores no others."""
    off = sum((np.abs(p[..., i, j]) ** 2).sum() for i, j in ((0, 1), (0, 2), (1, 2)))
    return float(0.5 * (np.diagonal(p, axis1=-2, axis2=-1).imag ** 2).sum() + off)


def tmlqcd(p):
    """Half the squares of the components d in P = i sum_a d_a lambda_a."""
    d = np.einsum("aij,...ji->...a", GELL_MANN, p).imag / 2
    return float(0.5 * (d**2).sum())


KINETIC = {
    "flowmc": (squares, 1),
    "openQCD": (squares, 1),
    "Chroma": (squares, 1),
    "Grid": (lambda p: squares(p) / 2, np.sqrt(2)),
    "MILC": (milc, np.sqrt(2)),
    "tmLQCD": (tmlqcd, 2),
}


def exponential(p):
    values, vectors = np.linalg.eigh(-1j * p)
    phases = np.exp(1j * values)
    return (vectors * phases[..., None, :]) @ vectors.conj().swapaxes(-1, -2)


def force(u):
    """Return F of the Wilson action: (beta / 2N) times the traceless antihermitian part of U V."""

    def ahead(one, mu):
        return np.roll(one, -1, mu)

    def behind(one, mu):
        return np.roll(one, 1, mu)

    def dagger(one):
        return one.conj().swapaxes(-1, -2)

    found = np.empty_like(u)
    for mu in range(4):
        staples = np.zeros_like(u[mu])
        for nu in {*range(4)} - {mu}:
            corner = ahead(u[nu], mu)
            staples += corner @ dagger(ahead(u[mu], nu)) @ dagger(u[nu])
            staples += behind(dagger(corner) @ dagger(u[mu]) @ u[nu], nu)
        loop = u[mu] @ staples
        part = (loop - dagger(loop)) / 2
        trace = np.trace(part, axis1=-2, axis2=-1)[..., None, None] / 3
        found[mu] = BETA / 6 * (part - trace * np.eye(3))
    return found


def leapfrog(u, p, denominator, length, steps):
    """Return links and momenta after a trajectory of another code."""
    step = length / steps
    p = p - step / 2 * denominator * force(u)
    for number in range(steps):
        u = exponential(step * p) @ u
        p = p - (step if number < steps - 1 else step / 2) * denominator * force(u)
    return u, p


@pytest.mark.parametrize("code", KINETIC)
def test_a_trajectory_of_another_code_is_one_of_the_length_that_the_table_says(code):
    """The same links to rounding; those of any other factor in the table are others."""
    kinetic, factor = KINETIC[code]
    action = Wilson("SU(3)", LATTICE, beta=BETA)
    u = action.hot(1, stream(1, 0, "links"))
    own = SUN(3).draw_algebra(u, stream(2, 0, "momenta"))
    # Momenta with the density exp(-K) of the code.
    p = factor * own.numpy()[0]
    denominator = squares(p) / kinetic(p)
    assert kinetic(p) == pytest.approx(float(SUN(3).kinetic_energy(own)[0]), rel=1e-12)
    ended, _ = leapfrog(u.numpy()[0], p, denominator, length=0.5, steps=8)
    expected = {}
    for other in {1.0, np.sqrt(2), 2.0}:
        step = torch.tensor([0.5 * other / 8])
        found, _ = trajectory(action, action.group, u, own, INTEGRATORS["leapfrog"], step, 8)
        expected[other] = float(np.abs(found.numpy()[0] - ended).max())
    assert expected.pop(float(factor)) < 1e-11
    assert min(expected.values()) > 0.01


def test_the_table_of_the_document_is_what_is_tested():
    text = (ROOT / "docs/trajectory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", text, re.M)
    factors = {"1": 1.0, "√2": np.sqrt(2), "2": 2.0}
    found = {code: factors[factor] for code, factor in rows if factor in factors}
    assert found == {code: float(factor) for code, (_, factor) in KINETIC.items()}
