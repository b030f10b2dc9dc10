r"""Formulas of U(1), SU(2) and SU(3) on lanes: products, projections, transport, exponential.

An element is a list of real components, and its length tells the group:

=======  ========================================================  ==========================
group    link                                                      algebra
=======  ========================================================  ==========================
U(1)     the angle                                                 the real number
SU(2)    Re a, Im a, Re b, Im b of [[a, b], [-b*, a*]]             Im a, Re b, Im b
SU(3)    (row, column, re/im), 18 numbers                          Im of the diagonal, then Re
                                                                   and Im of 01, 02, 12
=======  ========================================================  ==========================

The exponential is evaluated in the algebra of polynomials in Q modulo its characteristic equation
(Cayley-Hamilton): for SU(3), :math:`Q^3 = -t\,Q + i e` with :math:`t = \tfrac12 \sum |Q_{ij}|^2`
and :math:`i e = \det Q`, so a Taylor polynomial of any degree collapses to
:math:`f_0 + f_1 Q + f_2 Q^2` by a recursion on its coefficients.  Unlike closed forms in the
eigenvalues (C. Morningstar and M. Peardon, hep-lat/0311018) it has no special case where they
coincide.  Large Q are scaled by powers of two and the polynomial is squared.
"""

from __future__ import annotations

import math
from typing import Any

from flowmc.native.lanes import fma, round_to_integer, traced, where

__all__ = [
    "COMPONENTS",
    "NORM_LIMIT",
    "PROJECTION_LIMIT",
    "add",
    "add_multiple",
    "add_signed",
    "exponential_coefficients",
    "halve_large",
    "head",
    "invariants",
    "kick",
    "last",
    "move",
    "multiply",
    "multiply_inverse",
    "plaquette_algebra",
    "plaquette_trace",
    "projected",
    "scaled",
    "square_where_halved",
    "transport",
]

# (link, algebra) components by N, with 1 for U(1).
COMPONENTS = {1: (1, 1), 2: (4, 3), 3: (18, 9)}

# The largest eigenvalue is at most 2 sqrt(t / 3) <= 1.25 for SU(3) and sqrt(t) < 1.09 for SU(2),
# where the first term that the polynomial of degree 19 leaves out is below 4e-17.
NORM_LIMIT = 0.75 * 1.25**2
_DEGREE = 19

# Newton leaves the fourth power of the distance (1e-4), and the series the 17th of |det - 1| (0.1).
PROJECTION_LIMIT = 1e-8

# pi in two parts, the first with few enough digits that small multiples of it are exact.
_PI_HIGH = 3.1415927410125732421875
_PI_LOW = -8.742278000372477e-08

Lanes = list[Any]


def _complex_product(a: tuple, b: tuple, total: tuple | None = None) -> tuple:
    if total is None:
        return fma(a[0], b[0], -(a[1] * b[1])), fma(a[0], b[1], a[1] * b[0])
    return (
        fma(a[0], b[0], fma(-a[1], b[1], total[0])),
        fma(a[0], b[1], fma(a[1], b[0], total[1])),
    )


def _matrix(u: Lanes) -> list[list[tuple]]:
    return [[(u[6 * i + 2 * j], u[6 * i + 2 * j + 1]) for j in range(3)] for i in range(3)]


def _adjoint(matrix: list[list[tuple]]) -> list[list[tuple]]:
    return [[(matrix[j][i][0], -matrix[j][i][1]) for j in range(3)] for i in range(3)]


def _entry(a: list[list[tuple]], b: list[list[tuple]], i: int, j: int) -> tuple:
    total = _complex_product(a[i][0], b[0][j])
    total = _complex_product(a[i][1], b[1][j], total)
    return _complex_product(a[i][2], b[2][j], total)


def _matrix_product(a: list[list[tuple]], b: list[list[tuple]]) -> Lanes:
    return [part for i in range(3) for j in range(3) for part in _entry(a, b, i, j)]


def _quaternion_product(a: Lanes, b: Lanes) -> Lanes:
    (a1, b1), (a2, b2) = ((a[0], a[1]), (a[2], a[3])), ((b[0], b[1]), (b[2], b[3]))
    first = _complex_product((-b1[0], -b1[1]), (b2[0], -b2[1]), _complex_product(a1, a2))
    second = _complex_product(b1, (a2[0], -a2[1]), _complex_product(a1, b2))
    return [*first, *second]


