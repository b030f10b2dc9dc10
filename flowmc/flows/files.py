"""Flow files: weights and a card that says what they are, in one safetensors file.

The card is JSON text in the header of the file, so that it can be read without torch (a safetensors
file starts with the length of its header, 8 bytes little-endian, and the header is JSON).  It holds

========== =========================================================================
format     1
kind       "sampler" (a prior and a flow), "exchange" (a flow between two theories) or "local" (a
           prior and a flow of a block, given what surrounds it)
flow       ``{name, parameters}`` as in a training configuration
prior      ``{name, parameters}``; samplers and local flows.  Samplers that it starts from are
           tables like this card (:meth:`~flowmc.flows.Prior.card_parameters`)
block      extents of the block; local flows only
mixture    "sign_flip" for a sampler that is averaged over it (:class:`SignMixture`); else absent
theory     ``{action, group, lattice, couplings}``, and ``settings`` of actions that have any
from, to   all couplings of both ends; exchange flows only
precision  32 or 64, of the weights
parameters number of weights
training   ``{config, steps, seconds}``
measured   what the flow achieved: ess, acceptance, swap_rate, ...
command    how it was made
flowmc     version that wrote the file
========== =========================================================================

Nothing here is ever unpickled.  A flow named "package.module:Name" imports that installed package.
"""

from __future__ import annotations

import inspect
import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flowmc import __version__, zoo
from flowmc.actions.base import Action
from flowmc.actions.theory import check_couplings
from flowmc.flows.base import Flow, FlowModel, Inverse, Prior
from flowmc.flows.blocks import Block
from flowmc.flows.cards import card_action, flat
from flowmc.flows.conditional import BetweenCouplings, ConditionalContinuousFlow
from flowmc.flows.local import ConditionalFlow, ConditionalPrior, LocalFlowModel
from flowmc.flows.mixture import SignMixture, check_even_action
from flowmc.registry import ConfigError, build, nearest, parameters, resolve

__all__ = [
    "FORMAT",
    "FlowFileError",
    "LoadedFlow",
    "LoadedLocalFlow",
    "atomic_save",
    "build_flow",
    "build_local_model",
    "build_model",
    "build_prior",
    "check_flow_fits",
    "check_lattice",
    "flow_path",
    "load_flow",
    "load_local_flow",
    "orient",
    "read_card",
    "read_tensors",
    "save_flow",
]

FORMAT = 1
_KEY = "flowmc"


class FlowFileError(ConfigError):
    """A flow file that is missing, damaged or made for something else."""


@dataclass(frozen=True)
class LoadedFlow:
    """A flow file in memory.

    Attributes:
        card: as in the module docstring.
        action: the theory of the card, on the lattice the flow was built for.
        flow: the map.
        model: prior and flow of a sampler, None for an exchange flow.
    """

    card: dict[str, Any]
    action: Action
    flow: Flow
    model: FlowModel | None

    @property
    def ends(self) -> tuple[Action, Action]:
        """The two theories of an exchange flow: ``(from, to)``.

        Raises:
            FlowFileError: for a sampler.
        """
        if self.model is not None:
            raise FlowFileError("a sampler has one theory, not two: this needs an exchange flow")
        first = check_couplings(self.action, self.card["from"], "the card of the flow: from")
        return first, check_couplings(self.action, self.card["to"], "the card of the flow: to")


@dataclass(frozen=True)
class LoadedLocalFlow:
    """A local flow file in memory.

    Attributes:
        card: as in the module docstring.
        action: the theory of the card, on the lattice it was trained on.
        model: prior and flow of a block.
    """

    card: dict[str, Any]
    action: Action
    model: LocalFlowModel


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
    extents = build(_block_keys, tables["block"], f"{where}[block]")
    try:
        block = Block.of(action, extents)
    except ConfigError as error:
        raise ConfigError(f"{where}[block]: {error}") from error
    offered = {"block": block}
    prior = _build("priors", tables["prior"], action, f"{where}[prior]", ConditionalPrior, offered)
    flow = _build("flows", tables["flow"], action, f"{where}[flow]", ConditionalFlow, offered)
    return LocalFlowModel(block, prior, flow)


