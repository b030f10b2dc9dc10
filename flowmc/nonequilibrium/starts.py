"""Where processes begin: exact draws of solved actions, or Markov chains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.actions.exact import sample_wilson_2d
from flowmc.actions.gauge import Wilson
from flowmc.actions.scalar import HoppingAction
from flowmc.actions.solved import log_partition
from flowmc.flows.models import Prior
from flowmc.kernels import Cycle
from flowmc.kernels.base import Kernel, State, apply
from flowmc.lattice import lattice_momenta_squared

__all__ = ["STARTS", "ExactStart", "MarkovStart", "begin", "can_be_drawn", "update"]

STARTS = ("hot", "cold", "ordered", "mixed")


class ExactStart(Prior, nn.Module):
    r"""Exact independent draws of an action whose ln Z is known, as a prior.

    That is scalar fields without a hopping term (phi^4 at kappa = 0: independent sites) or without
    a quartic one (Gaussian, drawn by an FFT), links at beta = 0 (Haar), and two-dimensional gauge
    theory at any beta (:func:`~flowmc.actions.exact.sample_wilson_2d`).
    :math:`\ln r(x) = -S(x) - \ln Z` with the exact ln Z.

    Args:
        action: what is drawn.

    Raises:
        ValueError: for an action that is not of this kind.
    """

    def __init__(self, action: Action) -> None:
        nn.Module.__init__(self)
        log_z = log_partition(action) if can_be_drawn(action) else None
        if log_z is None:
            raise ValueError(
                f"{action!r} cannot be drawn exactly: begin where it can (phi4 at kappa = 0, a "
                "gauge theory at beta = 0, a double well at lambda = 0 and mu2 > 0), or from "
                "Markov chains"
            )
        self.action, self.log_z = action, log_z
        self.group = action.group

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = _draw(self.action, n, rng)
        return x, self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.action(x) - self.log_z

    def __repr__(self) -> str:
        return f"ExactStart({self.action!r})"


class MarkovStart:
    """Markov chains in equilibrium, of whose successive configurations processes begin.

    Args:
        action: what the chains sample.
        kernels: updates that leave it invariant, applied in order.
        chains: number of chains.
        thermalization: updates before the first configuration, in which kernels may adapt.
        separation: updates between configurations.
        start: "hot", "cold", "ordered" or "mixed".  In the broken phase of a scalar theory chains
            that begin disordered, or at the field 0 of a cold start, form kinks, which take
            exponentially long to annihilate; an ordered start is the constant field of least
            action.  Of mixed chains every other one begins hot, so that kinks, or other memories
            of the start, show as chains that disagree.
    """

    def __init__(
        self,
        action: Action,
        kernels: Sequence[Kernel],
        *,
        chains: int,
        thermalization: int,
        separation: int = 1,
        start: str = "hot",
    ) -> None:
        if chains < 1 or thermalization < 0 or separation < 1 or start not in STARTS:
            raise ValueError(
                "Markov chains need chains >= 1, thermalization >= 0, separation >= 1 and a start "
                f"in {', '.join(STARTS)}, got {chains}, {thermalization}, {separation}, {start!r}"
            )
        self.action, self.kernels = action, list(kernels)
        self.chains, self.thermalization = chains, thermalization
        self.separation, self.start = separation, start

    def configurations(self, count: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yield ``count`` batches ``(chains, ...)``, one per measurement."""
        state = self.begin(rng)
        done = 0
        for index in range(count):
            while done < self.updates_before(index):
                state = self.advance(state, done, rng)
                done += 1
            yield state.field

    def updates_before(self, index: int) -> int:
        """Return how many updates come before configuration ``index``, counted from 0."""
        return self.thermalization + (index + 1) * self.separation

    def begin(self, rng: torch.Generator) -> State:
        """Return the chains before their first update."""
        return Cycle(self.kernels).init(begin(self.action, self.chains, self.start, rng))

    def begin_again(self, state: State) -> None:
        """Let the kernels see the fields that they go on from, as a start does; no state changes.

        Raises:
            ConfigError: a kernel is not right for the theory or these fields.
        """
        Cycle(self.kernels).init(state.field)

    def advance(self, state: State, done: int, rng: torch.Generator) -> State:
        """Do one update; kernels adapt if it is one of the thermalization.

        Args:
            state: the chains.
            done: updates done before.
            rng: of all updates.
        """
        for kernel in self.kernels:
            state, info = apply(kernel, state, rng)
            if done < self.thermalization:
                kernel.adapt(info, done)
        return state


def begin(action: Action, chains: int, start: str, rng: torch.Generator) -> Tensor:
    """Return the fields that chains start from; see :class:`MarkovStart`."""
    if start == "hot":
        return action.hot(chains, rng)
    field = action.cold(chains, device=rng.device)
    if start == "cold":
        return field
    if isinstance(action, HoppingAction):
        field = field + action.vacuum
    elif action.is_scalar:
        raise ValueError(
            f"the ordered field of {action!r} is not known: start its chains 'hot' or 'cold'"
        )
    if start == "mixed":
        field[1::2] = action.hot(chains, rng)[1::2].to(field.dtype)
    return field


def update(
    kernels: Sequence[Kernel], state: State, rng: torch.Generator
) -> tuple[State, float | None]:
    """Apply kernels in order; return the state and the mean acceptance of the first, if it has."""
    acceptance = None
    for index, kernel in enumerate(kernels):
        state, info = apply(kernel, state, rng)
        if index == 0 and info.is_accepted.numel():
            acceptance = float(info.is_accepted.double().mean())
    return state, acceptance


def can_be_drawn(action: Action) -> bool:
    """Return whether :class:`ExactStart` can draw this action."""
    if log_partition(action) is None:
        return False
    if isinstance(action, HoppingAction):
        return action.k == 0 or action.quartic == 0
    return isinstance(action, Wilson)


def _draw(action: Action, n: int, rng: torch.Generator) -> Tensor:
    if isinstance(action, HoppingAction) and action.quartic == 0:
        noise = torch.randn(
            (n, *action.lattice), dtype=torch.float64, device=rng.device, generator=rng
        )
        axes = tuple(range(1, 1 + action.dimensions))
        # S = 1/V sum_p [k p_hat^2 + a - 2 k d] |phi_p|^2.
        mass = action.a - 2 * action.k * action.dimensions
        modes = action.k * lattice_momenta_squared(action.lattice, rng.device) + mass
        return torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * (2 * modes).rsqrt(), dim=axes).real
    if isinstance(action, Wilson) and action.beta > 0:
        return sample_wilson_2d(action, n, rng)
    return action.hot(n, rng)