def _quaternion_adjoint(a: Lanes) -> Lanes:
    return [a[0], -a[1], -a[2], -a[3]]


def _algebra_matrix(q: Lanes) -> list[list[tuple]]:
    """Return a traceless antihermitian 3x3 matrix; the real diagonal is a float 0."""
    return [
        [(0.0, q[0]), (q[3], q[4]), (q[5], q[6])],
        [(-q[3], q[4]), (0.0, q[1]), (q[7], q[8])],
        [(-q[5], q[6]), (-q[7], q[8]), (0.0, q[2])],
    ]


@traced
def multiply(a: Lanes, b: Lanes) -> Lanes:
    """Return the product of two group elements."""
    if len(a) == 1:
        return [a[0] + b[0]]
    if len(a) == 4:
        return _quaternion_product(a, b)
    return _matrix_product(_matrix(a), _matrix(b))


@traced
def multiply_inverse(a: Lanes, b: Lanes) -> Lanes:
    """Return ``a b^dagger``."""
    if len(a) == 1:
        return [a[0] - b[0]]
    if len(a) == 4:
        return _quaternion_product(a, _quaternion_adjoint(b))
    return _matrix_product(_matrix(a), _adjoint(_matrix(b)))


@traced
def plaquette_algebra(a: Lanes, b: Lanes) -> Lanes:
    """Return the traceless antihermitian part of ``a b^dagger``; for U(1), sin(a - b)."""
    if len(a) == 1:
        return [_sine(a[0] - b[0])]
    if len(a) == 4:
        return _quaternion_product(a, _quaternion_adjoint(b))[1:]
    left, right = _matrix(a), _adjoint(_matrix(b))
    diagonal = [_entry(left, right, i, i)[1] for i in range(3)]
    third = (diagonal[0] + diagonal[1] + diagonal[2]) * (1 / 3)
    result = [part - third for part in diagonal]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        upper, lower = _entry(left, right, i, j), _entry(left, right, j, i)
        result += [0.5 * (upper[0] - lower[0]), 0.5 * (upper[1] + lower[1])]
    return result


@traced
def plaquette_trace(a: Lanes, b: Lanes) -> Lanes:
    """Return ``Re tr(a b^dagger) / N``; for U(1), cos(a - b)."""
    if len(a) == 1:
        return [_sine(a[0] - b[0] + 0.5 * math.pi)]
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total = fma(x, y, total)
    return [total if len(a) == 4 else total * (1 / 3)]


