"""From the tables of a configuration, or of a card, to flows, priors and samplers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import ConditionalFlow, ConditionalPrior, LocalFlowModel
from flowmc.flows.mixture import SignMixture, check_even_action
from flowmc.flows.models import FlowModel, Prior
from flowmc.memory import lacks_memory, memory_here
from flowmc.registry import (
    ConfigError,
    build,
    check_known,
    parameters,
    positional_of,
    resolve,
    written,
)

__all__ = ["build_flow", "build_local_model", "build_model", "build_prior"]

# Of layers, steps, channels, bins, ...
_LARGEST_COUNT = 65536
# The least that a flow or prior keeps of a site: masks or momenta, and a field on its way.
_BYTES_PER_SITE = 512


@dataclass(frozen=True, kw_only=True)
class PartTable:
    """``[flow]`` or ``[prior]``: which one; its own keys stand beside.

    Attributes:
        name: of the flow or prior, or "package.module:Name".
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """``[block]``: what a local flow updates.

    Attributes:
        extents: of the block of sites, x first.
    """

    extents: list[int]


def build_flow(table: Mapping[str, Any], action: Action, where: str = "[flow]") -> Flow:
    """Return the flow of a table ``{name, ...its parameters}`` for the fields of ``action``.

    Raises:
        ConfigError: naming the key that is missing, unknown or unusable.
    """
    return _build("flows", table, action, where, Flow)


def build_prior(table: Mapping[str, Any], action: Action, where: str = "[prior]") -> Prior:
    """Return the prior of a table ``{name, ...its parameters}``; as :func:`build_flow`."""
    return _build("priors", table, action, where, Prior)


def build_model(
    prior: Prior, flow: Flow, action: Action, mixture: str | None = None, where: str = "[mixture]"
) -> FlowModel:
    """Return the sampler of a prior and a flow, averaged over a symmetry of the theory if any.

    Args:
        prior: where z is drawn.
        flow: the map.
        action: the theory.
        mixture: None or "sign_flip".
        where: how to name the place of ``mixture`` in messages.

    Raises:
        ConfigError: for an unknown symmetry, and one that the theory does not have.
    """
    if mixture is None:
        return FlowModel(prior, flow)
    if mixture != "sign_flip":
        raise ConfigError(f"{where}: unknown mixture {mixture!r}; known: sign_flip")
    try:
        check_even_action(action)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return SignMixture(prior, flow)


def build_local_model(tables: Mapping[str, Any], action: Action, where: str = "") -> LocalFlowModel:
    """Return the local flow model of the tables ``block``, ``prior`` and ``flow``.

    Args:
        tables: as in a training configuration: ``block = {extents = [...]}``.
        action: the theory; gives the width of the collar.
        where: put before the names of the tables in messages.

    Raises:
        ConfigError: naming the table and key that is missing, unknown or unusable.
    """
    table = build(BlockTable, tables["block"], f"{where}[block]")
    try:
        block = Block.of(action, table.extents)
    except ConfigError as error:
        raise ConfigError(f"{where}[block]: {error}") from error
    offered = {"block": block}
    prior = _build("priors", tables["prior"], action, f"{where}[prior]", ConditionalPrior, offered)
    flow = _build("flows", tables["flow"], action, f"{where}[flow]", ConditionalFlow, offered)
    return LocalFlowModel(block, prior, flow)


def _check_sizes(value: Any, where: str, key: str = "") -> None:
    """Refuse counts that no flow has, before layers are made for days."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            _check_sizes(one, where, str(name))
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_sizes(one, where, key)
    elif isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        raise ConfigError(f"{where}: {key} = {value}: should be at most {_LARGEST_COUNT}")


def _check_memory(arguments: Mapping[str, Any], action: Action, where: str) -> None:
    """Refuse what this machine cannot hold: weights by the three largest counts, and sites."""
    counts = sorted(_counts(arguments), reverse=True)[:3]
    for what, needed in (
        (f"sizes of {' x '.join(map(str, counts))}", 8 * math.prod(counts)),
        (f"{action.volume} sites", _BYTES_PER_SITE * action.volume),
    ):
        if needed > memory_here():
            raise ConfigError(
                f"{where}: {what} need at least {needed / 1e9:.3g} GB of memory, this machine has "
                f"{memory_here() / 1e9:.3g} GB"
            )


def _counts(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _counts(one)
    elif isinstance(value, int) and value > 1:
        yield value


def _build(
    kind: str,
    table: Mapping[str, Any],
    action: Action,
    where: str,
    contract: type,
    more: Mapping[str, Any] | None = None,
) -> Any:
    arguments = dict(table)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: missing key 'name'")
    component = resolve(kind, name, where)
    # A component asks for what it needs of the theory by the name of its positional parameters.
    offered = {"action": action, "lattice": action.lattice, "group": action.group, **(more or {})}
    positional = []
    for asked, default in positional_of(component).items():
        if asked in offered:
            positional.append(offered[asked])
        elif default is not inspect.Parameter.empty:
            break
        elif asked == "block":
            raise ConfigError(
                f"{where}: {name} is of local updates: add a table [block] with its extents, or "
                "choose another one"
            )
        else:
            raise ConfigError(
                f"{where}: {name} takes {asked!r} by position, but a configuration can only "
                "supply action, lattice and group; make it keyword-only"
            )
    _check_sizes(arguments, where)
    _check_memory(arguments, action, where)
    check_known(arguments, [*parameters(PartTable), *written(parameters(component))], where)
    try:
        built = build(component, arguments, where, *positional)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from error
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"{where}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise ConfigError(
            f"{where}: {name} needs more memory for this lattice than there is: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(built, contract):
        hint = ""
        if more:
            hint = (
                ": with [block] use one for local updates, such as block_coupling or block_gaussian"
            )
        raise ConfigError(f"{where}: name = {name!r} gives no {contract.__name__}{hint}")
    return built
