"""One update of one field, from objects: the door for host programs and other languages.

The field is all the state there is: kernels begin with it anew (:func:`~flowmc.kernels.base.begin`)
and what they know of the field they leave behind is given back, not kept.  Random numbers come from
the seed and the number of the update, so that a stream of numbered fields can be made again and
never uses the same random numbers twice.  Nothing is adapted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.diagnostics import Diagnostics, leaves, reports_of
from flowmc.chains.measuring import measure
from flowmc.chains.start import first_state
from flowmc.chains.storage.checkpoint import settled
from flowmc.kernels import Cycle, Info, Kernel, Mixture, NonFiniteStateError, State
from flowmc.kernels.base import action_of
from flowmc.random import SingleStream, stream
from flowmc.registry import ConfigError

__all__ = [
    "Stepped",
    "action_of_kernel",
    "check_finite",
    "composed",
    "numbers_of",
    "step",
    "summary_of",
]


@dataclass(frozen=True)
class Stepped:
    """What one update has made of a batch of chains.

    Attributes:
        state: the new fields, with what the kernels know of them.
        infos: diagnostics of every elementary kernel that was applied, by name.
    """

    state: State
    infos: Mapping[str, Info]

    @property
    def field(self) -> Tensor:
        """The new fields, ``(chains, ...)``."""
        return self.state.field

    @property
    def acceptance(self) -> dict[str, float]:
        """Accepted over tried by kernel, over all chains."""
        return {name: float(one.is_accepted.double().mean()) for name, one in self.infos.items()}


def step(
    field: Tensor,
    kernel: Kernel | Sequence[Kernel] | Assembly,
    *,
    seed: int,
    number: int,
    block: int = 0,
    action: Action | None = None,
) -> Stepped:
    """Apply a kernel once to a batch of chains.

    ``flowmc step`` is this, with files on both sides: the same field, seed and number give the same
    bits.

    Args:
        field: ``(chains, ...)``; a single configuration has one chain.  It stays as it is.
        kernel: a kernel, several that are applied in turn, or what
            :func:`~flowmc.chains.assembly.assemble` made of a configuration without a ladder.
        seed: of the stream of fields.
        number: of the update, >= 0, which selects the random numbers.  One that was used before
            with this seed and block makes a biased chain.
        block: of chains, where several batches share a seed.
        action: the target; by default that of the first kernel that has one.  It is asked whether
            the field is one of its own.

    Raises:
        ConfigError: the field is not finite, a kernel is not right for it, or reports what it does
            not declare.
        ValueError, TypeError: the field is not one of this theory.
        NonFiniteStateError: the field that the update made is not finite.
    """
    if not isinstance(field, Tensor):
        raise ConfigError("a step moves one field per chain: give a tensor (chains, ...)")
    if min(seed, number, block) < 0:
        raise ConfigError(
            f"seed = {seed}, number = {number}, block = {block}: should be integers, 0 or more"
        )
    is_configured = isinstance(kernel, Assembly)
    if isinstance(kernel, Assembly):
        if kernel.is_ladder:
            raise ConfigError(
                "a step moves one field per chain, a ladder has one per replica: use flowmc run"
            )
        action = action or kernel.actions[0]
        kernel = kernel.kernel
    whole = composed(kernel)
    where = "[chains]: " if is_configured else ""
    action = action or action_of_kernel(whole)
    state = first_state(whole, [action], {0: field}, 0, where=where)
    own = stream(seed, block, f"step {number}", field.device)
    state, info = whole.step(state, SingleStream(seed, block, number, own))
    state = settled(state)
    assert isinstance(state, State)
    check_finite(state.field)
    infos = dict(leaves(info, whole.parts))
    reported = Diagnostics(reports_of(whole.parts), state.chains)
    for name, one in infos.items():
        reported.add(0, state.chains, name, one)
    return Stepped(state, infos)


def summary_of(config: RunConfig, assembly: Assembly, stepped: Stepped) -> dict[str, Any]:
    """Return what a step of one chain did, as ``flowmc step --json`` prints it.

    Args:
        config: of the step.
        assembly: made of it.
        stepped: what it has made.

    Returns:
        ``acceptance`` by kernel; ``kernels`` with acceptance, seconds and what each reports;
        ``action``, the total S, or None where it is not known; ``observables`` of ``[measure]``,
        among them S per site as ``action_density``.
    """
    reports = assembly.reports()
    kernels = {
        name: _of_kernel(leaf, assembly.timed[reports[name].update].seconds)
        for name, leaf in stepped.infos.items()
    }
    known = config.action.is_known
    return {
        "acceptance": {name: values["acceptance"] for name, values in kernels.items()},
        "kernels": kernels,
        "action": float(action_of(config.action, stepped.state)[0]) if known else None,
        "observables": {
            "action_density" if entry.label == "action" else entry.label: measure(
                entry, assembly.actions, stepped.state
            )[0, 0].tolist()
            for entry in config.observables
        },
    }


def _of_kernel(leaf: Info, seconds: float) -> dict[str, Any]:
    """Return what one kernel did: shares, seconds, and the values that it reports, in order."""
    found: dict[str, Any] = {
        "acceptance": float(leaf.is_accepted.double().mean()),
        "seconds": seconds,
    }
    return found | {key: numbers_of(value) for key, value in leaf.values.items()}


def numbers_of(value: Tensor) -> list[float | None]:
    """Return what a kernel reports as JSON can hold it: None for what is not finite."""
    return [one if math.isfinite(one) else None for one in value.double().flatten().tolist()]


def check_finite(field: Tensor) -> None:
    """Raise NonFiniteStateError with the first chain whose updated field is not finite."""
    finite = torch.isfinite(field.flatten(1)).all(1)
    if not bool(finite.all()):
        chain = int((~finite).nonzero()[0])
        raise NonFiniteStateError(f"the updated field of chain {chain} is not finite", chain)


def composed(kernel: Kernel | Sequence[Kernel]) -> Cycle | Mixture:
    """Return a kernel, or several that are applied in turn, as one whose parts have names.

    Raises:
        ConfigError: something else is given.
    """
    if isinstance(kernel, Cycle | Mixture):
        return kernel
    kernels = [kernel] if isinstance(kernel, Kernel) else list(kernel)
    for one in kernels:
        if not isinstance(one, Kernel):
            raise ConfigError(
                f"{one!r} is no flowmc.kernels.Kernel: give a kernel, or a list of kernels"
            )
    if not kernels:
        raise ConfigError("no kernel is given: give one, or a list of kernels")
    return Cycle(kernels)


def action_of_kernel(kernel: Kernel) -> Action | None:
    """Return the action of a kernel, or of the first one in it that has one; None without any."""
    own = getattr(kernel, "action", None)
    if isinstance(own, Action):
        return own
    inner = [getattr(kernel, "kernel", None), *getattr(kernel, "parts", {}).values()]
    found = (action_of_kernel(part) for part in inner if isinstance(part, Kernel))
    return next((action for action in found if action is not None), None)