def _block_keys(*, extents: list[int]) -> list[int]:
    return extents


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
    try:
        component = resolve(kind, name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    # A component asks for what it needs of the theory by the name of its positional parameters.
    offered = {"action": action, "lattice": action.lattice, "group": action.group, **(more or {})}
    positional = []
    for parameter in inspect.signature(component).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            if parameter.name in offered:
                positional.append(offered[parameter.name])
            elif parameter.default is parameter.empty and parameter.name == "block":
                raise ConfigError(
                    f"{where}: {name} is of local updates: add a table [block] with its extents, "
                    "or choose another one"
                )
            elif parameter.default is parameter.empty:
                raise ConfigError(
                    f"{where}: {name} takes {parameter.name!r} by position, but a configuration "
                    "can only supply action, lattice and group; make it keyword-only"
                )
            else:
                break
    known = {"lambda" if key == "lam" else key for key in parameters(component)}
    for key in arguments:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, {'name', *known})}")
    try:
        built = build(component, arguments, where, *positional)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(built, contract):
        hint = ""
        if more:
            hint = (
                ": with [block] use one for local updates, such as block_coupling or block_gaussian"
            )
        raise ConfigError(f"{where}: name = {name!r} gives no {contract.__name__}{hint}")
    return built


def save_flow(
    path: str | os.PathLike, model: FlowModel | Flow | LocalFlowModel, card: Mapping[str, Any]
) -> None:
    """Write a flow file atomically.

    ``format``, ``parameters``, ``precision`` and ``flowmc`` of the card are filled in.

    Args:
        path: usually ``*.safetensors``.
        model: a :class:`FlowModel` (kind "sampler"), a :class:`Flow` (kind "exchange") or a
            :class:`~flowmc.flows.local.LocalFlowModel` (kind "local").
        card: the rest of the card; see the module docstring.

    Raises:
        ValueError: if the kind of the card does not match the model.
    """
    kind = "sampler" if isinstance(model, FlowModel) else "exchange"
    if isinstance(model, LocalFlowModel):
        kind = "local"
    if card.get("kind", kind) != kind:
        raise ValueError(f"the card says {card['kind']!r}, but this is a {kind}")
    weights = dict(model.state_dict())
    full = {
        "format": FORMAT,
        **card,
        "kind": kind,
        "precision": 64 if _precision(weights) == torch.float64 else 32,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flowmc": __version__,
    }
    atomic_save(path, weights, full)


def load_flow(
    source: str | os.PathLike,
    *,
    lattice: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> LoadedFlow:
    """Read a flow file, or a flow of the zoo.

    Args:
        source: a path, or "zoo:NAME".
        lattice: other extents than those of the card, for flows whose weights do not depend on
            the size of the lattice (:attr:`Flow.transfers_to_other_lattices`).
        device: where to put the weights.

    Raises:
        FlowFileError: if the file is missing, is no flow file, its weights do not fit its card, or
            the flow cannot be moved to the lattice.
        ConfigError: if the card asks for an action, flow or prior that is not installed.
    """
    path = flow_path(source)
    tensors, card = read_tensors(path)
    _check_card(card, path)
    if card["kind"] == "local":
        raise FlowFileError(
            f"{path} is a local flow, which proposes a block given what surrounds it: only the "
            "kernel local_flow can use it"
        )
    if lattice is not None:
        check_lattice(card, tuple(lattice))
        card = {**card, "theory": {**card["theory"], "lattice": list(lattice)}}
    where = f"the card of {path}"
    action = card_action(card, where)
    flow = build_flow(flat(card["flow"]), action, f"{where}: flow")
    model: FlowModel | Flow = flow
    if card["kind"] == "sampler":
        prior = build_prior(flat(card["prior"]), action, f"{where}: prior")
        model = build_model(prior, flow, action, card.get("mixture"), where)
    _load_weights(model, tensors, card, path)
    model.to(device).eval()
    return LoadedFlow(card, action, flow, model if isinstance(model, FlowModel) else None)


def load_local_flow(
    source: str | os.PathLike, *, device: torch.device | str = "cpu"
) -> LoadedLocalFlow:
    """Read the file of a local flow, or one of the zoo; it serves any lattice.

    Raises:
        FlowFileError: as :func:`load_flow`, and for a flow of another kind.
        ConfigError: as :func:`load_flow`.
    """
    path = flow_path(source)
    tensors, card = read_tensors(path)
    _check_card(card, path)
    if card["kind"] != "local":
        raise FlowFileError(
            f"{path} is of kind {card['kind']!r}: local updates need a flow trained with [block]"
        )
    where = f"the card of {path}"
    action = card_action(card, where)
    tables = {key: flat(card[key]) for key in ("prior", "flow")}
    tables["block"] = {"extents": card["block"]}
    model = build_local_model(tables, action, f"{where}: ")
    _load_weights(model, tensors, card, path)
    model.to(device).eval()
    return LoadedLocalFlow(card, action, model)


def flow_path(source: str | os.PathLike) -> Path:
    """Return the path of a flow file, or of "zoo:NAME"."""
    return zoo.path(str(source)) if str(source).startswith(zoo.PREFIX) else Path(source)


def _load_weights(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], card: Mapping[str, Any], path: Path
) -> None:
    model.to(_precision(tensors))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).split("\n\t", 1)[-1].strip()
        raise FlowFileError(
            f"the weights in {path} do not fit the flow {card['flow']['name']!r} of its card: "
            f"{reason}"
        ) from error


