r"""One vocabulary for the groups that fields live in: R^n, U(1) and SU(N).

Every kernel and flow speaks only these words, so that one HMC serves scalar and gauge fields.

* The algebra is spanned by generators :math:`T_a`.  For SU(N) they are antihermitian and
  traceless with :math:`\mathrm{tr}\,T_a T_b = -\tfrac12 \delta_{ab}`; for U(1) and R the algebra
  is the real line.
* Momenta are :math:`P = \sum_a p_a T_a` with kinetic energy :math:`K = \tfrac12 \sum_a p_a^2`
  (:math:`= -\mathrm{tr}\,P^2` for SU(N)), and move a field by :math:`U \to e^{\epsilon P} U`.
* The derivative of a function along the algebra is
  :math:`\partial_a f(U) = \frac{d}{ds} f(e^{s T_a} U)|_{s=0}`, and its gradient is
  :math:`\sum_a T_a\,\partial_a f`.

Densities are with respect to the Haar measure: normalised for SU(N), :math:`d\theta` per angle for
U(1), Lebesgue for R.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowmc.lattice import sum_over_sites

__all__ = [
    "SUN",
    "U1",
    "Group",
    "Real",
    "complex_product",
    "cotangent",
    "pairing",
    "parse_group",
    "traceless_antihermitian",
]


class Group(ABC):
    """A group and its algebra, acting elementwise on fields.

    Attributes:
        name: as in configuration files, e.g. ``"SU(3)"``.
        element_shape: trailing axes of one group element, ``()`` or ``(N, N)``.
        algebra_dimension: number of generators per element.
    """

    name: str
    element_shape: tuple[int, ...] = ()
    algebra_dimension: int = 1

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def field_dtype(self, real: torch.dtype) -> torch.dtype:
        """Return the dtype of a field whose real components have dtype ``real``.

        Raises:
            ValueError: for a dtype that is none of real components.
        """
        if not real.is_floating_point:
            raise ValueError(f"fields of {self.name} have real components, no {real}")
        return real

    @abstractmethod
    def identity(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: object = "cpu"
    ) -> Tensor:
        """Return unit elements: ``shape + element_shape``; ``dtype`` is that of the field."""

    @abstractmethod
    def compose(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product ``left * right``."""

    @abstractmethod
    def inverse(self, element: Tensor) -> Tensor:
        """Return the inverse element."""

    @abstractmethod
    def exp(self, algebra: Tensor) -> Tensor:
        """Return the group element ``exp(algebra)``."""

    @abstractmethod
    def project(self, field: Tensor) -> Tensor:
        """Return the group element closest to a field that has drifted by rounding."""

    @abstractmethod
    def haar(self, shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> Tensor:
        """Draw elements from the Haar measure: ``shape + element_shape``."""

    @abstractmethod
    def gradient_from_euclidean(self, field: Tensor, euclidean: Tensor) -> Tensor:
        """Turn the autograd gradient of a real function into its algebra gradient."""

    @abstractmethod
    def algebra_to_coordinates(self, algebra: Tensor) -> Tensor:
        """Return the real coordinates ``p_a``; a last axis of length ``algebra_dimension``."""

    @abstractmethod
    def coordinates_to_algebra(self, coordinates: Tensor) -> Tensor:
        """Return ``sum_a p_a T_a`` from coordinates in the last axis."""

    def move(self, field: Tensor, algebra: Tensor) -> Tensor:
        """Return ``exp(algebra) * field``."""
        return self.compose(self.exp(algebra), field)

    def draw_algebra(self, field: Tensor, rng: torch.Generator) -> Tensor:
        """Draw one algebra element per field element, each ``p_a`` a standard normal."""
        shape = field.shape[: field.dim() - len(self.element_shape)]
        real = field.real.dtype if field.is_complex() else field.dtype
        coordinates = torch.randn(
            (*shape, self.algebra_dimension), dtype=real, device=rng.device, generator=rng
        )
        return self.coordinates_to_algebra(coordinates)

    def kinetic_energy(self, algebra: Tensor) -> Tensor:
        """Return ``K = 1/2 sum p_a^2`` per chain (axis 0), accumulated in float64."""
        return 0.5 * sum_over_sites(algebra.to(torch.float64).square())

    def difference(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left - right``; of angles the one in [-pi, pi)."""
        return left - right

    def distance(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the largest componentwise distance per chain (axis 0), ``(chains,)``."""
        return (left - right).abs().reshape(left.shape[0], -1).amax(1).to(torch.float64)


class Real(Group):
    """The additive group of real numbers: scalar fields."""

    name = "R"

    def identity(self, shape, dtype, device="cpu"):
        return torch.zeros(shape, dtype=dtype, device=device)

    def compose(self, left, right):
        return left + right

    def inverse(self, element):
        return -element

    def exp(self, algebra):
        return algebra

    def project(self, field):
        return field

    def haar(self, shape, dtype, rng):
        raise ValueError(
            "the real line has no normalisable Haar measure: start scalar fields 'cold' or from a "
            "Gaussian ('hot')"
        )

    def gradient_from_euclidean(self, field, euclidean):
        return euclidean

    def algebra_to_coordinates(self, algebra):
        return algebra.unsqueeze(-1)

    def coordinates_to_algebra(self, coordinates):
        return coordinates.squeeze(-1)


class U1(Group):
    """U(1) as angles: the element ``exp(i theta)`` is stored as ``theta`` in [-pi, pi)."""

    name = "U(1)"

    def identity(self, shape, dtype, device="cpu"):
        return torch.zeros(shape, dtype=dtype, device=device)

    def compose(self, left, right):
        return left + right

    def inverse(self, element):
        return -element

    def exp(self, algebra):
        return algebra

    def project(self, field):
        # The floor of x/2pi is computed in the precision of the field; remainder can return 2 pi
        # itself for tiny negative input, which is the same element.
        return torch.remainder(field + math.pi, 2 * math.pi) - math.pi

    def haar(self, shape, dtype, rng):
        uniform = torch.rand(shape, dtype=dtype, device=rng.device, generator=rng)
        return (2 * uniform - 1) * math.pi

    def gradient_from_euclidean(self, field, euclidean):
        return euclidean

    def algebra_to_coordinates(self, algebra):
        return algebra.unsqueeze(-1)

    def coordinates_to_algebra(self, coordinates):
        return coordinates.squeeze(-1)

    def difference(self, left, right):
        return self.project(left - right)

    def distance(self, left, right):
        return super().distance(self.difference(left, right), torch.zeros_like(left))


class SUN(Group):
    """SU(N) as complex N x N matrices."""

    def __init__(self, n: int) -> None:
        if n < 2:
            raise ValueError(f"SU(N) needs N >= 2, got N = {n}")
        self.n = n
        self.name = f"SU({n})"
        self.element_shape = (n, n)
        self.algebra_dimension = n * n - 1

    def field_dtype(self, real):
        if not (real.is_floating_point or real.is_complex):
            raise ValueError(f"fields of {self.name} have complex components, no {real}")
        return torch.promote_types(real, torch.complex64)

    def identity(self, shape, dtype, device="cpu"):
        return torch.eye(self.n, dtype=dtype, device=device).expand(*shape, self.n, self.n).clone()

    def compose(self, left, right):
        return left @ right

    def inverse(self, element):
        return element.mH

    def exp(self, algebra):
        return exp_antihermitian(algebra)

    def project(self, field):
        r"""Return the nearest special unitary matrix.

        One Newton step of the polar decomposition, :math:`U \to \tfrac12 (3 - U U^\dagger) U`,
        squares the distance to U(N); it is repeated to convergence from the drift of a trajectory,
        and the phase of the determinant is divided out.
        """
        identity = torch.eye(self.n, dtype=field.dtype, device=field.device)
        for _ in range(2):
            field = 0.5 * (3 * identity - field @ field.mH) @ field
        determinant = _determinant(field)
        return complex_product(field, self._root(determinant)[..., None, None])

    def _root(self, determinant: Tensor) -> Tensor:
        """Return the N-th root of the inverse of a phase that is closest to 1."""
        # Not torch.angle, whose rounding depends on the place of an element in memory.
        angle = torch.atan(determinant.imag / determinant.real)
        half_turn = torch.copysign(torch.full_like(angle, math.pi), determinant.imag)
        angle = torch.where(determinant.real < 0, angle + half_turn, angle)
        return torch.polar(torch.ones_like(angle), -angle / self.n)

    def haar(self, shape, dtype, rng):
        """Draw by orthonormalising complex Gaussian vectors.

        SU(2) and SU(3) complete N - 1 orthonormal rows to a special unitary matrix, which is
        unique; N >= 4 uses a QR decomposition with the phases of the diagonal of R divided out
        (Mezzadri, math-ph/0609050).
        """
        rows = self.n - 1 if self.n <= 3 else self.n
        parts = torch.randn(
            (*shape, rows, self.n, 2), dtype=torch.float64, device=rng.device, generator=rng
        )
        gaussian = torch.view_as_complex(parts)
        if self.n == 2:
            first = _normalised(gaussian[..., 0, :])
            second = torch.stack([-first[..., 1].conj(), first[..., 0].conj()], -1)
            return torch.stack([first, second], -2).to(dtype)
        if self.n == 3:
            first = _normalised(gaussian[..., 0, :])
            other = gaussian[..., 1, :]
            overlap = complex_product(first.conj(), other).sum(-1, keepdim=True)
            second = _normalised(other - complex_product(overlap, first))
            third = torch.linalg.cross(first, second, dim=-1).conj()
            return torch.stack([first, second, third], -2).to(dtype)
        q, r = torch.linalg.qr(gaussian)
        diagonal = torch.diagonal(r, dim1=-2, dim2=-1)
        phases = _normalised(diagonal[..., None]).squeeze(-1)
        q = complex_product(q, phases[..., None, :])
        # Dividing a fixed N-th root of det out of a U(N) Haar matrix leaves SU(N) Haar.
        return complex_product(q, self._root(_determinant(q))[..., None, None]).to(dtype)

    def gradient_from_euclidean(self, field, euclidean):
        # torch returns G with df = Re tr(G^dagger dU); with dU = T_a U this is
        # d_a f = Re tr(T_a U G^dagger), and sum_a T_a Re tr(T_a M) = -1/2 (M)_TA.
        return -0.5 * traceless_antihermitian(field @ euclidean.mH)

    def algebra_to_coordinates(self, algebra):
        # p_a = -2 tr(T_a P): both are antihermitian, so the trace is real.
        generators = self.generators(algebra.dtype, algebra.device)
        return -2 * torch.einsum("aij,...ji->...a", generators, algebra).real

    def coordinates_to_algebra(self, coordinates):
        dtype = torch.complex128 if coordinates.dtype == torch.float64 else torch.complex64
        # In double precision: how a product in single precision is rounded depends on the threads.
        generators = torch.view_as_real(self.generators(torch.complex128, coordinates.device))
        flat = coordinates.to(torch.float64) @ generators.reshape(self.algebra_dimension, -1)
        flat = flat.reshape(*coordinates.shape[:-1], self.n, self.n, 2)
        return torch.view_as_complex(flat).to(dtype)

    def kinetic_energy(self, algebra):
        return sum_over_sites(torch.view_as_real(algebra).to(torch.float64).square())

    def generators(self, dtype: torch.dtype, device: object = "cpu") -> Tensor:
        r"""Return :math:`T_a = -\tfrac{i}{2}\lambda_a`, shape ``(N^2 - 1, N, N)``.

        The lambda are the generalised Gell-Mann matrices (symmetric, antisymmetric, diagonal), so
        that tr(T_a T_b) = -delta_ab / 2.
        """
        return _generators(self.n, dtype, str(device))


@functools.lru_cache(maxsize=32)
def _generators(n: int, dtype: torch.dtype, device: str) -> Tensor:
    matrices = []
    for i in range(n):
        for j in range(i + 1, n):
            symmetric = torch.zeros(n, n, dtype=torch.complex128)
            symmetric[i, j] = symmetric[j, i] = 1
            antisymmetric = torch.zeros(n, n, dtype=torch.complex128)
            antisymmetric.imag[i, j] = -1
            antisymmetric.imag[j, i] = 1
            matrices += [symmetric, antisymmetric]
    for k in range(1, n):
        diagonal = torch.zeros(n, n, dtype=torch.complex128)
        diagonal[range(k), range(k)] = 1
        diagonal[k, k] = -k
        matrices.append(diagonal * math.sqrt(2 / (k * (k + 1))))
    return (-0.5j * torch.stack(matrices)).to(dtype=dtype, device=device)


def complex_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the elementwise product of complex tensors, rounded alike wherever an element lies.

    torch multiplies with other instructions at the ends of the parts that its threads work on, so
    that the last digits of ``left * right`` depend on the number of threads.
    """
    a, b, c, d = left.real, left.imag, right.real, right.imag
    return torch.complex(a * c - b * d, a * d + b * c)


def traceless_antihermitian(matrix: Tensor) -> Tensor:
    r"""Return :math:`(M)_{TA} = \tfrac12(M - M^\dagger) - \tfrac{1}{2N}\mathrm{tr}(M - M^\dagger)`.

    This is the orthogonal projection on the algebra of SU(N) in the scalar product Re tr(A^† B).
    """
    antihermitian = 0.5 * (matrix - matrix.mH)
    n = matrix.shape[-1]
    trace = torch.diagonal(antihermitian, dim1=-2, dim2=-1).sum(-1) / n
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    return antihermitian - trace[..., None, None] * identity


def exp_antihermitian(algebra: Tensor) -> Tensor:
    r"""Return ``exp(Q)`` of traceless antihermitian matrices by scaling and squaring.

    The Taylor polynomial of degree 12 is used on :math:`Q / 2^s` with the Frobenius norm at most
    1/2, whose remainder is below 1e-14 of the result; SU(2) uses its closed form.  Polynomials are
    smooth where eigenvalues coincide, where closed forms by eigenvalues lose digits and gradients.
    """
    n = algebra.shape[-1]
    if n == 2:
        return _exp_su2(algebra)
    squares = torch.view_as_real(algebra.detach()).square().sum((-3, -2, -1))
    # A diverged chain keeps its non-finite values, the kernel rejects it; the others go on.
    squares = torch.where(torch.isfinite(squares), squares, 0)
    largest = math.sqrt(float(squares.amax())) if algebra.numel() else 0.0
    squarings = max(0, math.ceil(math.log2(largest / 0.5))) if largest > 0.5 else 0
    scaled = algebra / 2**squarings
    identity = torch.eye(n, dtype=algebra.dtype, device=algebra.device)
    # Paterson-Stockmeyer: five products instead of eleven for degree 12.
    c = [1 / math.factorial(k) for k in range(13)]
    q1 = scaled
    q2 = q1 @ q1
    q3 = q2 @ q1
    q4 = q2 @ q2
    low = c[0] * identity + c[1] * q1 + c[2] * q2 + c[3] * q3
    middle = c[4] * identity + c[5] * q1 + c[6] * q2 + c[7] * q3
    high = c[8] * identity + c[9] * q1 + c[10] * q2 + c[11] * q3 + c[12] * q4
    result = low + q4 @ (middle + q4 @ high)
    for _ in range(squarings):
        result = result @ result
    return result


def _exp_su2(algebra: Tensor) -> Tensor:
    # Q^2 = -theta^2 with theta^2 = |Q|_F^2 / 2, so exp Q = cos(theta) + sinc(theta) Q.
    theta2 = 0.5 * torch.view_as_real(algebra).square().sum((-3, -2, -1))
    small = theta2 < 1e-8
    theta = torch.where(small, torch.ones_like(theta2), theta2).sqrt()
    sinc = torch.where(small, 1 - theta2 / 6, torch.sin(theta) / theta)
    cosine = torch.where(small, 1 - theta2 / 2, torch.cos(theta))
    identity = torch.eye(2, dtype=algebra.dtype, device=algebra.device)
    return cosine[..., None, None] * identity + sinc[..., None, None] * algebra


def _normalised(vector: Tensor) -> Tensor:
    square = vector.real.square() + vector.imag.square()
    return vector / square.sum(-1, keepdim=True).sqrt()


def _determinant(matrix: Tensor) -> Tensor:
    n = matrix.shape[-1]
    if n == 2:
        a, b, c, d = matrix.flatten(-2).unbind(-1)
        return complex_product(a, d) - complex_product(b, c)
    if n == 3:
        a, b, c = matrix[..., 0, :], matrix[..., 1, :], matrix[..., 2, :]
        return complex_product(torch.linalg.cross(a, b, dim=-1), c).sum(-1)
    return torch.linalg.det(matrix)


def parse_group(name: str) -> Group:
    """Return the group called ``name``: "R", "U(1)" or "SU(N)" with N >= 2.

    Raises:
        ValueError: naming the accepted spellings.
    """
    compact = name.replace(" ", "").upper()
    if compact == "R":
        return Real()
    if compact in ("U(1)", "U1"):
        return U1()
    if compact.startswith("SU"):
        digits = compact[2:].strip("()")
        if digits.isdigit() and int(digits) >= 2:
            return SUN(int(digits))
    raise ValueError(f"unknown group {name!r}: use 'R', 'U(1)' or 'SU(N)' with N >= 2")


def cotangent(group: Group, field: Tensor, gradient: Tensor) -> Tensor:
    r"""Return the inverse of :meth:`Group.gradient_from_euclidean` on tangent directions.

    The result C is what autograd calls the gradient: :math:`df = \mathrm{Re\,tr}(C^\dagger dU)`.
    For SU(N) with :math:`F = \sum_a T_a \partial_a f` and :math:`dU = \omega U`,
    :math:`df = -2\,\mathrm{tr}(\omega F)`, hence :math:`C = 2 F U`.
    """
    return 2 * gradient @ field if group.element_shape else gradient


def pairing(group: Group, gradient: Tensor, field: Tensor) -> Tensor:
    """Return a scalar whose derivative along any motion of ``field`` is that of ``gradient``.

    Args:
        group: of the field's elements.
        gradient: algebra gradient at ``field``, held constant.
        field: ``(n, ...)`` with a graph.
    """
    constant = cotangent(group, field.detach(), gradient.detach())
    if field.is_complex():
        product = torch.view_as_real(constant) * torch.view_as_real(field)
    else:
        product = constant * field
    return product.sum(dtype=torch.float64)
