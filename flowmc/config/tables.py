"""The plain tables of a configuration, ``[chains]``, ``[run]``, ``[ensemble]``, ...: one dataclass
each, whose fields are its keys.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowmc.config.settings import with_settings
from flowmc.durations import seconds_of
from flowmc.registry import ConfigError

__all__ = [
    "MOST_CHAINS",
    "SEEDS",
    "Chains",
    "EnsembleTable",
    "LadderTable",
    "MeasureTable",
    "Parallel",
    "RunTable",
    "UpdateTable",
    "read_tables",
    "read_toml",
    "seconds_of",
]


# The format of an ensemble that is not stored, but made again.
SEEDS = "seeds"

# Far more than the largest machines have had, and few enough to write a list of.
MOST_CHAINS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Chains:
    """``[chains]``: how many Markov chains, and where they start.

    Attributes:
        seed: of all random streams, >= 0.
        count: number of chains over all ranks.
        start: "file", "cold", "hot" or "flow"; by default "file" if a file is given, else "hot".
        file: the start configuration of all chains, or a list with one per chain.
        block: chains that are computed as one batch and share one random stream.  Results depend
            on it, as they do on the seed; by default all chains up to 32, else at most 16 blocks.
        precision: 64 or 32, of the fields and their updates.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
    """

    seed: int
    count: int = 1
    start: Literal["file", "cold", "hot", "flow"] | None = None
    file: str | list[str] | None = None
    block: int | None = None
    precision: Literal[32, 64] = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        set_default = _setter(self)
        set_default("start", "file" if self.file is not None else "hot")
        whole = self.count if self.count <= 32 else max(32, math.ceil(self.count / 16))
        set_default("block", whole)
        _at_least("[chains]", self, seed=0, count=1, block=1)
        if self.count > MOST_CHAINS:
            raise ConfigError(f"[chains]: count = {self.count}: should be at most {MOST_CHAINS}")
        if self.start == "file" and self.file is None:
            raise ConfigError(
                '[chains]: start = "file" needs the key \'file\', e.g. file = "lat.1000"'
            )
        if self.start != "file" and self.file is not None:
            raise ConfigError(
                f"[chains]: file = {self.file!r} would be ignored with start = {self.start!r}: "
                'remove it, or set start = "file"'
            )
        if isinstance(self.file, list) and len(self.file) != self.count:
            raise ConfigError(
                f"[chains]: file lists {len(self.file)} configurations for count = {self.count} "
                "chains: give one per chain, or a single file for all"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(
                f"[chains]: device = {self.device!r}: should be 'auto', 'cpu', 'cuda' or 'cuda:N'"
            )

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and one-past-last chain of every block."""
        size = self.block or self.count
        return [(i, min(i + size, self.count)) for i in range(0, self.count, size)]


@dataclass(frozen=True, kw_only=True)
class UpdateTable:
    """``[[update]]``: which kernel, and how often; its own keys stand beside.

    Attributes:
        kernel: its name, or "package.module:Name".
        repeat: how often it is applied in a row.
        weight: with ``schedule = "mixture"``, how often it is drawn against the others.
        flow: of kernels that take one: the path of a flow file, or "zoo:NAME".
    """

    kernel: str
    repeat: int = 1
    weight: float = 1.0
    flow: str | None = None

    def __post_init__(self) -> None:
        repeat, weight, flow = self.repeat, self.weight, self.flow
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise ConfigError(f"repeat = {repeat!r}: should be an integer, at least 1")
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < 1e100:
            raise ConfigError(f"weight = {weight!r}: should be a finite number above 0")
        if flow is not None and not isinstance(flow, str):
            raise ConfigError(f'flow = {flow!r}: should be a path or "zoo:NAME"')


