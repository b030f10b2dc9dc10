r"""Odd monotone maps of the circle, as rational-quadratic splines.

A rational-quadratic spline through the knots :math:`(x_k, y_k)` with the slopes :math:`d_k` is
monotone, continuously differentiable, and has an inverse and a derivative in closed form
(J.A. Gregory, R. Delbourgo, IMA J. Numer. Anal. 2 (1982) 123; as a flow: C. Durkan, A. Bekasov,
I. Murray, G. Papamakarios, arXiv:1906.04032).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["OddCircleSpline", "rational", "rational_inverse"]

# The narrowest bin in units of the mean width, and the smallest slope: no limit in practice, but
# the inverse keeps ten digits.
_NARROWEST = 1e-6
_FLATTEST = 1e-6
# Where softplus gives the slope 1.
_UNIT = math.log(math.expm1(1 - _FLATTEST))


class OddCircleSpline(nn.Module):
    r"""A map h of :math:`(-\pi, \pi)` onto itself with h(-x) = -h(x) and h' > 0.

    Its derivative is continuous on the whole circle.  With all parameters zero it is the identity.

    Args:
        bins: K, the number of bins between 0 and pi.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        # One row each for widths and heights, and K + 1 slopes.
        self.widths = nn.Parameter(torch.zeros(bins, dtype=torch.float64))
        self.heights = nn.Parameter(torch.zeros(bins, dtype=torch.float64))
        self.slopes = nn.Parameter(torch.zeros(bins + 1, dtype=torch.float64))

    def table(self) -> Tensor:
        """Return what a bin needs, ``(K, 6)`` float64: x, y, width, height, both slopes."""
        width, height = self._partition(self.widths), self._partition(self.heights)
        slope = _FLATTEST + functional.softplus(self.slopes.double() + _UNIT)
        columns = [
            width.cumsum(0) - width,
            height.cumsum(0) - height,
            width,
            height,
            slope[:-1],
            slope[1:],
        ]
        return torch.stack(columns, dim=1)

    @torch.no_grad()
    def pass_through(self, x: Tensor, y: Tensor, slopes: Tensor) -> None:
        """Set the parameters such that h(x) = y with these slopes.

        Args:
            x, y: ``(K + 1,)`` float64, rising from 0 to pi.
            slopes: ``(K + 1,)``, positive.

        Raises:
            ValueError: for bins narrower than 1e-6 of the mean width, or slopes below 1e-6.
        """
        floor = _NARROWEST / self.bins
        for parameter, knots in ((self.widths, x), (self.heights, y)):
            share = knots.diff() / math.pi - floor
            if float(share.min()) <= 0:
                raise ValueError(
                    f"{self.bins} bins of a spline are too many for knots this close together"
                )
            parameter.copy_(share.log())
        excess = slopes - _FLATTEST
        if float(excess.min()) <= 0:
            raise ValueError(f"the slopes of a spline must be above {_FLATTEST:g}")
        # The inverse of softplus, also where exp would overflow.
        self.slopes.copy_(excess + torch.log(-torch.expm1(-excess)) - _UNIT)

    def _partition(self, parameter: Tensor) -> Tensor:
        share = functional.softmax(parameter.double(), dim=0)
        return math.pi * (_NARROWEST / self.bins + (1 - _NARROWEST) * share)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(x) and h'(x) for any shape; ``table`` is that of :meth:`table`."""
        sign = torch.copysign(torch.ones_like(x), x.detach())
        x0, y0, width, height, left, right = _rows(table, sign * x, column=0)
        xi = (sign * x - x0) / width
        value, derivative = rational(xi, height / width, left, right)
        return sign * (y0 + height * value), derivative

    def inverse(self, y: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with h(x) = y, and h'(x)."""
        sign = torch.copysign(torch.ones_like(y), y.detach())
        x0, y0, width, height, left, right = _rows(table, sign * y, column=1)
        slope = height / width
        xi = rational_inverse((sign * y - y0) / height, slope, left, right)
        _, derivative = rational(xi, slope, left, right)
        return sign * (x0 + width * xi), derivative


def _rows(table: Tensor, magnitude: Tensor, column: int) -> tuple[Tensor, ...]:
    edges = table[1:, column].detach().contiguous()
    index = torch.bucketize(magnitude.detach(), edges, right=True)
    return functional.embedding(index, table).unbind(-1)


def rational(xi: Tensor, slope: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of a bin's height reached at ``xi`` in [0, 1], and the derivative there.

    Args:
        xi: share of the bin's width.
        slope: height over width.
        left, right: derivatives at the ends.
    """
    mixed = xi * (1 - xi)
    square = xi.square()
    below = slope + (left + right - 2 * slope) * mixed
    value = (slope * square + left * mixed) / below
    above = right * square + 2 * slope * mixed + left * (1 - xi).square()
    return value, (slope / below).square() * above


def rational_inverse(eta: Tensor, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return where the share ``eta`` of the height is reached; the inverse of :func:`rational`."""
    bend = left + right - 2 * slope
    # Root of a xi^2 + b xi + c in the form without cancellation.
    a = slope - left + eta * bend
    b = left - eta * bend
    return 2 * eta * slope / (b + (b.square() + 4 * a * eta * slope).sqrt())
