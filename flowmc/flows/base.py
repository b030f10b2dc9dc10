r"""The contract of flows and priors, and the checks that hold a flow to it.

A flow is an invertible map that carries a log-density along:

.. code-block:: python

    y, log_density = flow.forward(x, log_density)   # log_density - log|det dy/dx|
    x, log_density = flow.inverse(y, log_density)   # log_density + log|det dy/dx|

Whoever calls it never meets the sign of a Jacobian: put the density of ``x`` in, get the density
of ``y`` out.  With ``log_density = 0`` the output is the change itself, so for the target
:math:`e^{-S}` of either side the work of a map is ``S_new(new) + log_density - S_old(old)``.
Determinants are taken in the coordinates of :mod:`flowmc.groups` (Haar measure).

``log_density`` is ``(chains,)`` float64.  A flow whose inverse is iterative and did not reach
round-off for a chain returns NaN as that chain's density; kernels reject such moves.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.groups import Group
from flowmc.identity import Identified, identity
from flowmc.registry import ConfigError

__all__ = [
    "Chain",
    "Flow",
    "Identity",
    "Inverse",
    "check_equivariance",
    "check_inverse",
    "check_log_det",
    "jacobian_by_differences",
]

# Gradients that a check of a Jacobian takes at a time: one chain each.
_JACOBIAN_ROWS = 128


class Flow(Identified, nn.Module, ABC):
    """An invertible map of fields; subclasses implement :meth:`forward` and :meth:`inverse`.

    What a flow was constructed with is part of its :meth:`fingerprint`; a class needs nothing for
    that (:class:`~flowmc.identity.Identified`).

    What a flow is, it declares; nothing asks for its class.

    Attributes:
        log_density_is_exact: False for a flow whose log-density is that of a continuous flow and
            whose map is a discretisation of it; then :meth:`density_error` measures the difference.
        transfers_to_other_lattices: True for a class whose weights do not depend on the extents
            of the lattice, so that a flow file can be used on another size.
        conditional_on: ``(coupling, low, high)`` of a flow whose weights serve all theories with a
            coupling in a range; :meth:`at` gives the flow of each, with the very same weights.
            Such a flow is trained over the range, and joins any two couplings of it.
        fixed_steps: how many steps the integrator of a continuous flow takes, if their number can
            be set: the key ``steps`` of ``[flow]``.
    """

    log_density_is_exact: bool = True
    transfers_to_other_lattices: bool = False
    conditional_on: tuple[str, float, float] | None = None
    fixed_steps: int | None = None

    @abstractmethod
    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``x (chains, ...)``; return ``y`` and ``log_density - log|det dy/dx|``."""

    @abstractmethod
    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Map back; return ``x`` and ``log_density + log|det dy/dx|`` (NaN: not converged)."""

    def forward_with_force(
        self, x: Tensor, log_density: Tensor, force: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        r"""Map as :meth:`forward` does, and the force of the density along with the field.

        Args:
            x: ``(chains, ...)``.
            log_density: ln q(x), ``(chains,)`` float64.
            force: algebra gradient of -ln q at x, like the field.

        Returns:
            y and its log-density as from :meth:`forward`, and the algebra gradient of -ln q at y,
            without a graph; None if the flow has no such equation of its own.
        """
        return None

    def fingerprint(self) -> str:
        """Return a short digest of class, parameters and weights: of this very map."""
        return identity(self)

    def at(self, action: Action) -> Flow:
        """Return the flow for other couplings of its theory; itself unless it is conditional.

        Raises:
            ValueError: if a conditional flow was not made for these couplings.
        """
        return self

    def density_error(self, x: Tensor) -> Tensor:
        """Return an estimate per chain of the error of the log-density, ``(chains,)`` >= 0.

        Raises:
            ConfigError: if the log-density is not exact, and the class does not say by how much.
        """
        if not self.log_density_is_exact:
            raise ConfigError(
                f"{type(self).__name__} says log_density_is_exact = False, but not by how much: "
                "define density_error(x)"
            )
        return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)

    def weights_from(self, old: nn.Module, action: Action) -> Mapping[str, Tensor]:
        """Return weights to begin a training with, by name, made from those of a trained flow.

        Here those themselves; a class overrides it if it can use the weights of other classes, or
        of other lattices.

        Args:
            old: the trained flow.
            action: the theory of this flow.

        Raises:
            ValueError: if they cannot be used; the message goes on from the name of their file.
        """
        return weights_of_same_class(self, old)

    def speed_remark(self, dtype: torch.dtype, device: torch.device) -> str | None:
        """Return a sentence if fields of another precision would be mapped much faster."""
        return None


def weights_of_same_class(new: nn.Module, old: nn.Module) -> Mapping[str, Tensor]:
    """Return the weights of ``old``, by name; ``ValueError`` if it is of another class."""
    if type(old) is not type(new):
        raise ValueError(f"is a {type(old).__name__}, not a {type(new).__name__}")
    return old.state_dict()


class Identity(Flow):
    """The map y = x; as a flow between replicas it makes plain parallel tempering."""

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return x, log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return y, log_density


class Inverse(Flow):
    """The inverse of a flow as a flow."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.log_density_is_exact = flow.log_density_is_exact

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(x, log_density)

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.forward(y, log_density)

    @property
    def conditional_on(self) -> tuple[str, float, float] | None:  # type: ignore[override]
        """That of the flow."""
        return self.flow.conditional_on

    def at(self, action: Action) -> Flow:
        return _with_parts(self, {"flow": (self.flow, self.flow.at(action))})

    def density_error(self, x: Tensor) -> Tensor:
        y, _ = self.flow.inverse(x, torch.zeros(x.shape[0], dtype=torch.float64, device=x.device))
        return self.flow.density_error(y)