def check_flow_fits(
    card: Mapping[str, Any], action: Action, *, same_couplings: bool = True
) -> None:
    """Raise unless the sampler, or the local flow, of a card was made for ``action``.

    Args:
        card: of a sampler or a local flow.
        action: the target it is to be used on.
        same_couplings: False accepts a flow trained at other couplings: proposals stay exact and
            are only accepted less often.  A conditional flow is for all couplings of its range, and
            is refused outside of it.

    Raises:
        FlowFileError: naming both theories.
    """
    if card["kind"] not in ("sampler", "local"):
        raise FlowFileError(
            "this is an exchange flow, which carries one theory to another: proposals need a "
            "sampler (a flow with a prior)"
        )
    if (
        not _same_theory(card, action)
        or not _in_range(card, action)
        or (same_couplings and not _same_couplings(_fixed_couplings(card, action), action))
    ):
        raise FlowFileError(
            f"this is a flow for {_describe_card(card)}, but the theory is "
            f"{_describe_action(action)}"
        )


def orient(card: Mapping[str, Any], flow: Flow, action_a: Action, action_b: Action) -> Flow:
    """Return the map from ``action_a`` to ``action_b``: the flow of a card, or its inverse.

    The sampler of a conditional flow gives the map between any two couplings of its range.

    Raises:
        FlowFileError: naming both pairs, if the flow joins other theories.
    """
    if card["kind"] == "sampler" and _range(card) is not None:
        for action in (action_a, action_b):
            check_flow_fits(card, action)
        return BetweenCouplings(flow, action_a, action_b)
    if card["kind"] != "exchange":
        raise FlowFileError(
            "this flow is a sampler (it starts from a prior): an exchange needs a flow trained "
            "with [exchange]"
        )
    if _same_theory(card, action_a) and _same_theory(card, action_b):
        ends = card["from"], card["to"]
        if _same_couplings(ends[0], action_a) and _same_couplings(ends[1], action_b):
            return flow
        if _same_couplings(ends[1], action_a) and _same_couplings(ends[0], action_b):
            return Inverse(flow)
    theory = card["theory"]
    source, target = ({**theory, "couplings": card[end]} for end in ("from", "to"))
    raise FlowFileError(
        f"this flow carries {_describe(source)} to {_describe(target)}, but the replicas are "
        f"{_describe_action(action_a)} and {_describe_action(action_b)}"
    )


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """Return the card of a flow file from its header alone.

    Raises:
        FlowFileError: if the file is missing or is no flow file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            # A header is a few kilobytes; other files read as lengths of exabytes.
            if length > 100_000_000:
                raise ValueError("header length out of range")
            header = json.loads(file.read(length))
        card = json.loads(header["__metadata__"][_KEY])
    except FileNotFoundError as error:
        raise FlowFileError(f"there is no flow file {path}") from error
    except OSError as error:
        raise FlowFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise FlowFileError(
            f"{path} is not a flow file (a safetensors file with a card, written by flowmc train)"
        ) from error
    if not isinstance(card, dict):
        raise FlowFileError(f"{path} is not a flow file: its card is not a table")
    return card


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON metadata of a file written by :func:`atomic_save`.

    Raises:
        FlowFileError: as :func:`read_card`, and if the file is truncated.
    """
    metadata = read_card(path)
    try:
        mapped = safetensors.torch.load_file(str(path))
        # Copied out of the mapped file: there tensors are aligned to 8 bytes only, and vectorised
        # complex arithmetic on a view of such a tensor crashes.
        return {key: tensor.clone() for key, tensor in mapped.items()}, metadata
    except (safetensors.SafetensorError, OSError) as error:
        raise FlowFileError(f"{path} is damaged: {error}") from error


