"""The run directory: claimed by one process, started once, resumed only as what it is."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import platform
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flowmc_adapters import atomic_write

from flowmc import __version__
from flowmc.chains.config import RunConfig
from flowmc.chains.storage.measurements import MeasurementFile
from flowmc.config.entries import changed_keys
from flowmc.config.toml_text import toml_text
from flowmc.jobs.lock import Lock
from flowmc.jobs.own_files import naming, read_text
from flowmc.registry import BUILTIN, ConfigError, resolve

__all__ = ["RunDirectory", "environment", "flows_entry", "identity_of"]

# What commands write that take no lock.
_UNLOCKED = ("report.html", "results.json.gz")
# A file being written by a process that nothing keeps out is written to all the time.
_ABANDONED = 3600.0

# Keys that may differ when a run is resumed; run.updates may only grow.
_FREE_KEYS = ("run.time_limit", "run.checkpoint_every", "run.report", "run.updates")


class RunDirectory:
    """Paths and bookkeeping of one run directory.

    Args:
        path: the directory; made by :meth:`claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.scratch = path / "external"
        self.provenance = path / "provenance.json"
        self.measurements = path / "measurements.h5"
        self.checkpoint = path / "checkpoint.h5"
        self.log = path / "log.jsonl"
        self.ensemble = path / "ensemble"
        self._lock = Lock(path / ".lock")
        self._made: list[Path] = []

    @property
    def holds_a_run(self) -> bool:
        """Whether anything of a run is here."""
        own = (self.config, self.measurements, self.checkpoint, self.log, self.ensemble)
        return any(path.exists() for path in own)

    def claim(self) -> None:
        """Make the directory and keep other processes out until :meth:`release`.

        Raises:
            ConfigError: another process is running here.
            OSError: the directory cannot be made.
        """
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._made = missing
        self._lock.acquire(
            f"another flowmc process is running in {self.path}: wait for it, or choose another "
            "--output"
        )
        self._remove_leftovers()

    @property
    def lock_works(self) -> bool:
        """Whether the file system keeps a second process out of the claimed directory."""
        return self._lock.works

    @property
    def is_in_place(self) -> bool:
        """Whether the claimed directory is still where it was."""
        return self._lock.is_in_place

    def release(self) -> None:
        """Let other processes in; remove what :meth:`claim` has made if nothing came into it."""
        if not self._lock.is_in_place or self.holds_a_run:
            self._lock.release()
            return
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            for path in self._made:
                path.rmdir()

    def _remove_leftovers(self) -> None:
        """Remove what a kill has left of files that were being written, and no other process's."""
        now = self._lock.path.stat().st_mtime
        for leftover in self.path.rglob(".*.partial"):
            with contextlib.suppress(OSError):
                ours = self._lock.works and not leftover.name[1:].startswith(_UNLOCKED)
                if ours or now - leftover.stat().st_mtime > _ABANDONED:
                    leftover.unlink()

    def write_config(self, resolved: Mapping[str, Any]) -> None:
        """Write the resolved configuration."""
        _write_text(self.config, toml_text(resolved))

    def write_provenance(
        self,
        resolved: Mapping[str, Any],
        device: torch.device,
        content: Mapping[str, Any],
        *,
        event: str = "started",
    ) -> None:
        """Write what it was made of and when, for people and for a resume.

        Args:
            resolved: all tables of the configuration.
            device: where fields live.
            content: further entries.
            event: whose time this is.
        """
        provenance = {
            **environment(device),
            "command": shlex.join(sys.argv),
            event: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "config_sha256": hashlib.sha256(toml_text(resolved).encode()).hexdigest(),
            **content,
        }
        _write_text(self.provenance, json.dumps(provenance, indent=2) + "\n")

    def read_provenance(self) -> dict[str, Any]:
        """Return the content of ``provenance.json``.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            found = json.loads(read_text(self.provenance))
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
            return found
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(self.provenance, error) from error

    @staticmethod
    def _unreadable(path: Path, error: Exception) -> ConfigError:
        text = getattr(error, "strerror", None) or error
        return ConfigError(
            f"{path} cannot be read ({text}), the run cannot be resumed: restore it from a copy"
        )

    def read_config(self) -> dict[str, Any]:
        """Return the resolved configuration.

        Raises:
            ConfigError: it is missing or damaged.
        """
        try:
            return tomllib.loads(read_text(self.config))
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(self.config, error) from error

    def check_unchanged(
        self, resolved: Mapping[str, Any], begun: str, is_free: Callable[[str], bool]
    ) -> dict[str, tuple[Any, Any]]:
        """Refuse to go on with another configuration than that of what is here.

        Args:
            resolved: all tables of the configuration.
            begun: what was begun when the other was here, in words.
            is_free: whether a key may differ.

        Returns:
            Old and new value of the keys that may and do, by their dotted names.

        Raises:
            ConfigError: naming the first key that may not.
        """
        changed = changed_keys(self.read_config(), tomllib.loads(toml_text(resolved)))
        for key, (before, after) in changed.items():
            if not is_free(key):
                raise ConfigError(
                    f"{key} was {_shown(before)} when {begun} and is {_shown(after)} now: restore "
                    "it to resume, or choose another --output"
                )
        return changed

    def check_resumable(self, config: RunConfig) -> None:
        """Refuse to resume as anything but what was started.

        Raises:
            ConfigError: naming the first key that differs.
        """

        def is_free(key: str) -> bool:
            return key in _free_keys(config.resolved) or key.startswith("parallel")

        begun = f"the run in {self.path} was started"
        changed = self.check_unchanged(config.resolved, begun, is_free)
        before, after = changed.get("run.updates", (0, 0))
        if not (type(before) is int and before <= after):
            raise ConfigError(
                f"run.updates was {_shown(before)} in {self.config} and is {after} now: a run can "
                "be extended, not shortened"
            )

    def check_blank(self, config: RunConfig) -> None:
        """Refuse to start over a run that has lost its checkpoint.

        What a kill leaves of a start, before the first checkpoint, holds no rows and is of this
        configuration.

        Raises:
            ConfigError: naming the key that differs, or what would be lost.
        """
        if self.config.exists():
            self.check_resumable(config)
        written = [path.name for path in (self.log, self.ensemble) if path.exists()]
        if self.measurements.exists() and not MeasurementFile.is_blank(self.measurements):
            written.append(self.measurements.name)
        if written:
            raise ConfigError(
                f"{self.checkpoint} is missing, but {self.path} holds {' and '.join(written)} of a "
                "run: restore the checkpoint from a copy, or choose another --output"
            )

    def check_flows(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse to resume with other weights than the run was started with.

        Raises:
            ConfigError: naming the flow.
        """
        stored = self.read_provenance().get("flows")
        for name, digest in fingerprints.items():
            entry = stored.get(name) if isinstance(stored, dict) else None
            before = entry.get("fingerprint") if isinstance(entry, dict) else None
            if isinstance(before, str) and len(before) < len(digest):
                raise ConfigError(
                    f"the run in {self.path} was started by an older flowmc, whose digests of "
                    f"flows did not tell all densities apart, so {name!r} cannot be recognised: "
                    "resume it with that version, or start a new run from its last configurations"
                )
            if before != digest:
                raise ConfigError(
                    f"the flow {name!r} is not the one that the run in {self.path} was started "
                    "with: restore it to resume, or choose another --output"
                )


def flows_entry(
    fingerprints: Mapping[str, str], cards: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the entry ``flows`` of ``provenance.json``, see :meth:`RunDirectory.check_flows`.

    Args:
        fingerprints: of every flow by its name in the configuration.
        cards: of the flows, likewise.
    """
    return {
        name: {"fingerprint": digest, "card": cards[name]} for name, digest in fingerprints.items()
    }


def identity_of(resolved: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a resolved configuration may never change in a run."""
    # As it reads back from a file, where keys that are not set are missing.
    table = tomllib.loads(toml_text(resolved))
    table.pop("parallel", None)
    for key in _FREE_KEYS:
        section, _, name = key.partition(".")
        table.get(section, {}).pop(name, None)
    for update in table.get("update", ()):
        for name in _free_of_kernel(update):
            update.pop(name, None)
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _free_of_kernel(update: Mapping[str, Any]) -> Sequence[str]:
    """Return the keys of an ``[[update]]`` that change no result.

    Of built-in kernels: those of others would have to be imported, also by who only reads a run.
    """
    name = update.get("kernel")
    return getattr(resolve("kernels", name), "free_keys", ()) if name in BUILTIN["kernels"] else ()


def _free_keys(resolved: Mapping[str, Any]) -> set[str]:
    """Return the keys that a resumed run may change, by their dotted names."""
    return {*_FREE_KEYS} | {
        f"update[{number}].{name}"
        for number, update in enumerate(resolved.get("update", ()), start=1)
        for name in _free_of_kernel(update)
    }


def environment(device: torch.device) -> dict[str, str | int]:
    """Return what rounding may depend on: versions, machine and number of threads."""
    return {
        "flowmc": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "device": str(device),
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


def _write_text(path: Path, text: str) -> None:
    with naming(path), atomic_write(path, follow=False) as file:
        file.write(text.encode())


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
