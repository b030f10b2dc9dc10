"""How far the measurement of a free energy is, in one file that is replaced atomically.

``checkpoint.safetensors`` holds all rows (those of one name and key one after the other), the state
of the chains that are on their way, and in the JSON of its header the lengths of the rows, what the
kernels have tuned, the digest of the configuration and that of the tensors.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmc.flows.cards.files import FlowFileError, atomic_save, read_tensors
from flowmc.free_energy.rows import ChainsOnTheirWay, Row, Rows
from flowmc.kernels import Carried, State
from flowmc.registry import ConfigError

__all__ = ["Paused", "Progress"]

LAYOUT = 1
_CARRIED = {False: "carried", True: "stays"}


class Paused(Exception):
    """The measurement was asked to stop, and has saved where it is.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Progress(Rows):
    """Rows measured so far, and when to save them and to stop.

    Args:
        path: the checkpoint; None keeps everything in memory.
        every: seconds between checkpoints.
        stop: asked after every row and every update of chains; gives the reason to stop there, if
            there is one.

    Attributes:
        identity: digests of what must not change before a resume, by what it is.
        resumes: whether an earlier process may have begun.
    """

    path: Path | None = None
    every: float = float("inf")
    stop: Callable[[], str | None] = lambda: None
    identity: dict[str, str] = field(default_factory=dict, init=False)
    resumes: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__init__()
        self._saved = time.monotonic()

    @property
    def _where(self) -> str:  # type: ignore[override]
        return f"{self.path}: "

    def identify(self, what: str, digest: str) -> None:
        """Say what is measured.

        Raises:
            ConfigError: the checkpoint is of something else.
        """
        if self.identity.setdefault(what, digest) != digest:
            raise ConfigError(
                f"{self.path} was measured with another {what}: restore it to resume, or choose "
                "another --output"
            )

    def look(self) -> None:
        """Save if it is time to, and stop if that is wanted.

        Raises:
            Paused: it is.
        """
        reason = self.stop()
        if reason is not None:
            self.pause(reason)
        if time.monotonic() - self._saved >= self.every:
            self.save()

    def pause(self, reason: str) -> None:
        """Save and raise ``Paused``."""
        self.save()
        raise Paused(reason)

    def save(self) -> None:
        """Write the checkpoint, if there is a path for one.

        Raises:
            OSError: as from writing; the old checkpoint is then untouched.
        """
        self._saved = time.monotonic()
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        lengths: dict[str, dict[str, list[int]]] = {}
        for name, rows in self._rows.items():
            lengths[name] = {}
            for key in rows[0] if rows else ():
                parts = [row[key] for row in rows]
                tensors[f"rows/{name}/{key}"] = torch.cat(parts)
                lengths[name][key] = [len(part) for part in parts]
        chains = {}
        for name, here in self._chains.items():
            chains[name] = {"updates": here.updates, "tuning": here.tuning}
            for key, value in _tensors_of(here).items():
                tensors[f"chains/{name}/{key}"] = value
        content = {
            "layout": LAYOUT,
            "identity": self.identity,
            "digest": _digest(tensors),
            "rows": lengths,
            "chains": chains,
            "seconds": self.seconds,
        }
        atomic_save(self.path, tensors, {"free_energy": content})
        self._saved = time.monotonic()

    def load(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            ConfigError: it is damaged, or of another measurement.
        """
        self.resumes = True
        if self.path is None or not self.path.exists():
            return
        try:
            tensors, card = read_tensors(self.path)
            content = card["free_energy"]
            if content["layout"] != LAYOUT or content["digest"] != _digest(tensors):
                raise ValueError("its digest or layout is not what it should be")
            self.identity = dict(content["identity"])
            self.seconds_before = float(content["seconds"])
            self._rows = {
                name: _split(name, lengths, tensors) for name, lengths in content["rows"].items()
            }
            self._chains = {
                name: _chains_of(name, entry, tensors) for name, entry in content["chains"].items()
            }
        except (FlowFileError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self.path} is not a sound checkpoint ({error}): remove it to measure again"
            ) from error


def _tensors_of(here: ChainsOnTheirWay) -> dict[str, Tensor]:
    caches = {f"log_q/{key}": value for key, value in here.state.log_q.items()}
    caches |= {f"{_CARRIED[c.stays]}/{key}": c.value for key, c in here.state.carried.items()}
    action = {} if here.state.action is None else {"action": here.state.action}
    return {"field": here.state.field, "random": here.random, **action, **caches}


def _chains_of(
    name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> ChainsOnTheirWay:
    prefix = f"chains/{name}/"
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

    def below(folder: str) -> dict[str, Tensor]:
        return {k.removeprefix(folder): t for k, t in own.items() if k.startswith(folder)}

    carried = {
        key: Carried(value, stays)
        for stays, folder in _CARRIED.items()
        for key, value in below(f"{folder}/").items()
    }
    state = State(own["field"], own.get("action"), below("log_q/"), carried)
    return ChainsOnTheirWay(entry["updates"], state, own["random"], entry["tuning"])


def _split(name: str, lengths: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> list[Row]:
    columns = {key: tensors[f"rows/{name}/{key}"].split(sizes) for key, sizes in lengths.items()}
    return [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
