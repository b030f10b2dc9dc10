"""Configurations on disk as a stream: which files, in which order, a few in memory at a time.

Files of one directory with one stem (``run1/lat.1000``, ``run1/lat.1010``) are one replica, as is
an HDF5 file that holds many scalar or U(1) fields.  Configuration numbers come from the names of
the files, else from their metadata.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from flowmc_adapters import FormatError, field_numbers, read_field, read_header
from flowmc_adapters.commands.files import expand
from flowmc_adapters.fields.files import field_format
from flowmc_adapters.seeds import is_seeds, refusal_of_seeds
from flowmc_adapters.selection import file_of
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action
from flowmc.ensembles.claims import seeds_of
from flowmc.ensembles.naming import base_name
from flowmc.estimators.history import History
from flowmc.io import StoredField, load_field, number_in_name
from flowmc.registry import ConfigError, named_by

__all__ = [
    "ConfigurationBatch",
    "EnsembleTable",
    "Made",
    "Maker",
    "Member",
    "OpenSeeds",
    "StoredEnsemble",
    "history_of",
    "run_theory",
    "selection_text",
]


class Maker(Protocol):
    """Makes the configurations of a file of seeds again."""

    def configurations(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield row and chain, number, and path below a directory, of all there are."""

    def load(
        self,
        wanted: Sequence[tuple[int, int]],
        action: Action,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> list[StoredField]:
        """Return configurations by row and chain; those of later rows go on from earlier ones."""

    def metadata(self, row: int, chain: int) -> Mapping[str, str]:
        """Return what a file of the configuration would say."""

    def checksum(self, row: int, chain: int) -> int:
        """Return the checksum of the configuration."""


OpenSeeds = Callable[[Path], Maker]
"""Opens a file of seeds."""


@dataclass(frozen=True)
class Made:
    """A configuration that is made when it is read.

    Attributes:
        maker: of it.
        row, chain: which of a file of seeds.
    """

    maker: Maker
    row: int
    chain: int


@dataclass(frozen=True)
class Member:
    """One configuration of an ensemble.

    Attributes:
        replica: its chain.
        number: its configuration number.
        path: the file; of what is made, the file of seeds and a name below it.
        inner: which configuration of an HDF5 file that holds several; None for the only one.
        made: how it is made; None if it is there.
    """

    replica: str
    number: int
    path: str
    inner: int | None = None
    made: Made | None = None


@dataclass(frozen=True, kw_only=True)
class EnsembleTable:
    """``[ensemble]``: configurations of the target on disk, of any format and code.

    Attributes:
        files: paths, directories and patterns, relative to the configuration file.
        run: a run directory of ``flowmc run``.
        first, last: smallest and largest configuration number to use.
        every: use every n-th configuration of each replica.
    """

    files: str | list[str] | None = None
    run: str | None = None
    first: int | None = None
    last: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if (self.files is None) == (self.run is None):
            raise ConfigError("[ensemble]: needs either files or run")
        if self.every < 1:
            raise ConfigError(f"[ensemble]: every = {self.every}: should be at least 1")

    def open(self, base: Path, seeds: OpenSeeds | None = None) -> StoredEnsemble:
        """Find the configurations.

        Args:
            base: directory of the configuration file.
            seeds: opens files of seeds; without it they are refused.

        Raises:
            ConfigError, FormatError, OSError: as :meth:`StoredEnsemble.of_files`.
        """
        if self.run is not None:
            found = StoredEnsemble.of_run(base / self.run, seeds=seeds)
        else:
            written = [self.files] if isinstance(self.files, str) else self.files or []
            found = StoredEnsemble.of_files([str(base / one) for one in written], seeds=seeds)
        return found.selected(first=self.first, last=self.last, every=self.every)


@dataclass(frozen=True)
class ConfigurationBatch:
    """A few configurations in memory.

    Attributes:
        first: place of the first one in the ensemble.
        members: which they are.
        field: ``(len(members), ...)``.
        notes: what was changed or odd on reading, for the log.
        metadata: of the files, in the order of the members.
    """

    first: int
    members: Sequence[Member]
    field: Tensor
    notes: tuple[str, ...]
    metadata: Sequence[dict[str, str]]


class StoredEnsemble:
    """The configurations of an ensemble in the order of replicas and numbers.

    Args:
        name: of the ensemble.
        members: in any order.

    Raises:
        ConfigError: if there is none, or two have the same replica and number.
    """

    def __init__(self, name: str, members: Sequence[Member]) -> None:
        self.name = name
        self.members = sorted(members, key=lambda one: (one.replica, one.number))
        if not self.members:
            raise ConfigError(f"the ensemble {name!r} has no configuration")
        for before, after in zip(self.members, self.members[1:], strict=False):
            if (before.replica, before.number) == (after.replica, after.number):
                raise ConfigError(
                    f"configuration {after.number} of replica {after.replica!r} is there twice: "
                    f"{before.path} and {after.path}; leave one of them out"
                )

    @classmethod
    def of_files(
        cls,
        arguments: Sequence[str],
        *,
        name: str | None = None,
        seeds: OpenSeeds | None = None,
    ) -> StoredEnsemble:
        """Find the configurations that files, directories and patterns hold.

        Args:
            arguments: paths; a directory stands for all configurations in it.
            name: of the ensemble; by default the common stem of the files.
            seeds: opens files of seeds; without it they are refused.

        Raises:
            ConfigError: nothing was found, or configurations have no numbers.
            FormatError, OSError: a file cannot be read.
        """
        found: list[_Found] = []
        for path in expand(list(arguments)).files:
            if not os.path.exists(file_of(path)):
                raise ConfigError(f"there is no configuration file {path}")
            found += _in_file(path, seeds)
        if not found:
            below = [one for one in arguments if any(p.is_dir() for p in _entries(one))]
            hint = f'; for those in its subdirectories name "{below[0]}/*"' if below else ""
            raise ConfigError(f"no configurations in {', '.join(arguments)}{hint}")
        members = _with_replicas(_numbered(found))
        stems = {base_name(one.path) for one in found}
        common = name or (stems.pop() if len(stems) == 1 else "ensemble")
        return cls(common.replace("|", "_"), members)

    @classmethod
    def of_run(
        cls, directory: Path, *, name: str | None = None, seeds: OpenSeeds | None = None
    ) -> StoredEnsemble:
        """Return the configurations that a run has saved: every chain is a replica.

        Args:
            directory: of the run.
            name: of the ensemble.
            seeds: opens files of seeds; without it they are refused.

        Raises:
            ConfigError: as :meth:`of_files`, or the run has saved none yet.
        """
        for file in sorted((directory / "ensemble").glob("*.seeds")):
            made = [
                Member(f"chain{one.made.chain:04d}", int(one.number), one.path, made=one.made)
                for one in _in_file(str(file), seeds)
                if one.made is not None and one.number is not None
            ]
            return cls(name or directory.resolve().name.replace("|", "_"), made)
        chains = sorted(path for path in (directory / "ensemble").glob("chain*") if path.is_dir())
        folders = chains or [directory / "ensemble"]
        members = []
        for folder in folders:
            own = cls.of_files([str(folder)], name="run").members
            replica = folder.name if chains else "chain0000"
            members += [replace(one, replica=replica) for one in own]
        return cls(name or directory.resolve().name.replace("|", "_"), members)

    def selected(
        self, *, first: int | None = None, last: int | None = None, every: int = 1
    ) -> StoredEnsemble:
        """Return the part with numbers from ``first`` to ``last``, and of it every n-th of each
        replica."""
        kept: list[Member] = []
        for replica in dict.fromkeys(one.replica for one in self.members):
            own = [
                one
                for one in self.members
                if one.replica == replica
                and (first is None or one.number >= first)
                and (last is None or one.number <= last)
            ]
            kept += own[::every]
        if not kept:
            raise ConfigError(
                f"no configuration of {self.name!r} has a number from {first} to {last}: there are "
                f"{self.members[0].number} to {self.members[-1].number}"
            )
        return StoredEnsemble(self.name, kept)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def history(self) -> History:
        """Replicas and configuration numbers."""
        return history_of(self.name, self.members)

    @property
    def seed(self) -> int | None:
        """The seed of the chains, if the first configuration says it."""
        first = self.members[0]
        return next(iter(seeds_of(first.path, _metadata(first))), None)

    def batches(
        self,
        action: Action,
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        skip: Callable[[int], bool] = lambda place: False,
        any_order: bool = False,
    ) -> Iterator[ConfigurationBatch]:
        """Read the configurations, a few at a time.

        Args:
            action: the theory.
            size: configurations in memory.
            dtype, device: of the fields.
            skip: places in the ensemble that need not be read.
            any_order: whether batches may come in another order than that of places: what is made
                again comes from many chains at once.

        Raises:
            FormatError, OSError: as :func:`flowmc.io.load_field`.
        """
        wanted = list(range(len(self.members)))
        if any_order:
            wanted.sort(key=lambda place: _order_of_making(self.members[place], place))
        for first in range(0, len(wanted), size):
            places = [p for p in wanted[first : first + size] if not skip(p)]
            if any_order:
                yield from self._read_any(places, action, dtype, device)
                continue
            # Neighbours share a batch; a gap of places already done ends it.
            while places:
                run = 1
                while run < len(places) and places[run] == places[0] + run:
                    run += 1
                yield self._read(places[0], run, action, dtype, device)
                places = places[run:]

    def take(
        self,
        places: Sequence[int],
        action: Action,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Read the configurations at some places, ``(len(places), ...)``.

        Raises:
            FormatError, OSError: as :func:`flowmc.io.load_field`.
        """
        parts = [self._read(place, 1, action, dtype, device).field for place in places]
        return torch.cat(parts) if parts else action.cold(0, dtype, device)

    def _read_any(
        self,
        places: Sequence[int],
        action: Action,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Iterator[ConfigurationBatch]:
        """Read some places, in any order; yield them by neighbours."""
        members = [self.members[place] for place in places]
        stored = dict(zip(places, _load(members, action, dtype, device), strict=True))
        ordered = sorted(places)
        while ordered:
            run = 1
            while run < len(ordered) and ordered[run] == ordered[0] + run:
                run += 1
            yield self._batch(ordered[0], [stored[place] for place in ordered[:run]])
            ordered = ordered[run:]

    def _read(
        self,
        first: int,
        count: int,
        action: Action,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> ConfigurationBatch:
        members = self.members[first : first + count]
        return self._batch(first, _load(members, action, dtype, device))

    def _batch(self, first: int, stored: Sequence[StoredField]) -> ConfigurationBatch:
        return ConfigurationBatch(
            first,
            self.members[first : first + len(stored)],
            torch.cat([one.field for one in stored]),
            tuple(note for one in stored for note in one.notes),
            [dict(one.metadata) for one in stored],
        )


def _entries(path: str) -> list[Path]:
    return list(Path(path).iterdir()) if os.path.isdir(path) else []


def history_of(name: str, members: Sequence[Member]) -> History:
    """Return the history of members that are sorted by replica and number."""
    numbers: dict[str, list[int]] = {}
    for one in members:
        numbers.setdefault(one.replica, []).append(one.number)
    return History(name, numbers)


def run_theory(directory: Path) -> dict:
    """Return the ``[theory]`` table of a run directory, checked: it may be somebody else's.

    Raises:
        ConfigError: it is no run directory, the run saves no configurations, or its theory is not
            one that can be built, or of a module that the user has not named.
    """
    try:
        table = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{directory} is no run directory ({error}): give the directory that flowmc run wrote"
        ) from error
    if not (directory / "ensemble").is_dir():
        raise ConfigError(
            f"the run in {directory} has saved no configurations: it needs save_every in [run] and "
            "an [ensemble]"
        )
    theory = table.get("theory")
    if not isinstance(theory, dict):
        raise ConfigError(f"{directory}/config.toml has no table [theory]")
    with named_by(f"{directory}/config.toml"):
        build_action(theory)
    return theory


@dataclass(frozen=True)
class _Found:
    """A configuration that was found; its number may be known from its metadata alone."""

    path: str
    number: int | None
    inner: int | None = None
    made: Made | None = None


def _in_file(path: str, seeds: OpenSeeds | None) -> list[_Found]:
    """Return every configuration in a file."""
    if is_seeds(path):
        if seeds is None:
            raise refusal_of_seeds(path)
        maker = seeds(Path(path))
        return [
            _Found(f"{path}/{name}", number, made=Made(maker, row, chain))
            for row, chain, number, name in maker.configurations()
        ]
    if os.path.isfile(file_of(path)) and field_format(path) == "hdf5":
        inner = field_numbers(path)
        if len(inner) > 1:
            return [_Found(path, number, number) for number in inner]
        if inner and number_in_name(path) is None:
            return [_Found(path, inner[0])]
    return [_Found(path, number_in_name(path))]


def _numbered(found: Sequence[_Found]) -> list[_Found]:
    """Fill in numbers that only the metadata have."""
    result = []
    for one in found:
        stored = one.number if one.number is not None else _stored_number(one.path)
        if stored is None:
            raise ConfigError(
                f"{one.path} has no configuration number, neither at the end of its name, as in "
                "lat.1000, nor in its metadata: autocorrelations need it; rename the files"
            )
        result.append(replace(one, number=stored))
    return result


def _order_of_making(member: Member, place: int) -> tuple[int, int, int]:
    """Return a key that puts together what is made together, behind what is there."""
    made = member.made
    return (0, 0, place) if made is None else (id(made.maker), made.row, made.chain)


def _load(
    members: Sequence[Member], action: Action, dtype: torch.dtype, device: torch.device | str
) -> list[StoredField]:
    """Return what the members hold, in their order."""
    found: dict[int, StoredField] = {}
    makers: dict[int, list[int]] = {}
    for place, one in enumerate(members):
        if one.made is None:
            found[place] = load_field(
                one.path, action, dtype=dtype, device=device, number=one.inner
            )
        else:
            makers.setdefault(id(one.made.maker), []).append(place)
    for places in makers.values():
        made = [what for place in places if (what := members[place].made) is not None]
        wanted = [(what.row, what.chain) for what in made]
        loaded = made[0].maker.load(wanted, action, dtype=dtype, device=device)
        found |= dict(zip(places, loaded, strict=True))
    return [found[place] for place in range(len(members))]


def _metadata(member: Member) -> Mapping[str, str]:
    if member.made is not None:
        return member.made.maker.metadata(member.made.row, member.made.chain)
    path = member.path
    try:
        if os.path.isfile(file_of(path)) and field_format(path) in ("hdf5", "lime", "npy"):
            return read_field(path, number=member.inner).metadata
        return read_header(path).metadata
    except FormatError:
        return {}  # said where the file is read


def _stored_number(path: str) -> int | None:
    try:
        if os.path.isfile(file_of(path)) and field_format(path) in ("hdf5", "lime", "npy"):
            return read_field(path).number
        text = read_header(path).metadata.get("SEQUENCE_NUMBER", "")
    except FormatError:
        return None
    return int(text) if text.isdigit() else None


def _with_replicas(found: Sequence[_Found]) -> list[Member]:
    """Name the replicas by what tells their files apart: folder, stem, or both."""
    keys = [
        # An HDF5 file of many configurations is a replica of its own.
        (os.path.dirname(os.path.abspath(one.path)), _stem(one.path, one.inner is not None))
        for one in found
    ]
    folders, stems = {folder for folder, _ in keys}, {stem for _, stem in keys}
    common = os.path.commonpath(folders)
    members = []
    for one, (folder, stem) in zip(found, keys, strict=True):
        assert one.number is not None
        below = os.path.relpath(folder, common).replace(os.sep, "_") if len(folders) > 1 else ""
        parts = [part for part in (below, stem if len(stems) > 1 or not below else "") if part]
        name = "_".join(parts).replace("|", "_")
        members.append(Member(name, one.number, one.path, one.inner, one.made))
    return members


def _stem(path: str, is_whole_file: bool) -> str:
    return Path(path).stem if is_whole_file else base_name(path)


def selection_text(ensemble: StoredEnsemble) -> str:
    """Return how many configurations of how many replicas there are, in words."""
    history = ensemble.history
    count, replicas = len(ensemble), len(history.numbers)
    text = f"{count} configuration{'s' if count > 1 else ''}"
    if replicas > 1:
        text += f" of {replicas} replicas"
    return f"{text}, every {history.spacing}" if history.spacing != 1 else text
