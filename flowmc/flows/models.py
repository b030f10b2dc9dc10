"""What can be sampled with a known density: models, among them priors, and flows of a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, _nudged, _with_parts
from flowmc.groups import Group, Real
from flowmc.identity import Identified, identity
from flowmc.registry import ConfigError

__all__ = ["FlowModel", "Model", "Prior", "as_model"]


class Model(Identified, ABC):
    """What fields can be drawn from with a log-density that is known, and known of any field.

    Kernels, evaluation and free energies ask for nothing else.  Subclasses implement
    :meth:`sample` and :meth:`log_prob`; a class that is none takes part with these two,
    ``fingerprint()`` and ``at(action)`` (:func:`as_model`).

    Attributes:
        log_density_is_exact: as of a :class:`Flow`; False for a model with such a flow in it.
        has_map: whether it is a ``prior`` pushed through a ``flow``, its log-density that of the
            map alone; what needs the coordinates of the prior asks for it.
    """

    log_density_is_exact: bool = True
    has_map: bool = False

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw; return ``x (n, ...)`` and ``log q (n,)`` float64."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of given fields, ``(n,)`` float64."""

    def known_log_prob(self, x: Tensor, group: Group) -> Tensor:
        """Return log q of given fields, NaN where rounding leaves no density, ``(n,)`` float64.

        A function of each field alone; here :meth:`log_prob`.
        """
        return self.log_prob(x)

    def at(self, action: Action) -> Model:
        """Return the model for other couplings of its theory; itself unless it is conditional.

        Raises:
            ValueError: if it was not made for these couplings.
        """
        return self

    def starts(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw what :meth:`density_error` takes, ``(n, ...)``: fields before the map, if any."""
        return self.sample(n, rng)[0]

    def density_error(self, start: Tensor) -> Tensor:
        """Return an estimate per field of the error of log q, ``(n,)`` >= 0.

        Raises:
            ConfigError: if the log-density is not exact, and the class does not say by how much.
        """
        if not self.log_density_is_exact:
            raise ConfigError(
                f"{type(self).__name__} says log_density_is_exact = False, but not by how much: "
                "define density_error(x)"
            )
        return torch.zeros(start.shape[0], dtype=torch.float64, device=start.device)

    def fingerprint(self) -> str:
        """Return a short digest of class, parameters and weights; it keys cached densities.

        Raises:
            ConfigError: for a part of which another process cannot tell whether it is the same.
        """
        return identity(self)


class Prior(Model):
    """A model that a flow can start from, normalised.

    What a prior was constructed with tells its density from others, as for a :class:`Flow`.

    Attributes:
        group: of the fields' elements.
    """

    group: Group = Real()

    def card_parameters(self) -> dict[str, Any]:
        """Return parameters for the card of a flow file, JSON-able.

        They replace those of the configuration where these name files: a flow file is to be read
        without others.
        """
        return {}


class FlowModel(Model, nn.Module):
    r"""A prior pushed through a flow: :math:`\ln q(f(z)) = \ln r(z) - \ln|\det \partial f|`.

    Args:
        prior: where z is drawn.
        flow: the map f.
    """

    has_map = True
    # Whether q is the mean of the densities of the map at x and at -x.
    is_mirrored = False

    def __init__(self, prior: Prior, flow: Flow) -> None:
        super().__init__()
        self.prior = prior
        self.flow = flow

    def at(self, action: Action) -> FlowModel:
        """Return the sampler of a conditional flow for other couplings; itself otherwise.

        The prior is the same for all of them.

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
    def log_density_is_exact(self) -> bool:  # type: ignore[override]
        """Whether the densities of prior and flow are those of their discrete maps."""
        return self.flow.log_density_is_exact and self.prior.log_density_is_exact

    def starts(self, n: int, rng: torch.Generator) -> Tensor:
        return self.prior.sample(n, rng)[0]

    def density_error(self, start: Tensor) -> Tensor:
        """Return an estimate of the error of log q after the flow of ``start``, ``(n,)`` >= 0."""
        return self.flow.density_error(start) + self.prior.density_error(start)


def as_model(given: Any) -> Model:
    """Return a model, or what has the methods of one, as a :class:`Model`.

    Args:
        given: with ``sample``, ``log_prob``, ``fingerprint`` and ``at``, and whatever else of a
            :class:`Model` it declares.

    Raises:
        ConfigError: naming what it lacks.
    """
    if isinstance(given, Model):
        return given
    needed = ("sample", "log_prob", "fingerprint", "at")
    missing = [f"{name}()" for name in needed if not callable(getattr(given, name, None))]
    if missing:
        raise ConfigError(
            f"{type(given).__name__} is no model: it lacks {', '.join(missing)} of "
            "flowmc.flows.Model"
        )
    return _Given(given)


class _Given(Model):
    """A model that does not inherit from ours."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.log_density_is_exact = getattr(given, "log_density_is_exact", True)

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.given.sample(n, rng)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.given.log_prob(x)

    def known_log_prob(self, x: Tensor, group: Group) -> Tensor:
        own = getattr(self.given, "known_log_prob", None)
        return self.log_prob(x) if own is None else own(x, group)

    def at(self, action: Action) -> Model:
        return as_model(self.given.at(action))

    def starts(self, n: int, rng: torch.Generator) -> Tensor:
        own = getattr(self.given, "starts", None)
        return super().starts(n, rng) if own is None else own(n, rng)

    def density_error(self, start: Tensor) -> Tensor:
        own = getattr(self.given, "density_error", None)
        return Model.density_error(self, start) if own is None else own(start)

    def fingerprint(self) -> str:
        return self.given.fingerprint()