@dataclass(frozen=True, kw_only=True)
class LadderTable:
    """``[ladder]``: replicas at other couplings; the values of the couplings stand beside.

    Attributes:
        flows: one for every pair of neighbouring replicas: the path of an exchange flow, or
            "zoo:NAME"; "identity", the default, is plain exchange.
        tune: whether the couplings between the ends move during thermalization, to equal swap
            rates.
        difference: of theories that only another program knows: the name of an action, or
            "package.module:Name", by which the actions of the replicas differ.  Its keys stand
            beside; each of its couplings has one value, or one per replica.
    """

    flows: list[str] | None = None
    tune: bool = False
    difference: str | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureTable:
    """``[measure]``: what is measured on every configuration.

    Attributes:
        observables: names, "package.module:Name", or tables ``{name = NAME, ...}`` with their keys;
            by default the action density and the plaquette of gauge fields, or the action density,
            magnetization and phi2 of scalar fields.
    """

    observables: list[str | dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """``[run]``: how long, and what is done in between.

    Attributes:
        updates: production updates; one update applies the whole cycle of kernels once.
        thermalization: updates before production, in which kernels may adapt.
        measure_every: updates between measurements.
        save_every: production updates between saved configurations; needs ``[ensemble]``.
        checkpoint_every: updates between checkpoints, or a time such as "10m".
        time_limit: of one invocation: "23h30m", "90s" or seconds; the run stops in time with a
            checkpoint.
        schedule: "cycle" applies all updates in order, "mixture" draws one per update.
        report: write ``report.html`` at the end.
    """

    updates: int
    thermalization: int = 0
    measure_every: int = 1
    save_every: int | None = None
    checkpoint_every: int | str = "5m"
    time_limit: float | str | None = None
    schedule: Literal["cycle", "mixture"] = "cycle"
    report: bool = True

    def __post_init__(self) -> None:
        _at_least("[run]", self, updates=0, thermalization=0, measure_every=1, save_every=1)
        if self.measure_every > self.updates > 0:
            raise ConfigError(
                f"[run]: measure_every = {self.measure_every} is above updates = {self.updates}: "
                "nothing would be measured"
            )
        if isinstance(self.checkpoint_every, str):
            seconds_of(self.checkpoint_every, "[run]: checkpoint_every")
        else:
            _at_least("[run]", self, checkpoint_every=1)
        if self.time_limit is not None:
            seconds_of(self.time_limit, "[run]: time_limit")


@dataclass(frozen=True, kw_only=True)
class EnsembleTable:
    """``[ensemble]``: how configurations are saved.

    Attributes:
        format: "nersc", "ildg", "scidac", "hdf5", "npy", or another that flowmc_adapters knows; for
            scalar and U(1) theories "hdf5", "ildg" (the same as "lime") or "npy".  "seeds" writes
            one file with what makes them again, and a checksum of each, in their place.
        precision: 32 or 64; that of the chains by default.
        name: files are called ``<name>.<number>``; by default the start file's name, or "conf".
        first_number: number of the first saved configuration; the others follow in steps of
            ``save_every``.  By default numbers continue that of the start file, or count updates.
        keep_every: with ``format = "seeds"``, saved configurations from one checkpoint that is kept
            to the next, 100 by default; it takes this many at most to make one of them again.
    """

    format: str
    precision: Literal[32, 64] | None = None
    name: str | None = None
    first_number: int | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        _at_least("[ensemble]", self, first_number=0, keep_every=1)
        if self.format == SEEDS and self.precision is not None:
            raise ConfigError(
                f"[ensemble]: precision = {self.precision}: the seeds of configurations have none: "
                "remove it, and give it to flowmc regenerate"
            )
        if self.format != SEEDS and self.keep_every is not None:
            raise ConfigError(
                f"[ensemble]: keep_every = {self.keep_every} is about checkpoints for making "
                f'configurations again, and format = "{self.format}" saves them: remove it'
            )
        if self.name is not None and (not self.name or "/" in self.name or self.name[0] == "."):
            raise ConfigError(f"[ensemble]: name = {self.name!r}: should be a plain file name")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """``[parallel]``: how the work is spread over MPI ranks.  No result depends on it.

    Attributes:
        deal: "contiguous" gives neighbouring blocks of chains and replicas to one rank, "cyclic"
            deals them one by one.
        proposals: "shared" lets ranks that own no chains draw flow proposals for those that do;
            "owner" leaves them to the owners of the chains.
        peer_timeout: how long a rank waits for another before it gives the run up as hung.
    """

    deal: Literal["contiguous", "cyclic"] = "contiguous"
    proposals: Literal["shared", "owner"] = "shared"
    peer_timeout: float | str = "30m"

    def __post_init__(self) -> None:
        seconds_of(self.peer_timeout, "[parallel]: peer_timeout")


def _setter(instance: Any) -> Callable[[str, Any], None]:
    """Return a function that fills in a field of a frozen dataclass that is None."""

    def set_default(name: str, value: Any) -> None:
        if getattr(instance, name) is None:
            object.__setattr__(instance, name, value)

    return set_default


def _at_least(where: str, instance: Any, **least: int) -> None:
    for key, bound in least.items():
        value = getattr(instance, key)
        if value is not None and value < bound:
            raise ConfigError(f"{where}: {key} = {value}: should be at least {bound}")


def read_tables(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the tables of a configuration file.

    Args:
        path: the file.
        settings: see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: it is no TOML file, or a setting cannot be made.
        OSError: it cannot be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        # Besides what is no TOML: integers of thousands of digits, tables within tables within ...
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    return with_settings(tables, settings)


def read_toml(path: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Args:
        path: the file.
        settings: see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: if it is missing or not TOML, with line and column, or a setting cannot be
            made.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return with_settings(tables, settings)