def atomic_save(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata; a kill at any instant leaves the old file or the new one."""
    path = Path(path)
    # Cloned: safetensors refuses tensors that share memory, such as views of tied weights.
    plain = {key: tensor.detach().to("cpu").contiguous().clone() for key, tensor in tensors.items()}
    # One metadata key: with several, their order in the file would not be reproducible.
    text = json.dumps(metadata, ensure_ascii=False)
    data = safetensors.torch.save(plain, metadata={_KEY: text})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a flow file is as readable as the user's umask says.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _check_card(card: Mapping[str, Any], path: Path) -> None:
    if "checkpoint" in card:
        raise FlowFileError(
            f"{path} is a training checkpoint, not a flow file: the flow is written at the end of "
            "flowmc train"
        )
    if card.get("format") != FORMAT:
        raise FlowFileError(
            f"{path} has flow-file format {card.get('format')!r}; this flowmc reads format "
            f"{FORMAT}: use another version"
        )
    needed = ["kind", "flow", "theory", "prior"]
    if card.get("kind") == "exchange":
        needed = ["kind", "flow", "theory", "from", "to"]
    elif card.get("kind") == "local":
        needed.append("block")
    missing = [key for key in needed if key not in card]
    if missing:
        raise FlowFileError(f"the card of {path} lacks {', '.join(missing)}: not a usable flow")


def check_lattice(card: Mapping[str, Any], lattice: tuple[int, ...]) -> None:
    """Raise ``FlowFileError`` unless the flow of a card can be used on another lattice."""
    own = tuple(card["theory"]["lattice"])
    if lattice == own:
        return
    if len(lattice) != len(own) or not _transfers(card):
        raise FlowFileError(
            f"this {card['flow']['name']} flow was trained on a {'x'.join(map(str, own))} lattice "
            f"and cannot be used on {'x'.join(map(str, lattice))}: train one for that lattice"
        )


def _transfers(card: Mapping[str, Any]) -> bool:
    component = resolve("flows", card["flow"]["name"])
    return bool(getattr(component, "transfers_to_other_lattices", False))


def _same_theory(card: Mapping[str, Any], action: Action) -> bool:
    theory = card["theory"]
    lattice = tuple(theory["lattice"])
    same_lattice = lattice == action.lattice or (
        len(lattice) == len(action.lattice) and _transfers(card)
    )
    same_settings = dict(theory.get("settings", {})) == dict(action.settings)
    known = theory["group"] == action.group.name and same_lattice and same_settings
    return known and _same_action(theory["action"], action)


def _same_action(name: str, action: Action) -> bool:
    if name == action.name:
        return True
    component = resolve("actions", name)
    return isinstance(component, type) and type(action) is component


def _same_couplings(couplings: Mapping[str, float], action: Action) -> bool:
    own = action.parameters
    if set(couplings) != set(own):
        return False
    # Written numbers survive JSON exactly; the tolerance is for couplings computed in two ways.
    return all(
        abs(couplings[key] - own[key]) <= 1e-12 * max(1.0, abs(own[key])) for key in couplings
    )


def _range(card: Mapping[str, Any]) -> tuple[str, float, float] | None:
    """Return coupling and range of a conditional flow."""
    component = resolve("flows", card["flow"]["name"])
    if not (isinstance(component, type) and issubclass(component, ConditionalContinuousFlow)):
        return None
    given = card["flow"]["parameters"]
    return given["coupling"], given["low"], given["high"]


def _in_range(card: Mapping[str, Any], action: Action) -> bool:
    if (conditional := _range(card)) is None:
        return True
    coupling, low, high = conditional
    return low <= action.parameters[coupling] <= high


def _fixed_couplings(card: Mapping[str, Any], action: Action) -> dict[str, float]:
    """Return the couplings of a card; that of a conditional flow is the action's."""
    couplings = dict(card["theory"]["couplings"])
    if (conditional := _range(card)) is not None:
        couplings[conditional[0]] = action.parameters[conditional[0]]
    return couplings


def _describe_card(card: Mapping[str, Any]) -> str:
    text = _describe(card["theory"])
    if (conditional := _range(card)) is not None:
        coupling, low, high = conditional
        text += f" (conditional: {coupling} = {low:g} ... {high:g})"
    return text


def _describe(theory: Mapping[str, Any]) -> str:
    couplings = ", ".join(
        [
            *(f"{key} = {value:g}" for key, value in theory["couplings"].items()),
            *(f"{key} = {value}" for key, value in theory.get("settings", {}).items()),
        ]
    )
    group = "" if theory["group"] == "R" else f" {theory['group']}"
    size = "x".join(map(str, theory["lattice"]))
    return f"{theory['action']}{group} on {size} with {couplings or 'fixed couplings'}"


def _describe_action(action: Action) -> str:
    return _describe(
        {
            "action": action.name or type(action).__name__,
            "group": action.group.name,
            "lattice": action.lattice,
            "couplings": action.parameters,
            "settings": action.settings,
        }
    )


def _precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    for tensor in tensors.values():
        if tensor.is_floating_point() or tensor.is_complex():
            double = tensor.dtype in (torch.float64, torch.complex128)
            return torch.float64 if double else torch.float32
    return torch.float64