class Chain(Flow):
    """The composition ``layers[-1] o ... o layers[0]``."""

    def __init__(self, layers: Iterable[Flow]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.log_density_is_exact = all(layer.log_density_is_exact for layer in self)

    def __iter__(self) -> Iterator[Flow]:
        return iter(cast(Iterable[Flow], self.layers))

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self:
            x, log_density = layer.forward(x, log_density)
        return x, log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        for layer in reversed(list(self)):
            y, log_density = layer.inverse(y, log_density)
        return y, log_density

    @property
    def conditional_on(self) -> tuple[str, float, float] | None:  # type: ignore[override]
        """The coupling of the conditional layers, and the range that all of them serve.

        Raises:
            ConfigError: layers of several couplings, or of ranges without a common part.
        """
        found = [one for one in (layer.conditional_on for layer in self) if one is not None]
        if not found:
            return None
        couplings = {coupling for coupling, _, _ in found}
        low, high = max(low for _, low, _ in found), min(high for _, _, high in found)
        if len(couplings) > 1 or not low < high:
            ranges = ", ".join(f"{name} = {least:g} ... {most:g}" for name, least, most in found)
            raise ConfigError(
                f"the layers of a chain are conditional on {ranges}: they should have one coupling "
                "and a common range"
            )
        return couplings.pop(), low, high

    def distinction(self) -> str:
        # The layers may have come from an iterator.
        return "of its layers"

    def at(self, action: Action) -> Flow:
        layers = [layer.at(action) for layer in self]
        if all(new is old for new, old in zip(layers, self, strict=True)):
            return self
        return _with_parts(self, {"layers": (self.layers, nn.ModuleList(layers))})

    def density_error(self, x: Tensor) -> Tensor:
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        total = zero
        for layer in self:
            total = total + layer.density_error(x)
            x, _ = layer.forward(x, zero)
        return total


def _nudged(x: Tensor) -> Tensor:
    """Return fields that differ from ``x`` by a few roundings, up and down in turn."""
    up = 1 + 8 * torch.finfo(x.dtype).eps
    down = 1 - 8 * torch.finfo(x.dtype).eps
    flat = x.reshape(x.shape[0], -1).clone()
    flat[:, ::2] *= up
    flat[:, 1::2] *= down
    return flat.reshape(x.shape)


_M = TypeVar("_M", bound=nn.Module)


def _with_parts(module: _M, parts: Mapping[str, tuple[nn.Module, nn.Module]]) -> _M:
    """Return a module with other parts that shares all else; itself if they are the old ones.

    A copy, as the constructor of a user's class may be another than that of its base.

    Args:
        module: stays as it is.
        parts: old and new module, by the names of attributes.
    """
    if all(old is new for old, new in parts.values()):
        return module
    other = copy.copy(module)
    new_parts = {name: new for name, (_, new) in parts.items()}
    other.__dict__["_modules"] = {**module.__dict__["_modules"], **new_parts}
    return other


def check_inverse(flow: Flow, x: Tensor) -> tuple[float, float]:
    """Run forward then inverse; return the largest error of the field and of the log-density."""
    zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        y, forward = flow.forward(x, zero)
        back, round_trip = flow.inverse(y, forward)
    return float((back - x).abs().max()), float(round_trip.abs().max())


def check_log_det(flow: Flow, x: Tensor, group: Group, *, inverse: bool = False) -> float:
    r"""Compare the log-density change with the full Jacobian; return the largest difference.

    The Jacobian is taken in algebra coordinates: with :math:`y = f(x)` and
    :math:`x \to e^{\omega_a T_a} x`, its entries are the coordinates of
    :math:`(\partial y / \partial\omega_a)\, y^{-1}`, whose determinant is that of the map with
    respect to the Haar measure.  The cost grows as the square of the number of degrees of freedom:
    use small lattices, in float64.

    Args:
        flow: the map.
        x: ``(chains, ...)`` float64.
        group: of the field's elements.
        inverse: check :meth:`Flow.inverse` instead.
    """
    apply = flow.inverse if inverse else flow.forward
    worst = 0.0
    for field in x:
        field = field[None]
        with torch.no_grad():
            y, change = apply(field, torch.zeros(1, dtype=torch.float64, device=x.device))
        elements = field.shape[1 : field.dim() - len(group.element_shape)]
        shape = (*elements, group.algebra_dimension)
        dofs = math.prod(shape)
        # Chains do not see each other (those of an adaptive integrator share its steps, no more):
        # chain i gives the gradient of the i-th coordinate, and one pass back over many chains as
        # many rows of the Jacobian.
        rows = []
        for some in torch.arange(dofs, device=x.device).split(_JACOBIAN_ROWS):
            origin = torch.zeros(
                (len(some), *shape), dtype=torch.float64, device=x.device, requires_grad=True
            )
            moved = group.move(
                field.expand(len(some), *field.shape[1:]), group.coordinates_to_algebra(origin)
            )
            image, _ = apply(moved, torch.zeros(len(some), dtype=torch.float64, device=x.device))
            # Linear in the image: its derivative at the origin is that of the algebra element.
            algebra = image @ y.mH if y.is_complex() else image
            coordinates = group.algebra_to_coordinates(algebra).reshape(len(some), dofs)
            own = coordinates.gather(1, some[:, None]).sum()
            rows.append(torch.autograd.grad(own, origin)[0].reshape(len(some), dofs))
        expected = -torch.linalg.slogdet(torch.cat(rows))[1]
        worst = max(worst, float((change[0] - expected).detach().abs()))
    return worst


def jacobian_by_differences(flow: Flow, x: Tensor, group: Group, step: float = 1e-4) -> float:
    r"""Compare as :func:`check_log_det` does, by central differences of fourth order.

    For maps that torch cannot differentiate.  Where a map has kinks one chain may be off, so the
    smallest difference over the chains is returned.
    """
    best = math.inf
    for field in x:
        field = field[None]
        shape = (*field.shape[1 : field.dim() - len(group.element_shape)], group.algebra_dimension)
        dofs = math.prod(shape)
        with torch.no_grad():
            y, change = flow.forward(field, torch.zeros(1, dtype=torch.float64, device=x.device))
            matrix = torch.zeros(dofs, dofs, dtype=torch.float64, device=x.device)
            for weight, distance in ((8, 1), (-8, -1), (-1, 2), (1, -2)):
                for some in torch.arange(dofs, device=x.device).split(_JACOBIAN_ROWS):
                    moves = torch.zeros(len(some), dofs, dtype=torch.float64, device=x.device)
                    moves.scatter_(1, some[:, None], distance * step)
                    algebra = group.coordinates_to_algebra(moves.reshape(len(some), *shape))
                    moved = group.move(field.expand(len(some), *field.shape[1:]), algebra)
                    image, _ = flow.forward(moved, moves.new_zeros(len(some)))
                    difference = image @ y.mH if y.is_complex() else group.difference(image, y)
                    coordinates = group.algebra_to_coordinates(difference)
                    matrix[some] += weight / (12 * step) * coordinates.reshape(len(some), dofs)
            best = min(best, float((change[0] + torch.linalg.slogdet(matrix)[1]).abs()))
    return best


def check_equivariance(
    flow: Flow, x: Tensor, transformation: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    r"""Compare :math:`f(g x)` with :math:`g f(x)`; return the errors of field and log-density."""
    zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        y, density = flow.forward(x, zero)
        y_moved, density_moved = flow.forward(transformation(x), zero)
    field_error = (y_moved - transformation(y)).abs().max()
    return float(field_error), float((density_moved - density).abs().max())
