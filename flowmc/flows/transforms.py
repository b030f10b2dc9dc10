r"""Transforms of other libraries, of flat vectors, as flows of lattice fields.

zuko, nflows and normflows transform vectors ``(chains, features)``; here they transform the sites
of a scalar field, or the angles of U(1) links, one after the other in memory.  How a library calls
its maps and the sign of its log-determinant are known in one place, :func:`with_log_det`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.groups import U1, Real
from flowmc.registry import ConfigError, positional_of, resolve

__all__ = ["TransformFlow", "with_log_det"]


class TransformFlow(Flow):
    r"""A transform of another library, y = f(x), on the degrees of freedom of a field.

    Libraries for densities of data call the map from data to noise the transform; the flow from
    noise to fields is then its inverse: ``inverse = true``.  Either is exact, and which one is
    cheaper is a matter of the transform (autoregressive ones are cheap in one direction only).

    The inverse, the log-determinant and the full Jacobian are compared whenever the flow is loaded,
    as those of a user's own flow.

    Args:
        action: of a real scalar field, or of U(1) links, whose angles the transform should map as
            points of a circle.
        transform: ``"package.module:Name"``, a class or function that returns the transform, or a
            list of them; it is called with those of ``features`` (how many numbers a field has),
            ``action`` and ``lattice`` that it takes by position, and ``arguments``.  In Python
            also the transform itself.
        arguments: keyword arguments of that.
        inverse: whether the flow is the inverse of the transform.

    Raises:
        ConfigError: for another group, and what is no transform.
    """

    # Compared with its Jacobian as a user's own class is.
    holds_foreign_code = True

    def __init__(
        self,
        action: Action,
        *,
        transform: str | Any,
        arguments: Mapping[str, Any] | None = None,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(action.group, (Real, U1)):
            raise ConfigError(
                f"transforms are of real numbers and angles, but the theory is {action!r}"
            )
        self.group, self.inverted = action.group, bool(inverse)
        if isinstance(transform, str):
            made = _made(transform, action, arguments or {})
        elif arguments:
            raise ConfigError("arguments are of the name of a transform, not of a transform itself")
        else:
            made = transform
        steps = list(made) if isinstance(made, Sequence | nn.ModuleList) else [made]
        for one in steps:
            if not isinstance(one, nn.Module):
                raise ConfigError(
                    f"{type(one).__module__}.{type(one).__qualname__} is no transform whose "
                    "weights could be kept: it should be a torch.nn.Module"
                )
        self.transforms = nn.ModuleList(steps)

    def distinction(self) -> str:
        # Beside the weights: the names are those of the constructor.
        return " ".join(
            f"{type(one).__module__}.{type(one).__qualname__}" for one in self.transforms
        )

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply_all(x, log_density, self.inverted)

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self._apply_all(y, log_density, not self.inverted)

    def _apply_all(
        self, field: Tensor, log_density: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        flat = field.reshape(len(field), -1)
        for one in reversed(self.transforms) if inverse else self.transforms:
            flat, log_det = with_log_det(one, flat, inverse)
            log_density = log_density - log_det.to(torch.float64)
        return self.group.project(flat.reshape(field.shape)), log_density


def with_log_det(transform: nn.Module, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    r"""Return y of a transform or of its inverse, and :math:`\ln|\det dy/dx|`, ``(chains,)``.

    zuko: lazy modules, which return a transform with ``call_and_ladj``; of a distribution its
    ``transform`` from data to noise.  nflows and normflows: ``forward(x)`` and ``inverse(x)``, both
    of which return the logarithm of their own determinant.

    Args:
        transform: of one of these libraries.
        x: ``(chains, features)``.
        inverse: whether to apply the inverse.

    Raises:
        ConfigError: for what is called in another way.
    """
    own: Any = transform
    if not hasattr(own, "inverse"):
        own = _transform_of(own)
    if hasattr(own, "call_and_ladj"):
        y, log_det = (own.inv if inverse else own).call_and_ladj(x)
    else:
        result = own.inverse(x) if inverse else own.forward(x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise _unknown(transform)
        y, log_det = result
    if y.shape != x.shape or log_det.shape != x.shape[:1]:
        raise ConfigError(
            f"{type(transform).__module__}.{type(transform).__qualname__} maps {tuple(x.shape)} to "
            f"{tuple(y.shape)} with log-determinants {tuple(log_det.shape)}: these should be "
            f"{tuple(x.shape)} and {tuple(x.shape[:1])}"
        )
    return y, log_det


def _transform_of(lazy: Any) -> Any:
    """Return the transform that a lazy module of zuko makes, or that of its distribution."""
    try:
        made = getattr(lazy, "transform", lazy)()
    except TypeError as error:
        raise _unknown(lazy) from error
    if not hasattr(made, "call_and_ladj"):
        raise _unknown(lazy)
    return made


def _unknown(transform: Any) -> ConfigError:
    return ConfigError(
        f"{type(transform).__module__}.{type(transform).__qualname__} is called in no way that is "
        "known here: give it forward(x) and inverse(y) that return the image and ln|det|"
    )


def _made(name: str, action: Action, arguments: Mapping[str, Any]) -> Any:
    """Return what a class or function of this name makes for the fields of a theory."""
    component = resolve("transforms", name, "[flow]: transform")
    offered = {
        "features": math.prod(action.field_shape(1)),
        "action": action,
        "lattice": action.lattice,
    }
    positional = []
    for asked, default in positional_of(component).items():
        if asked in offered:
            positional.append(offered[asked])
        elif default is inspect.Parameter.empty and asked not in arguments:
            raise ConfigError(
                f"[flow]: transform = {name!r} takes {asked!r} by position: give it in arguments, "
                "or a function of your own that takes features, action or lattice"
            )
        else:
            break
    try:
        return component(*positional, **arguments)
    except ImportError as error:
        raise ConfigError(
            f"[flow]: transform = {name!r}: {error}: install it, as in "
            "pip install 'flowmc-lattice[transforms]'"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[flow]: transform = {name!r}: {error}") from error
