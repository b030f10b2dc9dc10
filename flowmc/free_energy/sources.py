"""Where configurations of a theory come from: Markov chains, or what one has already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.stepper import action_of_kernel
from flowmc.free_energy.rows import Row, Rows
from flowmc.kernels import Kernel
from flowmc.nonequilibrium import MarkovStart
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["Chains", "Configurations", "Say", "Source", "configurations_of", "quiet", "target_rows"]

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """Markov chains in equilibrium, to be run.

    Attributes:
        kernels: of an action, the updates that leave it invariant, applied in order; a list where
            there is one action only.
        count: number of chains.
        measurements: configurations used of each.
        thermalization: updates before the first, in which kernels may adapt.
        separation: updates between two.
        start: "hot", "cold", "ordered" or "mixed"; see :class:`~flowmc.nonequilibrium.MarkovStart`.
    """

    kernels: Callable[[Action], Sequence[Kernel]] | Sequence[Kernel]
    count: int
    measurements: int
    thermalization: int = 100
    separation: int = 1
    start: str = "hot"

    def of(self, action: Action) -> MarkovStart:
        """Return the chains of an action.

        Raises:
            ConfigError: the kernels are of another action.
            ValueError: numbers that make no chains.
        """
        kernels = list(self.kernels(action) if callable(self.kernels) else self.kernels)
        for kernel in kernels:
            _check_theory(kernel, action)
        return MarkovStart(
            action,
            kernels,
            chains=self.count,
            thermalization=self.thermalization,
            separation=self.separation,
            start=self.start,
        )


@runtime_checkable
class Configurations(Protocol):
    """Configurations that need not be read to be passed over, such as those on disk."""

    def after(self, count: int) -> Iterator[Tensor]:
        """Yield the configurations of all chains, ``(chains, ...)``, without the first few."""


# Chains, or the configurations of all chains one after the other, each (chains, ...).
Source = Chains | Configurations | Iterable[Tensor]


def _check_theory(kernel: Kernel, action: Action) -> None:
    """Refuse a kernel of another action: chains of a wrong theory look like any others."""
    own = action_of_kernel(kernel)
    if own is None or own is action:
        return
    field = action.hot(1, stream(0, 0, "theory of kernels"))
    try:
        is_same = torch.allclose(own(field), action(field), rtol=1e-9)
    except (ValueError, TypeError, IndexError, RuntimeError):
        is_same = False
    if not is_same:
        raise ConfigError(
            f"{type(kernel).__name__} samples {own!r}, not {action!r}: give kernels as a function "
            "of the action, such as lambda action: [HMC(action)]"
        )


def configurations_of(
    source: Source, action: Action, name: str, rng: torch.Generator, rows: Rows
) -> Iterator[Tensor]:
    """Yield the configurations that have no row of that name yet, ``(chains, ...)``.

    Args:
        source: where they come from.
        action: what they are configurations of.
        name: of the rows; whoever takes a configuration adds its row before the next.
        rng: of chains.
        rows: what there is already.

    Raises:
        ConfigError: configurations of another shape, or not finite; from :class:`Chains`.
    """
    if isinstance(source, Chains):
        yield from rows.configurations(name, source.of(action), source.measurements, rng)
        return
    done = len(rows.rows(name))
    given = source.after(done) if isinstance(source, Configurations) else islice(source, done, None)
    count = done
    for place, x in enumerate(given, start=done):
        try:
            action.check_field(x)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"configurations come as (measurements, chains, ...), measurement {place}: {error}"
            ) from error
        if not bool(torch.isfinite(x).all()):
            raise ConfigError(f"measurement {place}: a configuration is not finite")
        count += 1
        yield x
    if not count:
        raise ConfigError("there is no configuration: give at least one measurement")


def target_rows(
    source: Source,
    action: Action,
    measured: Callable[[Tensor, int], Row],
    *,
    seed: int,
    rows: Rows,
    say: Say = quiet,
) -> list[Row]:
    """Return what was measured on configurations of the target, a row for each of all chains.

    Args:
        source: where they come from.
        action: of the target.
        measured: called with the configurations ``(chains, ...)`` and the number of their row.
        seed: of chains.
        rows: what there is already.
        say: called with a sentence when something begins.
    """
    name = "target"
    if isinstance(source, Chains):
        say(f"{source.count} chains of the target, {source.measurements} configurations of each")
    found = rows.rows(name)
    rng = stream(seed, 0, "chains of the target")
    for x in configurations_of(source, action, name, rng, rows):
        rows.add(name, measured(x, len(found)))
    return found
