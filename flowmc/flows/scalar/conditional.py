r"""The continuous flow of a whole range of couplings, and the flows between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.polynomial.chebyshev import chebvander
from torch import Tensor, nn

from flowmc.actions import Action
from flowmc.flows.base import Flow
from flowmc.flows.scalar.continuous import ContinuousFlow

__all__ = ["AtCoupling", "BetweenCouplings", "ConditionalContinuousFlow"]


class ConditionalContinuousFlow(ContinuousFlow):
    r"""One continuous flow for all theories with a coupling in a range.

    The weights of :class:`ContinuousFlow` are polynomials of the coupling :math:`\lambda`,

    .. math:: W(\lambda) = \sum_{k=0}^{n} W_k\, T_k(c), \qquad
              \lambda = \frac{\lambda_{\min} + \lambda_{\max}}{2}
                        + c\, \frac{\lambda_{\max} - \lambda_{\min}}{2} ,

    in Chebyshev's basis, so that :math:`f_\lambda(z)` and :math:`\ln q_\lambda` are differentiable
    in :math:`\lambda`.  (A conditional continuous flow is due to Gerdes et al., arXiv:2207.00283,
    with Gaussians as the basis.)  What it is good for beside saving trainings:
    :math:`f_{\lambda'} \circ f_\lambda^{-1}` carries one theory to another
    (:class:`BetweenCouplings`), for replica exchange and derivatives.

    The flow itself is that of the action it was built with; :meth:`at` gives the others.

    Args:
        action: the theory; gives the lattice, and the coupling where nothing else is said.
        coupling: name of the coupling, as in ``[theory]``.
        low, high: the range.
        degree: n, at least 0.
        options: those of :class:`ContinuousFlow`.

    Raises:
        ValueError: for a coupling that the theory does not have, or an empty range.
    """

    def __init__(
        self,
        action: Action,
        *,
        coupling: str,
        low: float,
        high: float,
        degree: int = 3,
        frequencies: int = 49,
        site_channels: int = 20,
        time_frequencies: int = 10,
        time_channels: int = 20,
        reach: int | None = None,
        integrator: str = "rk4",
        steps: int | None = None,
        tolerance: float | None = None,
        adjoint: bool = False,
    ) -> None:
        if degree < 0:
            raise ValueError(f"needs degree >= 0, got {degree}")
        self.degree = degree
        super().__init__(
            action,
            frequencies=frequencies,
            site_channels=site_channels,
            time_frequencies=time_frequencies,
            time_channels=time_channels,
            reach=reach,
            integrator=integrator,
            steps=steps,
            tolerance=tolerance,
            adjoint=adjoint,
        )
        if coupling not in action.parameters:
            known = ", ".join(action.parameters) or "none"
            raise ValueError(
                f"the {action.name} action has no coupling {coupling!r}; it has: {known}"
            )
        if not low < high:
            raise ValueError(f"needs low < high, got low = {low} and high = {high}")
        self.coupling, self.low, self.high = coupling, low, high
        self.value = self._in_range(action)

    def at(self, action: Action) -> Flow:
        """Return the flow to another coupling, with the same weights.

        Raises:
            ValueError: if the coupling is out of range.
        """
        return AtCoupling(self, self._in_range(action))

    @property
    def conditional_on(self) -> tuple[str, float, float]:  # type: ignore[override]
        """The coupling and its range."""
        return self.coupling, self.low, self.high

    def weights_from(self, old: nn.Module, action: Action) -> Mapping[str, Tensor]:
        """Return those of the same class, or of a flow of one coupling, for all of them."""
        if type(old) is not ContinuousFlow:
            return super().weights_from(old, action)
        if not self._fits(old):
            old = old.embedded(action, self.reach)
        weights = dict(old.state_dict())
        none = torch.zeros(self.degree, *old.kernels.shape).to(old.kernels)
        weights["kernels"] = torch.cat([old.kernels.detach()[None], none])
        return weights

    def _sizes(self) -> dict[str, Any]:
        own = {"coupling": self.coupling, "low": self.low, "high": self.high, "degree": self.degree}
        return {**super()._sizes(), **own}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.coupling} = {self.low:g} ... {self.high:g}"

    def _in_range(self, action: Action) -> float:
        value = action.parameters[self.coupling]
        if not self.low <= value <= self.high:
            raise ValueError(
                f"this flow was made for {self.coupling} = {self.low:g} ... {self.high:g}, not for "
                f"{self.coupling} = {value:g}"
            )
        return value

    def _start_kernels(self, site_channels: int, time_channels: int) -> None:
        shape = self.degree + 1, self.spectrum.orbits, site_channels, time_channels
        self.kernels = nn.Parameter(torch.zeros(shape))

    def _spatial_kernels(self) -> Tensor:
        c = (2 * self.value - self.low - self.high) / (self.high - self.low)
        polynomials = torch.from_numpy(chebvander(c, self.degree)[0]).to(self.kernels)
        return torch.tensordot(polynomials, self.kernels, 1)


class AtCoupling(Flow):
    """A conditional flow at one value of its coupling; the weights are those of the other.

    Args:
        flow: the conditional flow.
        value: of its coupling.
    """

    log_density_is_exact = False

    def __init__(self, flow: ConditionalContinuousFlow, value: float) -> None:
        super().__init__()
        self.flow, self.value = flow, value

    def _of(self, method: str, *arguments: Tensor) -> Any:
        before = self.flow.value
        self.flow.value = self.value
        try:
            return getattr(self.flow, method)(*arguments)
        finally:
            self.flow.value = before

    def distinction(self) -> str:
        return repr(self.value)

    @property
    def conditional_on(self) -> tuple[str, float, float] | None:  # type: ignore[override]
        """The coupling and its range: :meth:`at` gives the others from here as well."""
        return self.flow.conditional_on

    def at(self, action: Action) -> Flow:
        return self.flow.at(action)

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self._of("forward", x, log_density)

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self._of("inverse", y, log_density)

    def forward_with_force(
        self, x: Tensor, log_density: Tensor, force: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        return self._of("forward_with_force", x, log_density, force)

    def density_error(self, x: Tensor) -> Tensor:
        return self._of("density_error", x)

    def extra_repr(self) -> str:
        return f"{self.flow.coupling} = {self.value:g}"


class BetweenCouplings(Flow):
    r"""The flow :math:`f_b \circ f_a^{-1}` from one coupling of a conditional flow to another.

    Args:
        flow: the conditional flow.
        action_a, action_b: the two theories.
    """

    log_density_is_exact = False

    def __init__(self, flow: Flow, action_a: Action, action_b: Action) -> None:
        super().__init__()
        self.lattice = action_a.lattice
        self.first, self.second = flow.at(action_a), flow.at(action_b)

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.second.forward(*self.first.inverse(x, log_density))

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.forward(*self.second.inverse(y, log_density))

    def density_error(self, x: Tensor) -> Tensor:
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        with torch.no_grad():
            z, _ = self.first.inverse(x, zero)
        return self.first.density_error(z) + self.second.density_error(z)
