r"""What flows that are not built in are held to before they are trained, measured or run.

A wrong inverse or log-determinant does not stop a Markov chain: it samples another distribution.
So map, inverse and Jacobian of a user's flow, and the density of a user's prior, are compared on a
few draws, in double precision.  The full Jacobian takes as many gradients as there are degrees of
freedom; it is compared up to :data:`JACOBIAN_SIZE` of them, and of larger fields the inverse alone,
which :func:`unverified` says: check such a flow on a small lattice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, check_log_det, jacobian_by_differences
from flowmc.flows.local.models import ConditionalFlow, ConditionalPrior, LocalFlowModel
from flowmc.flows.models import FlowModel, Prior
from flowmc.groups import Group, Real
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["JACOBIAN_SIZE", "unverified", "verify"]

# Degrees of freedom up to which the full Jacobian is taken.
JACOBIAN_SIZE = 1024
_DRAWS = 3
# Largest differences of fields and log-densities: of flows that compute in double precision, of
# those that do not, and of those whose density is that of a continuous flow.
_DOUBLE, _SINGLE, _CONTINUOUS = (1e-6, 1e-5), (1e-3, 1e-2), (1e-2, 0.1)
# How far the weights are moved: flows that start as the identity show nothing there.
_SHIFT = 0.01


def verify(
    model: FlowModel | Flow | LocalFlowModel, action: Action, where: str, *, untrained: bool = False
) -> None:
    """Compare map, inverse, Jacobian and prior of what is not built in with each other.

    Args:
        model: as loaded or built; it is copied, and nothing of it changes.
        action: the theory; gives fields to flows without a prior.
        where: how to name the model in messages.
        untrained: whether to compare with slightly other weights, too.

    Raises:
        ConfigError: naming the class, what is wrong, and by how much.
    """
    if not any(_is_foreign(part) for part in _parts(model)):
        return
    with torch.no_grad():
        double = copy.deepcopy(model).to(torch.float64).eval()
    _compare(double, action, where)
    if untrained and any(True for _ in double.parameters()):
        rng = stream(0, 0, "weights of a check")
        with torch.no_grad():
            for parameter in double.parameters():
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=rng)
                parameter.add_((_SHIFT * noise).to(parameter))
        _compare(double, action, f"{where}, with weights moved by {_SHIFT:g}")


def unverified(model: FlowModel | Flow | LocalFlowModel, action: Action) -> str | None:
    """Return a sentence if the Jacobian of a flow that is not built in is too large to compare."""
    if isinstance(model, LocalFlowModel):
        return None  # blocks are small
    flow = model.flow if isinstance(model, FlowModel) else model
    names = [_name(part) for part in _parts(flow) if _is_foreign(part)]
    size = _degrees_of_freedom(action.field_shape(1)[1:], action.group)
    if not names or size <= JACOBIAN_SIZE:
        return None
    return (
        f"the Jacobian of {', '.join(dict.fromkeys(names))} was not compared with its log-density: "
        f"a field has {size} degrees of freedom, and up to {JACOBIAN_SIZE} are compared; check it "
        "on a small lattice with flowmc.flows.check_log_det"
    )


def _degrees_of_freedom(shape: Sequence[int], group: Group) -> int:
    elements = math.prod(shape) // math.prod(group.element_shape)
    return elements * group.algebra_dimension


def _compare(model: FlowModel | Flow | LocalFlowModel, action: Action, where: str) -> None:
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    rng = stream(0, 0, "check of a flow", device)
    flow: Flow
    group: Group = action.group
    if isinstance(model, LocalFlowModel):
        patch = action.on_lattice(model.block.patch).hot(1, rng)
        x, log_q = model.prior.push(
            model.noise(_DRAWS, rng), patch.expand(_DRAWS, *patch.shape[1:])
        )
        density = model.prior.log_prob(x, patch.expand(_DRAWS, *patch.shape[1:]))
        _check_prior(model.prior, log_q, density, where)
        flow, group = _Given(model.flow, patch), Real()
    elif isinstance(model, FlowModel):
        x, log_q = model.prior.sample(_DRAWS, rng)
        _check_prior(model.prior, log_q, model.prior.log_prob(x), where)
        flow = model.flow
    else:
        flow = model
        x = action.hot(_DRAWS, rng)
    names = [_name(part) for part in _parts(flow) if _is_foreign(part)]
    if names:
        _check_flow(flow, x.detach(), group, f"{where}: the flow {', '.join(dict.fromkeys(names))}")


def _check_prior(prior: Any, log_q: Tensor, density: Tensor, where: str) -> None:
    if not _is_foreign(prior):
        return
    worst = float((log_q - density).detach().abs().max())
    if not worst <= _DOUBLE[1] * max(1.0, float(density.detach().abs().max())):
        raise ConfigError(
            f"{where}: the prior {_name(prior)}: the log-density of its draws and that of "
            f"log_prob() at them differ by {worst:.3g}"
        )


def _check_flow(flow: Flow, x: Tensor, group: Group, where: str) -> None:
    zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with torch.no_grad():
        y, change = flow.forward(x, zero)
        if y.shape != x.shape or change.shape != zero.shape:
            raise ConfigError(
                f"{where}: forward() returns shapes {tuple(y.shape)} and {tuple(change.shape)} "
                f"for fields {tuple(x.shape)}: they are those of the fields and (chains,)"
            )
        if not bool(torch.isfinite(change).any()):
            raise ConfigError(f"{where}: forward() gives no finite log-density on {len(x)} draws")
        back, round_trip = flow.inverse(y, change)
    double = y.real.dtype == torch.float64
    of_field, of_density = _DOUBLE if double else _SINGLE
    if not flow.log_density_is_exact:
        of_field, of_density = _CONTINUOUS
        of_density += 10 * float(flow.density_error(x).nan_to_num(0).max())
    # A chain without a density has not converged, and is one that kernels reject.
    known = torch.isfinite(round_trip)
    if not bool(known.any()):
        raise ConfigError(f"{where}: inverse() gives no finite log-density on {len(x)} draws")
    scale = max(1.0, float(x.abs().max()))
    worst = float(group.distance(back.to(x.dtype), x)[known].max())
    if not worst <= of_field * scale:
        raise ConfigError(f"{where}: inverse(forward(x)) differs from x by {worst:.3g}")
    worst = float(round_trip[known].abs().max())
    if not worst <= of_density:
        raise ConfigError(
            f"{where}: the log-determinants of forward() and inverse() differ by {worst:.3g}"
        )
    size = _degrees_of_freedom(x.shape[1:], group)
    if size > JACOBIAN_SIZE or not double:
        return
    some = x[:1] if size > 128 else x
    try:
        worst = check_log_det(flow, some, group)
    except RuntimeError:  # not differentiable by torch, as inside torch.no_grad()
        worst = jacobian_by_differences(flow, some, group)
    if not worst <= of_density:
        raise ConfigError(
            f"{where}: the log-density of forward() differs from that of the full Jacobian by "
            f"{worst:.3g}: the chain would sample another distribution "
            "(flowmc.flows.check_log_det compares them)"
        )


class _Given(Flow):
    """A conditional flow with one patch around every block."""

    def __init__(self, flow: ConditionalFlow, patch: Tensor) -> None:
        super().__init__()
        self.flow, self.patch = flow, patch

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.forward(x, self._patches(x), log_density)

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(y, self._patches(y), log_density)

    def _patches(self, x: Tensor) -> Tensor:
        return self.patch.expand(len(x), *self.patch.shape[1:])


def _parts(model: nn.Module) -> Iterator[Any]:
    """Yield what carries a density: flows, and priors whether they are modules or not."""
    kinds = (Flow, Prior, FlowModel, ConditionalFlow, ConditionalPrior, LocalFlowModel)
    for module in model.modules():
        if isinstance(module, kinds):
            yield module
        prior = vars(module).get("prior")
        if isinstance(prior, Prior):
            yield prior


def _is_foreign(part: Any) -> bool:
    is_built_in = type(part).__module__.partition(".")[0] == "flowmc"
    return not is_built_in or getattr(part, "holds_foreign_code", False)


def _name(part: Any) -> str:
    return f"{type(part).__module__}:{type(part).__qualname__}"
