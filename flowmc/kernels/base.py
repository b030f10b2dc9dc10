"""The contract of Markov kernels: ``init(field) -> state``, ``step(state, rng) -> (state, info)``.

A state holds the fields of a batch of chains and what the next step needs, all per chain and for
exactly these fields; a kernel that moves the field drops whatever it did not recompute.  States
hold no tuning parameters.  ``info`` holds the diagnostics of one step.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.kernels.reporting import KernelReport, Reported
from flowmc.native import torch_only
from flowmc.random import Randomness, own_stream
from flowmc.registry import ConfigError

__all__ = [
    "Carried",
    "Info",
    "Kernel",
    "NonFiniteStateError",
    "State",
    "UpdateFailedError",
    "action_of",
    "apply",
    "begin",
    "kernels_in",
    "report_of",
    "title_of",
    "value_in_torch",
]


@dataclass(frozen=True)
class Carried:
    """What a kernel owns of every chain beside its field: noise, an auxiliary field, a counter.

    It is in checkpoints, whatever the number of ranks that go on from them, and belongs to a chain
    and a replica: an exchange of configurations does not carry it along.

    Attributes:
        value: ``(chains, ...)``, any dtype that numpy has.
        stays: whether it stays when another kernel moves the field.  What is a function of the
            field, as an estimate of its determinant, does not.
    """

    value: Tensor
    stays: bool = False


@dataclass(frozen=True)
class State:
    """A batch of chains.

    Attributes:
        field: ``(chains, ...)``.
        action: S of these fields, ``(chains,)`` float64, or None if not known.
        log_q: log-densities of these fields under flow models, by
            :meth:`~flowmc.flows.models.FlowModel.fingerprint`; each ``(chains,)`` float64.
        carried: what kernels own of these chains, by name.
    """

    field: Tensor
    action: Tensor | None = None
    log_q: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    carried: Mapping[str, Carried] = dataclasses.field(default_factory=dict)

    @property
    def chains(self) -> int:
        """Number of chains in the batch."""
        return self.field.shape[0]

    def moved(self, field: Tensor, action: Tensor | None = None) -> State:
        """Return the state at another field, without the caches of the old one.

        Of what is carried, that is kept which stays.
        """
        kept = {name: one for name, one in self.carried.items() if one.stays}
        return State(field, action, carried=kept)

    def with_log_q(self, key: str, value: Tensor) -> State:
        """Return this state with one more cached log-density."""
        return replace(self, log_q={**self.log_q, key: value})

    def with_carried(self, name: str, value: Tensor, *, stays: bool = False) -> State:
        """Return this state with a tensor that a kernel owns, new or in the place of an old one.

        Args:
            name: letters, digits, ``_``, ``-`` and ``.``; begin it with the name of the kernel.
            value: ``(chains, ...)``.
            stays: see :class:`Carried`.

        Raises:
            ValueError: for another name, or a tensor that is not one entry per chain.
        """
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise ValueError(f"a state cannot carry {name!r}: use letters, digits, _, - and .")
        if value.dim() == 0 or value.shape[0] != self.chains:
            raise ValueError(
                f"what a state carries has one entry per chain, ({self.chains}, ...), but {name} "
                f"has the shape {tuple(value.shape)}"
            )
        return replace(self, carried={**self.carried, name: Carried(value, stays)})

    def united(self, other: State) -> State:
        """Return this state with what another kernel's state of the same fields knows besides.

        Raises:
            ConfigError: the two do not agree on S, so that their kernels have different targets.
        """
        if self.action is None or other.action is None:
            action = other.action if self.action is None else self.action
        else:
            action = self.action
            differ = ~torch.isclose(action, other.action, rtol=1e-5, atol=1e-5, equal_nan=True)
            if bool(differ.any()):
                chain = int(differ.nonzero()[0])
                raise ConfigError(
                    "kernels that are applied in turn need the same action, but for one S = "
                    f"{float(action[chain]):.9g}, for another {float(other.action[chain]):.9g}"
                )
        return State(
            self.field,
            action,
            {**other.log_q, **self.log_q},
            {**other.carried, **self.carried},
        )


@dataclass(frozen=True)
class Info:
    """Diagnostics of one step of one kernel.

    Attributes:
        is_accepted: ``(chains, proposals)`` bool: what became of every proposal of the step.
        values: further diagnostics per chain, each ``(chains, ...)``, of those that
            :attr:`Kernel.reports` declares; what a step leaves out is NaN, or adds nothing.
        parts: the infos of composed kernels, by name; then ``is_accepted`` is empty.
    """

    is_accepted: Tensor
    values: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Info] = dataclasses.field(default_factory=dict)

    @property
    def is_composed(self) -> bool:
        """Whether this is the info of a kernel made of kernels; some may act on other ranks."""
        return bool(self.parts) or self.is_accepted.shape[0] == 0


class NonFiniteStateError(RuntimeError):
    """The current state of a chain is not finite: the run must stop, not sample garbage.

    Args:
        message: what is not finite.
        chain: index of the chain in its batch, if known.
    """

    def __init__(self, message: str, chain: int | None = None) -> None:
        super().__init__(message)
        self.chain = chain


class UpdateFailedError(RuntimeError):
    """An update could not be made, by no fault of the fields: the run stops as it was before."""


class Kernel(ABC):
    """A Markov kernel that leaves the density of its action(s) invariant.

    Attributes:
        name: how infos, logs and columns of measurements call this kernel.
        title: how reports call it; by default its name.
        takes_streams: whether :meth:`step` takes the :class:`~flowmc.random.Streams` of a run as
            well as a single generator: kernels made of kernels, and those that need random
            numbers that several ranks share.
        spreads: whether the kernel works on ladders some of whose replicas live on other ranks;
            of no importance for kernels of one replica.
        reports: what :attr:`Info.values` of a step may hold, each with title, unit and reduction:
            ``reports = (Reported("work", "work of the move"),)``, of the class or of an object.
        is_rehearsed: whether a new run may apply the kernel once to a chain that is thrown away.
        scratch: a folder in which the kernel may keep files while it works, in the directory of a
            run; None where nobody has said.
    """

    name: str = "kernel"
    title: str = ""
    takes_streams: bool = False
    spreads: bool = False
    reports: Sequence[Reported] = ()
    is_rehearsed: bool = True
    scratch: Path | None = None

    @abstractmethod
    def init(self, field: Any) -> Any:
        """Return the state of a batch of fields, and refuse what the kernel is not right for.

        Every kernel of a run has this called before the first step of every process, a resumed one
        too, for each block of chains and each replica that lives there: what it keeps in the
        kernel must not depend on the fields.  It leaves them as they are.

        Args:
            field: ``(chains, ...)``; for kernels of a whole ladder a list with one such batch per
                replica, None where the replica lives on another rank.

        Raises:
            ConfigError: the kernel would not leave the target invariant, or not for these fields.
        """

    @abstractmethod
    def step(self, state: Any, rng: Any) -> tuple[Any, Info]:
        """Advance every chain by one application of the kernel.

        Args:
            state: of all chains of a block.
            rng: a :class:`torch.Generator`; kernels with :attr:`takes_streams` also get a
                :class:`~flowmc.random.Streams`.
        """

    def step_replicas(
        self, kernels: Sequence[Kernel], states: Sequence[Any], rngs: Sequence[Randomness]
    ) -> list[tuple[Any, Info]]:
        """Advance replicas of a ladder, each by its own kernel of this class.

        Args:
            kernels: one per replica; this one is the first.
            states: of the replicas.
            rngs: what each may draw from.
        """
        return [
            apply(kernel, state, rng)
            for kernel, state, rng in zip(kernels, states, rngs, strict=True)
        ]

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        """Return what the elementary kernels in this one report; empty for an elementary kernel.

        By the names that these have in :attr:`Info.parts`, at any depth.
        """
        return ()

    @property
    def adapts(self) -> bool:
        """Whether :meth:`adapt` does anything: it needs the infos of all ranks."""
        return type(self).adapt is not Kernel.adapt

    def adapt(self, info: Info, update: int) -> None:  # noqa: B027
        """Tune from the infos of *all* chains of one update; called in thermalisation only."""

    def tuning(self) -> dict[str, float]:
        """Return what :meth:`adapt` has tuned, for the checkpoint."""
        return {}

    def set_tuning(self, values: Mapping[str, float]) -> None:  # noqa: B027
        """Restore what :meth:`tuning` returned."""


def kernels_in(kernel: Kernel) -> Iterator[Kernel]:
    """Yield a kernel and, at any depth, the kernels that it is made of."""
    yield kernel
    inside = [getattr(kernel, "kernel", None), *getattr(kernel, "kernels", ())]
    inside += getattr(kernel, "parts", {}).values()
    for one in inside:
        if isinstance(one, Kernel):
            yield from kernels_in(one)


def begin(kernel: Kernel, field: Any) -> Any:
    """Return ``kernel.init(field)``, which must leave the field as it is.

    Raises:
        ConfigError: as :meth:`Kernel.init`, or it does not.
    """
    if not isinstance(field, Tensor):
        return kernel.init(field)
    given = field.clone()
    state = kernel.init(field)
    kept = state.field if isinstance(state, State) else field
    same = kept.shape == given.shape and kept.dtype == given.dtype
    # NaN is not equal to itself.
    if not (same and bool(((kept == given) | ((kept != kept) & (given != given))).all())):
        raise ConfigError(
            f"{kernel.name}: init should return a state of the field that it is given, but its "
            "field is another"
        )
    return state


def title_of(kernel: Kernel) -> str:
    """Return how reports call a kernel."""
    return kernel.title or kernel.name.replace("_", " ")


def report_of(kernel: Kernel) -> KernelReport:
    """Return what an elementary kernel reports."""
    return KernelReport(kernel.name, title_of(kernel), tuple(kernel.reports))


def apply(kernel: Kernel, state: Any, rng: Randomness) -> tuple[Any, Info]:
    """Return ``kernel.step`` with what the kernel can draw from."""
    return kernel.step(state, rng if kernel.takes_streams else own_stream(rng))


def value_in_torch(action: Action, field: Tensor) -> Tensor:
    """Return S of fields that start a chain or are proposed to it, always by torch.

    Compiled code rounds otherwise: with it chains would differ in the last digits from those that
    were begun before it was used here.
    """
    with torch_only():
        return action(field)


def action_of(action: Action, state: State) -> Tensor:
    """Return S of the state, from its cache if present.

    Raises:
        NonFiniteStateError: naming the first chain whose action is not finite.
    """
    value = value_in_torch(action, state.field) if state.action is None else state.action
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        chain = int((~finite).nonzero()[0])
        raise NonFiniteStateError(
            f"the action of chain {chain} of this block is {float(value[chain])}: the field is "
            "corrupt; restart from the last checkpoint or another start configuration",
            chain,
        )
    return value
