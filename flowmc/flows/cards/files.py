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

Nothing here is ever unpickled, and no module is imported because a card names it, unless the user
has named it, too (:func:`~flowmc.registry.named_by`).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from flowmc_adapters import atomic_write
from torch import Tensor

from flowmc import __version__, zoo
from flowmc.actions.base import Action
from flowmc.actions.theory import check_couplings
from flowmc.flows.base import Flow
from flowmc.flows.cards.building import build_flow, build_local_model, build_model, build_prior
from flowmc.flows.cards.matching import check_lattice
from flowmc.flows.cards.tables import FlowFileError, card_action, check_parts, flat
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.models import FlowModel
from flowmc.flows.verification import verify
from flowmc.registry import ConfigError, named_by

__all__ = [
    "FORMAT",
    "FlowFileError",
    "LoadedFlow",
    "LoadedLocalFlow",
    "atomic_save",
    "flow_path",
    "load_flow",
    "load_local_flow",
    "read_card",
    "read_tensors",
    "save_flow",
]

FORMAT = 1
_KEY = "flowmc"


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


def save_flow(
    path: str | os.PathLike, model: FlowModel | Flow | LocalFlowModel, card: Mapping[str, Any]
) -> None:
    """Write a flow file atomically.

    ``format``, ``parameters``, ``precision`` and ``flowmc`` of the card are filled in.

    Args:
        path: usually ``*.safetensors``.
        model: a :class:`FlowModel` (kind "sampler"), a :class:`Flow` (kind "exchange") or a
            :class:`~flowmc.flows.local.models.LocalFlowModel` (kind "local").
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
        ConfigError: if the card asks for an action, flow or prior that is not installed, or for a
            user's whose map and density are not those of each other.
    """
    path = flow_path(source)
    tensors, card = read_tensors(path)
    _check_card(card, path)
    if card["kind"] == "local":
        raise FlowFileError(
            f"{path} is a local flow, which proposes a block given what surrounds it: only the "
            "kernel local_flow can use it"
        )
    with _building(card, path) as where:
        if lattice is not None:
            check_lattice(card, tuple(lattice))
            card = {**card, "theory": {**card["theory"], "lattice": list(lattice)}}
        action = card_action(card, where)
        flow = build_flow(flat(card["flow"]), action, f"{where}: flow")
        model: FlowModel | Flow = flow
        if card["kind"] == "sampler":
            prior = build_prior(flat(card["prior"]), action, f"{where}: prior")
            model = build_model(prior, flow, action, card.get("mixture"), where)
        _load_weights(model, tensors, card, path)
    verify(model, action, str(path))
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
    with _building(card, path) as where:
        action = card_action(card, where)
        tables = {key: flat(card[key]) for key in ("prior", "flow")}
        tables["block"] = {"extents": card["block"]}
        model = build_local_model(tables, action, f"{where}: ")
        _load_weights(model, tensors, card, path)
    verify(model, action, str(path))
    model.to(device).eval()
    return LoadedLocalFlow(card, action, model)


@contextmanager
def _building(card: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Build what a card describes; yield how to name the card in messages.

    No module is imported for it, and whatever components make of parameters that they were never
    meant to have is an error of the file.
    """
    where = f"the card of {path}"
    try:
        with named_by(where):
            yield where
    except ConfigError:
        raise
    except (Exception, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FlowFileError(
            f"{where} cannot be made into a flow: {type(error).__name__}: {reason}"
        ) from error


def flow_path(source: str | os.PathLike) -> Path:
    """Return the path of a flow file, or of "zoo:NAME"."""
    return zoo.path(str(source)) if str(source).startswith(zoo.PREFIX) else Path(source)


def _load_weights(
    model: torch.nn.Module, tensors: Mapping[str, Tensor], card: Mapping[str, Any], path: Path
) -> None:
    model.to(_precision(tensors))
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FlowFileError(f"the weights in {path} are damaged: {name!r} is not finite")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t", 1)[-1].split())[:1000]
        raise FlowFileError(
            f"the weights in {path} do not fit the flow {card['flow']['name']!r} of its card: "
            f"{reason}"
        ) from error


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
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
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
        raise FlowFileError(f"{path} is damaged: {' '.join(str(error).split())}") from error


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
    with atomic_write(path) as file:
        file.write(data)


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
    if card["kind"] not in ("sampler", "exchange", "local"):
        raise FlowFileError(f"the card of {path} has the unknown kind {card['kind']!r}")
    check_parts(card, f"the card of {path}")


def _precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    for tensor in tensors.values():
        if tensor.is_floating_point() or tensor.is_complex():
            double = tensor.dtype in (torch.float64, torch.complex128)
            return torch.float64 if double else torch.float32
    return torch.float64