@traced
def transport(u: Lanes, q: Lanes) -> Lanes:
    """Return ``u^dagger q u`` of an algebra element."""
    if len(u) == 1:
        return q
    if len(u) == 4:
        # q as a link has no real part: its products are spelled without it.
        product = _quaternion_product_algebra(q, u)
        return _quaternion_product(_quaternion_adjoint(u), product)[1:]
    matrix = _matrix(u)
    product = [[_algebra_entry(q, matrix, i, j) for j in range(3)] for i in range(3)]
    adjoint = _adjoint(matrix)
    result = [_imaginary_entry(adjoint, product, i) for i in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        result += _entry(adjoint, product, i, j)
    return result


def _quaternion_product_algebra(q: Lanes, u: Lanes) -> Lanes:
    # (i q0) a - b_q conj(b), (i q0) b + b_q conj(a) with b_q = q1 + i q2.
    b_q = (q[1], q[2])
    first = _complex_product((-b_q[0], -b_q[1]), (u[2], -u[3]))
    second = _complex_product(b_q, (u[0], -u[1]))
    return [
        fma(-q[0], u[1], first[0]),
        fma(q[0], u[0], first[1]),
        fma(-q[0], u[3], second[0]),
        fma(q[0], u[2], second[1]),
    ]


def _algebra_entry(q: Lanes, matrix: list[list[tuple]], i: int, j: int) -> tuple:
    rows = _algebra_matrix(q)
    diagonal = rows[i][i][1]
    total: tuple = (-(diagonal * matrix[i][j][1]), diagonal * matrix[i][j][0])
    for k in range(3):
        if k != i:
            total = _complex_product(rows[i][k], matrix[k][j], total)
    return total


def _imaginary_entry(a: list[list[tuple]], b: list[list[tuple]], i: int) -> Any:
    total = fma(a[i][0][0], b[0][i][1], a[i][0][1] * b[0][i][0])
    for k in (1, 2):
        total = fma(a[i][k][0], b[k][i][1], fma(a[i][k][1], b[k][i][0], total))
    return total


@traced
def add(a: Lanes, b: Lanes) -> Lanes:
    """Return ``a + b``."""
    return [x + y for x, y in zip(a, b, strict=True)]


@traced
def add_multiple(total: Lanes, q: Lanes, size: Lanes) -> Lanes:
    """Return ``total + size * q``."""
    return [fma(size[0], x, t) for t, x in zip(total, q, strict=True)]


@traced
def add_signed(total: Lanes, here: Lanes, behind: Lanes) -> Lanes:
    """Return ``total + here - behind``."""
    return [t + (x - y) for t, x, y in zip(total, here, behind, strict=True)]


@traced
def kick(momentum: Lanes, total: Lanes, size: Lanes) -> Lanes:
    """Return ``momentum - size * total``."""
    return [fma(-size[0], t, p) for p, t in zip(momentum, total, strict=True)]


@traced
def scaled(q: Lanes, size: Lanes) -> Lanes:
    """Return ``size * q``."""
    return [size[0] * x for x in q]


@traced
def invariants(q: Lanes) -> Lanes:
    """Return ``t``: minus the coefficient of Q in the characteristic equation; 0 for U(1)."""
    if len(q) == 1:
        return [0.0 * q[0]]
    if len(q) == 3:
        return [fma(q[0], q[0], fma(q[1], q[1], q[2] * q[2]))]
    diagonal = fma(q[0], q[0], fma(q[1], q[1], q[2] * q[2]))
    rest = q[3] * q[3]
    for x in q[4:]:
        rest = fma(x, x, rest)
    return [fma(diagonal, 0.5, rest)]


@traced
def head(values: Lanes) -> Lanes:
    """Return all values but the last."""
    return values[:-1]


@traced
def last(values: Lanes) -> Lanes:
    """Return the last value."""
    return values[-1:]


@traced
def halve_large(t: Lanes, scale: Lanes) -> Lanes:
    """Return ``(t / 4, scale / 2)`` where t exceeds the limit, else ``(t, scale)``."""
    is_large = t[0] > NORM_LIMIT
    return [where(is_large, 0.25 * t[0], t[0]), where(is_large, 0.5 * scale[0], scale[0])]


def _determinant(q: Lanes) -> Any:
    """Return e with det Q = i e: e = -det H for Q = i H."""
    # H has the real diagonal q[0:3] and H_ij = Im Q_ij - i Re Q_ij above it, so
    # det H = h0 h1 h2 + 2 Re(H01 H12 H20) - h0 |H12|^2 - h1 |H02|^2 - h2 |H01|^2.
    h01, h02, h12 = (q[4], -q[3]), (q[6], -q[5]), (q[8], -q[7])
    cycle = _complex_product(h01, h12)
    real = fma(cycle[0], h02[0], cycle[1] * h02[1])
    minus = q[0] * fma(h12[0], h12[0], h12[1] * h12[1] - q[1] * q[2])
    minus = fma(q[1], fma(h02[0], h02[0], h02[1] * h02[1]), minus)
    minus = fma(q[2], fma(h01[0], h01[0], h01[1] * h01[1]), minus)
    return minus - 2.0 * real


@traced
def exponential_coefficients(q: Lanes, t: Lanes) -> Lanes:
    """Return the coefficients of exp(q) as a polynomial in q, and what squaring it needs.

    SU(3): Re and Im of f0, f1, f2, then e.  SU(2): f0, f1 (real).  U(1): a dummy.
    """
    if len(q) == 1:
        return [t[0]]
    inverse = [1 / math.factorial(n) for n in range(_DEGREE + 1)]
    zero = t[0] - t[0]
    if len(q) == 3:
        f0, f1 = zero + inverse[_DEGREE], zero
        for n in range(_DEGREE - 1, -1, -1):
            f0, f1 = fma(-t[0], f1, inverse[n]), f0
        return [f0, f1]
    e = _determinant(q)
    f0, f1, f2 = (zero + inverse[_DEGREE], zero), (zero, zero), (zero, zero)
    for n in range(_DEGREE - 1, -1, -1):
        f0, f1, f2 = (
            (fma(-e, f2[1], inverse[n]), e * f2[0]),
            (fma(-t[0], f2[0], f0[0]), fma(-t[0], f2[1], f0[1])),
            f1,
        )
    return [*f0, *f1, *f2, e]


@traced
def square_where_halved(f: Lanes, t: Lanes, scale: Lanes) -> Lanes:
    """Return the coefficients of the squared polynomial where scale < 1; then the next scale."""
    is_halved = scale[0] < 1.0
    next_scale = where(is_halved, 2.0 * scale[0], scale[0])
    if len(f) == 1:
        return [f[0], next_scale]
    if len(f) == 2:
        squared = [fma(f[0], f[0], -(t[0] * (f[1] * f[1]))), 2.0 * (f[0] * f[1])]
        return [*(where(is_halved, x, y) for x, y in zip(squared, f, strict=True)), next_scale]
    f0, f1, f2, e = (f[0], f[1]), (f[2], f[3]), (f[4], f[5]), f[6]
    f12, f22 = _complex_product(f1, f2), _complex_product(f2, f2)
    f01, f02 = _complex_product(f0, f1), _complex_product(f0, f2)
    f00, f11 = _complex_product(f0, f0), _complex_product(f1, f1)
    # Q^3 = -t Q + i e and Q^4 = -t Q^2 + i e Q.
    g0 = (fma(-2.0 * e, f12[1], f00[0]), fma(2.0 * e, f12[0], f00[1]))
    g1 = (
        fma(-e, f22[1], 2.0 * fma(-t[0], f12[0], f01[0])),
        fma(e, f22[0], 2.0 * fma(-t[0], f12[1], f01[1])),
    )
    g2 = (
        fma(-t[0], f22[0], fma(f02[0], 2.0, f11[0])),
        fma(-t[0], f22[1], fma(f02[1], 2.0, f11[1])),
    )
    squared = [*g0, *g1, *g2]
    return [
        *(where(is_halved, x, y) for x, y in zip(squared, f[:6], strict=True)),
        e,
        next_scale,
    ]


@traced
def move(u: Lanes, q: Lanes, f: Lanes) -> Lanes:
    """Return ``exp(q) u`` from the coefficients of the exponential; for U(1), ``u + q``."""
    if len(u) == 1:
        return [u[0] + q[0]]
    if len(u) == 4:
        return _quaternion_product([f[0], f[1] * q[0], f[1] * q[1], f[1] * q[2]], u)
    return _matrix_product(_polynomial(q, f), _matrix(u))


def _polynomial(q: Lanes, f: Lanes) -> list[list[tuple]]:
    """Return ``f0 + f1 Q + f2 Q^2`` as a matrix."""
    rows = _algebra_matrix(q)
    result: list[list[tuple]] = [[()] * 3 for _ in range(3)]
    size: list[list[Any]] = [[None] * 3 for _ in range(3)]
    for i, j, n in ((0, 1, 3), (0, 2, 5), (1, 2, 7)):
        size[i][j] = size[j][i] = fma(q[n], q[n], q[n + 1] * q[n + 1])
    for i in range(3):
        # Q^2 is hermitian: (Q^2)_ii = -sum_k |Q_ik|^2.
        others = [size[i][k] for k in range(3) if k != i]
        square = -fma(q[i], q[i], others[0] + others[1])
        result[i][i] = (
            fma(-f[3], q[i], fma(f[4], square, f[0])),
            fma(f[2], q[i], fma(f[5], square, f[1])),
        )
    for i, j in ((0, 1), (0, 2), (1, 2)):
        k = 3 - i - j
        # (Q^2)_ij = i (h_i + h_j) Q_ij + Q_ik Q_kj.
        both = q[i] + q[j]
        real, imaginary = rows[i][j]
        square = _complex_product(rows[i][k], rows[k][j], (-(both * imaginary), both * real))
        result[i][j] = _complex_product(
            (f[2], f[3]), rows[i][j], _complex_product((f[4], f[5]), square)
        )
        result[j][i] = _complex_product(
            (f[2], f[3]),
            rows[j][i],
            _complex_product((f[4], f[5]), (square[0], -square[1])),
        )
    return result


# (1 + x)^(-1/3) to rounding for |x| <= 0.1.
_ROOT_DEGREE = 16


@traced
def projected(u: Lanes) -> Lanes:
    r"""Return the SU(3) matrix nearest to one close to the group, and how far that was.

    Two Newton steps of the polar decomposition, :math:`u \to \tfrac12 (3 - u u^\dagger) u`, then
    :math:`u \to (\det u)^{-1/3} u` by the binomial series around 1.  The last value is
    :math:`|u u^\dagger - 1|^2 + 10^{-6} |\det - 1|^2` (Frobenius): up to PROJECTION_LIMIT what is
    left out is below rounding.
    """
    distance = None
    for _ in range(2):
        matrix = _matrix(u)
        adjoint = _adjoint(matrix)
        # 3/2 - u u^dagger / 2 is hermitian: its upper triangle tells all.
        half: list[list[tuple]] = [[()] * 3 for _ in range(3)]
        square: Any = None
        for i in range(3):
            length = _real_entry(matrix, adjoint, i)
            half[i][i] = (fma(length, -0.5, 1.5), 0.0)
            excess = length - 1.0
            square = excess * excess if square is None else fma(excess, excess, square)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            x, y = _entry(matrix, adjoint, i, j)
            half[i][j], half[j][i] = (-0.5 * x, -0.5 * y), (-0.5 * x, 0.5 * y)
            square = fma(2.0 * x, x, fma(2.0 * y, y, square))
        distance = square if distance is None else distance
        u = [
            part
            for i in range(3)
            for j in range(3)
            for part in _hermitian_entry(half, matrix, i, j)
        ]
    matrix = _matrix(u)
    x, y = _determinant_of(matrix)
    x = x - 1.0
    root, rising = (x - x, x - x), 1.0
    coefficients = [1.0]
    for n in range(_ROOT_DEGREE):
        rising *= (-1 / 3 - n) / (n + 1)
        coefficients.append(rising)
    for coefficient in reversed(coefficients):
        root = _complex_product(root, (x, y))
        root = (root[0] + coefficient, root[1])
    distance = fma(1e-6 * x, x, fma(1e-6 * y, y, distance))
    result = [part for row in matrix for entry in row for part in _complex_product(root, entry)]
    return [*result, distance]


def _real_entry(a: list[list[tuple]], b: list[list[tuple]], i: int) -> Any:
    total = fma(a[i][0][0], b[0][i][0], -(a[i][0][1] * b[0][i][1]))
    for k in (1, 2):
        total = fma(a[i][k][0], b[k][i][0], fma(-a[i][k][1], b[k][i][1], total))
    return total


def _hermitian_entry(h: list[list[tuple]], b: list[list[tuple]], i: int, j: int) -> tuple:
    total: tuple = (h[i][i][0] * b[i][j][0], h[i][i][0] * b[i][j][1])
    for k in range(3):
        if k != i:
            total = _complex_product(h[i][k], b[k][j], total)
    return total


def _determinant_of(a: list[list[tuple]]) -> tuple:
    total: tuple | None = None
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        minus = _complex_product(a[1][k], a[2][j])
        minor = _complex_product(a[1][j], a[2][k], (-minus[0], -minus[1]))
        total = _complex_product(a[0][i], minor, total)
    assert total is not None
    return total


def _sine(x: Any) -> Any:
    """Return sin x from x = r + k pi, -pi/2 <= r <= pi/2: a Taylor polynomial of degree 21 in r."""
    k = round_to_integer(x * (1 / math.pi))
    r = fma(-k, _PI_LOW, fma(-k, _PI_HIGH, x))
    square = r * r
    total = 1 / math.factorial(21) * square
    for n in range(19, 2, -2):
        sign = -1.0 if n % 4 == 3 else 1.0
        total = (total + sign / math.factorial(n)) * square
    value = fma(total, r, r)
    # k - 2 round(k / 2) is 0 for even and +-1 for odd k.
    odd = fma(-2.0, round_to_integer(0.5 * k), k)
    return value * fma(-2.0 * odd, odd, 1.0)
