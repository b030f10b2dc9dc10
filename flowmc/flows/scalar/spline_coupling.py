r"""Rational-quadratic spline coupling for scalar fields, equivariant under a sign flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmc.actions import Action
from flowmc.flows.parts.convolution import LatticeConvolution
from flowmc.flows.parts.splines import rational, rational_inverse
from flowmc.flows.scalar.checkerboard import CheckerboardFlow, NetworkInputs

__all__ = ["OddIntervalSpline", "SplineCouplingFlow"]

# The narrowest bin in units of the mean width, and the smallest slope: they bound the loss of
# digits in the inverse of single-precision fields.
_NARROWEST = 1e-3
_FLATTEST = 1e-3
# Where softplus gives the slope 1.
_UNIT = math.log(math.expm1(1 - _FLATTEST))


class OddIntervalSpline:
    r"""Odd monotone maps of the real line, one for each of many numbers.

    Between 0 and the bound B, K bins with free widths, heights and slopes at their ends; mirrored
    below 0, h(-x) = -h(x), so that the derivative is continuous at 0; outside [-B, B] the identity,
    which is met with slope 1.  With all parameters zero it is the identity.  Computed in float64.

    Args:
        parameters: ``(rows, 3K, chains)``: logarithms of widths and heights up to a constant, and
            K slopes at the lower ends of the bins.
        bound: B.
    """

    def __init__(self, parameters: Tensor, bound: float) -> None:
        self.bound = bound
        widths, heights, slopes = parameters.double().chunk(3, dim=1)
        self.bins = widths.shape[1]
        self.widths, self.heights = self._partition(widths), self._partition(heights)
        slopes = _FLATTEST + functional.softplus(slopes + _UNIT)
        self.slopes = torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(x) and ln h'(x) for ``x (rows, chains)`` float64."""
        sign, magnitude, inside = self._folded(x)
        x0, y0, width, height, left, right = self._bin(magnitude, self.widths)
        value, derivative = rational((magnitude - x0) / width, height / width, left, right)
        y = torch.where(inside, sign * (y0 + height * value), x)
        return y, torch.where(inside, derivative.log(), 0.0)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with h(x) = y, and ln h'(x)."""
        sign, magnitude, inside = self._folded(y)
        x0, y0, width, height, left, right = self._bin(magnitude, self.heights)
        slope = height / width
        xi = rational_inverse((magnitude - y0) / height, slope, left, right)
        _, derivative = rational(xi, slope, left, right)
        x = torch.where(inside, sign * (x0 + width * xi), y)
        return x, torch.where(inside, derivative.log(), 0.0)

    def _partition(self, logits: Tensor) -> Tensor:
        share = functional.softmax(logits, dim=1)
        return self.bound * (_NARROWEST / self.bins + (1 - _NARROWEST) * share)

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sign and magnitude, and where the spline is not the identity."""
        sign = torch.copysign(torch.ones_like(x), x.detach())
        magnitude = sign * x
        inside = magnitude.detach() < self.bound
        # What is outside is not used, but must not make gradients infinite.
        return sign, torch.where(inside, magnitude, 0.5 * self.bound), inside

    def _bin(self, magnitude: Tensor, extents: Tensor) -> tuple[Tensor, ...]:
        """Return x, y, width, height and both slopes of the bin that each number is in."""
        edges = extents.detach().cumsum(1)[:, :-1]
        index = (magnitude.detach()[:, None] >= edges).sum(1, keepdim=True)

        def at(values: Tensor, where: Tensor) -> Tensor:
            return values.gather(1, where)[:, 0]

        width, height = at(self.widths, index), at(self.heights, index)
        x0 = at(self.widths.cumsum(1), index) - width
        y0 = at(self.heights.cumsum(1), index) - height
        return x0, y0, width, height, at(self.slopes, index), at(self.slopes, index + 1)


class SplineCouplingFlow(CheckerboardFlow):
    r"""Spline coupling on a periodic lattice of even extents, in any dimension.

    One layer freezes a colour of the checkerboard and moves the other,

    .. math:: \phi_x \to t_x + e^{s_x}\, h_x(\phi_x), \qquad
              \ln|\det| = \sum_x \big[ s_x + \ln h_x'(\phi_x) \big] ,

    with a monotone rational-quadratic spline h (C. Durkan, A. Bekasov, I. Murray, G.
    Papamakarios, arXiv:1906.04032; for this theory L. Del Debbio, J. Marsh Rossney, M. Wilson,
    arXiv:2105.12481) that is odd and the identity outside [-B, B]
    (:class:`OddIntervalSpline`).  Unlike an affine map it can make one peak into two.

    The flow commutes with :math:`\phi \to -\phi`: the hidden features are odd functions of the
    frozen field (convolutions without biases, tanh), t is a convolution of them, and s and the
    parameters of the spline are one of their squares.  It commutes with the translations that
    preserve the checkerboard, and starts as the identity.

    Args:
        action: the theory; gives the lattice.
        layers: number of coupling layers, >= 1; the colours move in turn.
        hidden: channels of the hidden layers.
        kernel_size: extent of the convolutions in every direction, odd.
        bins: K, the number of bins between 0 and the bound, >= 1.
        bound: B, in units of the field; beyond it the spline does nothing.
        affine: whether there are s and t (bounded by one per layer); without them a field beyond
            the bound stays as it is.
        masks: which sites move together: the colours of a checkerboard, or the positions in a
            block of two sites in every direction
            (:class:`~flowmc.flows.scalar.checkerboard.CheckerboardFlow`).

    Raises:
        ValueError: for a gauge theory, an odd extent, an even kernel size, and values out of range.
    """

    def __init__(
        self,
        action: Action,
        *,
        layers: int = 8,
        hidden: Sequence[int] = (8, 8),
        kernel_size: int = 3,
        bins: int = 8,
        bound: float = 3.0,
        affine: bool = True,
        masks: Literal["checkerboard", "blocks"] = "checkerboard",
    ) -> None:
        super().__init__(action, layers=layers, hidden=hidden, kernel_size=kernel_size, masks=masks)
        if bins < 1 or not 0 < bound < math.inf:
            raise ValueError(
                f"SplineCouplingFlow needs bins >= 1 and a bound > 0, got {bins} and {bound}"
            )
        self.bins, self.bound, self.affine = bins, float(bound), affine
        self.networks = nn.ModuleList(
            _SplineNetwork(list(hidden), self.offsets, bins, affine) for _ in range(layers)
        )

    def extra_repr(self) -> str:
        size = "x".join(map(str, self.lattice))
        return f"{size}, bins={self.bins}, bound={self.bound:g}, affine={self.affine}"

    def _forward_layer(
        self, network: nn.Module, inputs: NetworkInputs, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters, s, t = network(*inputs)
        y, log_derivative = OddIntervalSpline(parameters, self.bound).forward(moving.double())
        if self.affine:
            y, log_derivative = t + s.exp() * y, log_derivative + s
        return y.to(moving.dtype), log_derivative

    def _inverse_layer(
        self, network: nn.Module, inputs: NetworkInputs, moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters, s, t = network(*inputs)
        y = moved.double()
        if self.affine:
            y = (y - t) * (-s).exp()
        x, log_derivative = OddIntervalSpline(parameters, self.bound).inverse(y)
        return x.to(moved.dtype), log_derivative + s if self.affine else log_derivative


class _SplineNetwork(nn.Module):
    """Odd hidden features; t is odd in the frozen field, s and the spline's parameters are even."""

    def __init__(self, hidden: list[int], offsets: int, bins: int, affine: bool) -> None:
        super().__init__()
        widths = [1, *hidden]
        self.convolutions = nn.ModuleList(
            LatticeConvolution(a, b, offsets=offsets, bias=False) for a, b in pairwise(widths)
        )
        self.even = LatticeConvolution(hidden[-1], 3 * bins + affine, offsets=offsets, zero=True)
        self.shift = (
            LatticeConvolution(hidden[-1], 1, offsets=offsets, bias=False, zero=True)
            if affine
            else None
        )

    def forward(
        self, h: Tensor, neighbours: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        everywhere = (0, h.shape[0])
        for convolution in self.convolutions:
            h = torch.tanh(convolution(h, neighbours, everywhere))
        even = self.even(h.square(), neighbours, rows)
        if self.shift is None:
            return even, None, None
        t = torch.tanh(self.shift(h, neighbours, rows))[:, 0].double()
        return even[:, 1:], torch.tanh(even[:, 0]).double(), t
