r"""Monotone rational-quadratic splines of the line, mirrored under a joint change of sign."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from flowmc.flows.parts.splines import rational, rational_inverse

__all__ = ["IntervalSpline"]

# The narrowest bin in units of the mean width, and the smallest slope: they bound the loss of
# digits in the inverse of single-precision fields.
_NARROWEST = 1e-3
_FLATTEST = 1e-3
# Where softplus gives the slope 1.
_UNIT = math.log(math.expm1(1 - _FLATTEST))


class IntervalSpline:
    r"""Monotone maps of the real line, one for each of many numbers.

    Between -B and B, 2K bins with free widths, heights and slopes; outside the identity, which is
    met with slope 1.  (J.A. Gregory, R. Delbourgo, IMA J. Numer. Anal. 2 (1982) 123; as a flow:
    arXiv:1906.04032.)  The logits of the bins right and left of 0 are :math:`e \pm o` with the even
    and the odd parameters, so that a change of sign of o alone gives the mirrored map -h(-x).
    With all parameters zero it is the identity.  Computed in float64.

    Args:
        even: ``(rows, 3K, n)``: logits of widths and heights up to a constant each, and of the
            slopes at the lower ends of the right bins.
        odd: likewise; that of the slope at 0 is not used.
        bound: B.
    """

    def __init__(self, even: Tensor, odd: Tensor, bound: float) -> None:
        self.bound = bound
        parts = zip(even.chunk(3, dim=1), odd.chunk(3, dim=1), strict=True)
        widths, heights, slopes = ((e - o, e + o) for e, o in parts)
        self.widths, self.heights = self._partition(*widths), self._partition(*heights)
        centre = 0.5 * (slopes[0] + slopes[1])[:, :1]
        inner = torch.cat([slopes[0][:, 1:].flip(1), centre, slopes[1][:, 1:]], dim=1)
        end = torch.zeros_like(inner[:, :1])
        # Logits: softplus is taken of the two that a number needs.
        self.slopes = torch.cat([end, inner, end], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(x) and ln h'(x) for ``x (rows, n)`` float64."""
        value, inside = self._inside(x)
        x0, y0, width, height, left, right = self._bin(value, self.widths)
        share, derivative = rational((value - x0) / width, height / width, left, right)
        y = torch.where(inside, y0 + height * share, x)
        return y, torch.where(inside, derivative.log(), 0.0)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with h(x) = y, and ln h'(x)."""
        value, inside = self._inside(y)
        x0, y0, width, height, left, right = self._bin(value, self.heights)
        slope = height / width
        xi = rational_inverse((value - y0) / height, slope, left, right)
        _, derivative = rational(xi, slope, left, right)
        x = torch.where(inside, x0 + width * xi, y)
        return x, torch.where(inside, derivative.log(), 0.0)

    def _partition(self, left: Tensor, right: Tensor) -> Tensor:
        logits = torch.cat([left.flip(1), right], dim=1)
        share = functional.softmax(logits, dim=1)
        return 2 * self.bound * (_NARROWEST / logits.shape[1] + (1 - _NARROWEST) * share)

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers where the spline is not the identity, and where that is."""
        inside = x.detach().abs() < self.bound
        # What is outside is not used, but must not make gradients infinite.
        return torch.where(inside, x, 0.5 * self.bound), inside

    def _bin(self, value: Tensor, extents: Tensor) -> tuple[Tensor, ...]:
        """Return x, y, width, height and both slopes of the bin that each number is in."""
        edges = extents.detach().cumsum(1)[:, :-1] - self.bound
        index = (value.detach()[:, None] >= edges).sum(1, keepdim=True)

        def at(values: Tensor, where: Tensor) -> Tensor:
            return values.gather(1, where)[:, 0]

        width, height = at(self.widths, index), at(self.heights, index)
        x0 = at(self.widths.cumsum(1), index) - width - self.bound
        y0 = at(self.heights.cumsum(1), index) - height - self.bound
        left, right = (
            _FLATTEST + functional.softplus(at(self.slopes, where) + _UNIT)
            for where in (index, index + 1)
        )
        return x0, y0, width, height, left, right
