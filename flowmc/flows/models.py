"""What can be sampled with a known density: priors, and flows of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, _nudged, _with_parts
from flowmc.groups import Group, Real
from flowmc.identity import Identified, identity

__all__ = ["FlowModel", "Prior"]


class Prior(Identified, ABC):
    """A distribution that can be drawn from and whose normalised log-density is known.

    What a prior was constructed with tells its density from others, as for a :class:`Flow`.

    Attributes:
        group: of the fields' elements.
        log_density_is_exact: as of a :class:`Flow`; False for a prior with such a flow in it.
    """

    group: Group = Real()
    log_density_is_exact: bool = True

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw; return ``x (n, ...)`` and ``log q (n,)`` float64."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of given fields, ``(n,)`` float64."""

    def density_error(self, x: Tensor) -> Tensor:
        """Return an estimate per field of the error of the log-density, ``(n,)`` >= 0."""
        return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)

    def card_parameters(self) -> dict[str, Any]:
        """Return parameters for the card of a flow file, JSON-able.

        They replace those of the configuration where these name files: a flow file is to be read
        without others.
        """
        return {}


class FlowModel(Identified, nn.Module):
    r"""A prior pushed through a flow: :math:`\ln q(f(z)) = \ln r(z) - \ln|\det \partial f|`.

    Args:
        prior: where z is drawn.
        flow: the map f.
    """

    def __init__(self, prior: Prior, flow: Flow) -> None:
        super().__init__()
        self.prior = prior
        self.flow = flow

    def at(self, action: Action) -> FlowModel:
        """Return the sampler of a conditional flow for other couplings; itself otherwise.

        Raises:
            ValueError: if the flow was not made for these couplings.
        """
        return _with_parts(self, {"flow": (self.flow, self.flow.at(action))})

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw ``n`` fields; return ``x (n, ...)`` and ``log q (n,)`` float64."""
        z, log_prior = self.prior.sample(n, rng)
        return self.flow.forward(z, log_prior)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log q of given fields by the inverse flow, ``(n,)`` float64."""
        return self._log_prob_and_start(x)[0]

    def known_log_prob(self, x: Tensor, group: Group) -> Tensor:
        r"""Return log q of given fields, NaN where rounding leaves no density, ``(n,)`` float64.

        A flow may have lost its inverse in parts of the space.  So

        * mapped back and forth, x returns up to :math:`\sqrt\epsilon` of its precision, times its
          largest component (at least 1), and the Jacobians cancel up to
          :math:`\sqrt{\epsilon N}` for N components;
        * the same bounds how much log q changes when every component moves by :math:`8\epsilon`
          of itself.

        Both are functions of x alone.  Densities of continuous flows
        (:attr:`Flow.log_density_is_exact`) have the error of an integrator, which
        :meth:`density_error` measures, and are not held to this.
        """
        if not self.flow.log_density_is_exact:
            return self.log_prob(x)
        n, epsilon = x.shape[0], torch.finfo(x.dtype).eps
        both = torch.cat([x, _nudged(x)])
        if type(self).log_prob is FlowModel.log_prob:
            log_q, z, change = self._log_prob_and_start(both)
            z, change = z[:n], change[:n]
        else:
            log_q = self.log_prob(both)
            _, z, change = self._log_prob_and_start(x)
        back, round_trip = self.flow.forward(z, change)
        flat = x.abs().reshape(n, -1).to(torch.float64)
        of_density = (epsilon * flat.shape[1]) ** 0.5
        is_known = group.distance(back, x) <= epsilon**0.5 * flat.amax(1).clamp(min=1)
        is_known &= round_trip.abs() <= of_density
        is_known &= (log_q[n:] - log_q[:n]).abs() <= of_density
        return torch.where(is_known, log_q[:n], torch.nan)

    def _log_prob_and_start(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        z, minus_prior = self.flow.inverse(x, zero)
        # inverse adds +ln|det|; log q(x) = log r(z) - ln|det|.
        return self.prior.log_prob(z) - minus_prior, z, minus_prior

    @property
    def log_density_is_exact(self) -> bool:
        """Whether the densities of prior and flow are those of their discrete maps."""
        return self.flow.log_density_is_exact and self.prior.log_density_is_exact

    def density_error(self, z: Tensor) -> Tensor:
        """Return an estimate of the error of log q after the flow of ``z``, ``(n,)`` >= 0."""
        return self.flow.density_error(z) + self.prior.density_error(z)

    def fingerprint(self) -> str:
        """Return a short digest of prior, flow and weights; it keys cached densities of this model.

        Raises:
            ConfigError: for a part of which another process cannot tell whether it is the same.
        """
        return identity(self)
