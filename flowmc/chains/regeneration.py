"""Configurations made again from a file of seeds, and compared with their checksums.

Configurations of a chain are made by the run itself, from the last checkpoint that it has kept
before them; draws of a flow from the seed and the number of their update alone.  Either way the
same bytes come out on the same kind of machine with the same versions, for any number of ranks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flowmc_adapters.seeds import Seeds, checkpoint_path, configuration_checksum, read_seeds
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.assembly import Assembly, assemble
from flowmc.chains.config import RunConfig, read_config
from flowmc.chains.draws import Draws, Sought
from flowmc.chains.motion import ChainsInMotion
from flowmc.chains.opening import distribute
from flowmc.chains.storage.checkpoint import read_checkpoint, read_head
from flowmc.chains.storage.configurations import ConfigurationWriter
from flowmc.chains.storage.directory import environment
from flowmc.io import StoredField, configuration_array, made_field
from flowmc.kernels import NonFiniteStateError
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.registry import ConfigError, named_by

__all__ = ["Regenerated", "Regeneration", "open_seeds", "seeds_base", "seeds_file"]


@dataclass(frozen=True)
class Regenerated:
    """A configuration that was made again.

    Attributes:
        chain: its chain.
        number: its configuration number.
        update: of production, after which it was saved.
        field: ``(...)``.
    """

    chain: int
    number: int
    update: int
    field: Tensor


class Regeneration:
    """An ensemble that can be made again; :func:`open_seeds` makes it.

    Args:
        path: the file of seeds.
        seeds: its content.
        config: of the run, read from it.
        communicator: of all ranks.

    Raises:
        ConfigError, CollectiveError: a flow is missing or is another one.
    """

    def __init__(
        self, path: Path, seeds: Seeds, config: RunConfig, communicator: Communicator
    ) -> None:
        self.path, self.seeds, self.config = path, seeds, config
        self._communicator = communicator
        choose_threads(communicator)
        self.assembly: Assembly = communicator.together(lambda: assemble(config, communicator))
        communicator.together(self._check_flows)
        self._distribution = distribute(config, self.assembly, communicator)
        self._own = self._distribution.blocks_of(communicator.rank)
        # Where the chains stand after what was made last; the next one is often near.
        self._chains: ChainsInMotion | None = None
        count, origins = config.chains.count, seeds.content["origins"]
        self.origins = {chain: origins[chain if len(origins) > 1 else 0] for chain in range(count)}

    @property
    def name(self) -> str:
        """Of the ensemble."""
        return str(self.seeds.content["name"])

    @property
    def rows(self) -> int:
        """Configurations of each chain."""
        return len(self.seeds.checksums)

    def update_of(self, row: int) -> int:
        """Return the update of production after which the chains' n-th configurations were made."""
        return (row + 1) * int(self.seeds.content["step"])

    def rows_of(self, numbers: Sequence[range] | None) -> dict[int, list[int]]:
        """Return which configurations of which chains have some of these numbers.

        Args:
            numbers: ranges of configuration numbers; None for all there are.

        Returns:
            The chains by row, in the order of rows.

        Raises:
            ConfigError: a range has none of the numbers that there are.
        """
        chains = range(self.seeds.chains)
        if numbers is None:
            return {row: list(chains) for row in range(self.rows)}
        found: dict[int, set[int]] = {}
        for wanted in numbers:
            is_there = False
            for chain in chains:
                own = self.seeds.numbers(chain)
                for number in own if len(own) < len(wanted) else wanted:
                    if number in own and number in wanted:
                        found.setdefault(own.index(number), set()).add(chain)
                        is_there = True
            if not is_there:
                own = self.seeds.numbers()
                held = f"{own[0]} to {own[-1]} in steps of {own.step}" if own else "none"
                text = f"{wanted[0]} to {wanted[-1]}" if len(wanted) > 1 else f"{wanted[0]}"
                raise ConfigError(f"{self.path} has no configuration {text}: it holds {held}")
        return {row: sorted(found[row]) for row in sorted(found)}

    def make(self, wanted: Mapping[int, Sequence[int]]) -> Iterator[Regenerated]:
        """Make configurations again, those of this rank's chains; collective.

        Chains go on from where they were left, if no checkpoint is nearer to what is wanted.

        Args:
            wanted: chains by row, see :meth:`rows_of`; all rows in ascending order.

        Raises:
            ConfigError: a checkpoint is missing, damaged or of another run; or a configuration has
                another checksum than it had.
        """
        if not wanted:
            return
        made = self._drawn(wanted) if self.config.is_drawn else self._moved(wanted)
        for row, chain, field in made:
            self._compare(row, chain, field)
            yield Regenerated(chain, self.seeds.numbers(chain)[row], self.update_of(row), field)

    def configurations(self) -> Iterator[tuple[int, int, int, str]]:
        """Yield row and chain, number, and path below a directory, of all there are."""
        for row in range(self.rows):
            for chain in range(self.seeds.chains):
                path = self._names.path(chain, self.update_of(row))
                yield row, chain, self.seeds.numbers(chain)[row], str(path)

    def metadata(self, row: int, chain: int) -> dict[str, str]:
        """Return what a file of a configuration says beside its numbers."""
        return self._names.metadata(chain, self.update_of(row))

    def checksum(self, row: int, chain: int) -> int:
        """Return the checksum of a configuration."""
        return int(self.seeds.checksums[row, chain])

    @cached_property
    def _names(self) -> ConfigurationWriter:
        """Knows what files would be called."""
        return self.writer(Path(), "hdf5", None)

    def load(
        self,
        wanted: Sequence[tuple[int, int]],
        action: Action,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> list[StoredField]:
        """Return configurations as they would be read from files.

        Args:
            wanted: row and chain of each.
            action: the theory that they are to serve for.
            dtype: precision of the real components of the fields.
            device: where to put the fields.

        Raises:
            FormatError: another lattice or group than that of the theory.
            ConfigError: as :meth:`make`.
        """
        rows: dict[int, list[int]] = {}
        for row, chain in sorted(set(wanted)):
            rows.setdefault(row, []).append(chain)
        own, found = self.config.action, {}
        for one in self.make(rows):
            row = one.update // int(self.seeds.content["step"]) - 1
            found[row, one.chain] = made_field(
                configuration_array(one.field, own),
                action,
                self.path,
                dims=tuple(own.lattice),
                group=own.group.name,
                precision=self.config.chains.precision,
                metadata=self.metadata(row, one.chain),
                number=one.number,
                dtype=dtype,
                device=device,
            )
        return [found[key] for key in wanted]

    def writer(self, directory: Path, format: str, precision: int | None) -> ConfigurationWriter:
        """Return what writes files as the run would have written them."""
        assert self.config.ensemble is not None
        table = dataclasses.replace(self.config.ensemble, format=format, keep_every=None)
        table = dataclasses.replace(table, precision=precision)  # type: ignore[arg-type]
        config = dataclasses.replace(self.config, ensemble=table)
        return ConfigurationWriter(directory, config, self.origins)

    def _drawn(self, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, int, Tensor]]:
        draws = Draws(self.config, self.assembly)
        for row, chains in wanted.items():
            for block in self._own:
                first, last = self.config.chains.blocks[block]
                sought = {c: self._sought(row, c) for c in chains if first <= c < last}
                found = draws.find(block, sought)
                for chain in sought:
                    if chain not in found:
                        raise self._differs(row, chain)
                    yield row, chain, found[chain]

    def _sought(self, row: int, chain: int) -> Sought:
        """Return which draws a configuration may be: the checksums before it tell."""
        sums = self.seeds.checksums[:, chain]
        other = np.flatnonzero(sums[:row] != sums[row])
        at = int(other[-1]) + 1 if len(other) else 0
        thermalization = self.config.run.thermalization
        after = thermalization + self.update_of(at - 1) if at else -1
        return Sought(int(sums[row]), after, thermalization + self.update_of(at))

    def _moved(self, wanted: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, int, Tensor]]:
        with tempfile.TemporaryDirectory(prefix="flowmc-") as scratch:
            thermalization = self.config.run.thermalization
            for row, which in wanted.items():
                update = thermalization + self.update_of(row)
                start = thermalization + self._kept_before(row)
                chains = self._chains
                if chains is None or not start <= chains.update <= update:
                    chains = self._chains = self._restored(start)
                chains.keep_files_in(Path(scratch))
                try:
                    while chains.update < update:
                        chains.move()
                        chains.update += 1
                except NonFiniteStateError as error:
                    raise ConfigError(
                        f"{self.path}: {error}, though it was in the run: {self._reasons()}"
                    ) from error
                for first, last, r, replica in chains.replicas():
                    if r == 0:
                        for chain in (one for one in which if first <= one < last):
                            yield row, chain, replica.field[chain - first]

    def _kept_before(self, row: int) -> int:
        """Return the update of production of the last checkpoint before a configuration."""
        every = int(self.seeds.content["checkpoint_every"])
        # A checkpoint right after it holds the configuration itself.
        return self.update_of(row) // every * every

    def _restored(self, update: int) -> ChainsInMotion:
        """Return the chains as they stood after an update; collective."""
        path = checkpoint_path(self.path, update - self.config.run.thermalization)

        def look() -> None:
            if not path.exists():
                raise ConfigError(
                    f"{path} is missing, from which these configurations are made again: it "
                    f"belongs to {self.path}, restore it from a copy"
                )
            head = read_head(path)
            is_own = str(head.configuration).startswith(self.seeds.content["identity"])
            if not is_own or (head.seed, head.update) != (self.config.chains.seed, update):
                raise ConfigError(
                    f"{path} is of another run than {self.path}: restore the one that belongs to it"
                )

        self._communicator.from_root(look)
        assembly, replicas = self.assembly, len(self.assembly.actions)
        checkpoint = self._communicator.together(
            lambda: read_checkpoint(path, assembly.device, self._own, replicas)
        )
        chains = ChainsInMotion(
            self.config, assembly, self._communicator, self._distribution, checkpoint
        )
        self._communicator.together(chains.init_kernels)
        return chains

    def _compare(self, row: int, chain: int, field: Tensor) -> None:
        values = configuration_array(field, self.config.action)
        if configuration_checksum(values) != int(self.seeds.checksums[row, chain]):
            raise self._differs(row, chain)

    def _differs(self, row: int, chain: int) -> ConfigError:
        of_chain = f" of chain {chain}" if self.config.chains.count > 1 else ""
        return ConfigError(
            f"{self.path}: configuration {self.seeds.numbers(chain)[row]}{of_chain} has another "
            f"checksum than when it was made: {self._reasons()}"
        )

    def _reasons(self) -> str:
        """Return why other bytes may come out here."""
        before, now = self.seeds.content.get("made_with", {}), environment(self.assembly.device)
        before = before if isinstance(before, Mapping) else {}
        changed = [f"{key} {before[key]}" for key in now if before.get(key, now[key]) != now[key]]
        if not changed:
            return "the file is damaged, or this machine rounds differently or is faulty"
        return (
            f"it was made with {', '.join(changed)}, and another kind of processor or version may "
            "round differently: make it there, or the file is damaged"
        )

    def _check_flows(self) -> None:
        """Raise ConfigError if a flow has other weights than that of the run."""
        stored = self.seeds.content.get("flows")
        stored = stored if isinstance(stored, Mapping) else {}
        for name, digest in self.assembly.fingerprints.items():
            if stored.get(name) != digest:
                raise ConfigError(
                    f"{self.path}: the flow {name!r} is not the one that the configurations were "
                    f"made with, its digest is {digest}, not {stored.get(name)}: restore it, or "
                    "name with --base the directory in which it lies"
                )


def open_seeds(
    path: str | Path, *, base: Path | None = None, communicator: Communicator | None = None
) -> Regeneration:
    """Read a file of seeds, and the flows that it needs; collective.

    Args:
        path: the file, or a run directory with one.
        base: directory that paths of flows refer to; by default where the run found them.
        communicator: of all ranks; this process alone by default.

    Raises:
        FormatError: it is damaged, or no file of seeds.
        ConfigError: what it needs is missing or another one.
        OSError: it cannot be opened.
        CollectiveError: one of these, on several ranks.
    """
    communicator = communicator or Communicator()
    file, seeds, config = communicator.together(lambda: _read(path, base))
    return Regeneration(file, seeds, config, communicator)


def seeds_base(path: str | Path, base: str | None) -> Path:
    """Return the directory that paths of a file of seeds refer to.

    Args:
        path: as of :func:`open_seeds`.
        base: given in its place.

    Raises:
        As :func:`open_seeds`.
    """
    if base is not None:
        return Path(base)
    file = seeds_file(Path(path))
    return file.parent / str(read_seeds(file).content.get("base", "."))


def seeds_file(path: Path) -> Path:
    """Return the file of seeds of a run directory, or the file itself.

    Raises:
        ConfigError: the directory has none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted({*path.glob("*.seeds"), *(path / "ensemble").glob("*.seeds")})
    if len(found) != 1:
        what = "no file" if not found else "several files"
        raise ConfigError(
            f'{path} has {what} of seeds, as a run with [ensemble] format = "seeds" writes one: '
            "name the file"
        )
    return found[0]


def _read(path: str | Path, base: Path | None) -> tuple[Path, Seeds, RunConfig]:
    path = seeds_file(Path(path))
    seeds = read_seeds(path)
    content: Mapping[str, Any] = seeds.content
    base = seeds_base(path, None) if base is None else base
    try:
        with named_by(str(path)):
            config = read_config(content["configuration"], base)
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not hold the configuration of a run: {error}") from error
    origins = content.get("origins")
    is_whole = (
        config.ensemble is not None
        and config.run.save_every == content["step"]
        and config.chains.count == seeds.chains
        and isinstance(content.get("identity"), str)
        and bool(content["identity"])
        and isinstance(origins, list)
        and len(origins) in (1, seeds.chains)
        and all({"name", "number", "source"} <= set(one) for one in origins)
    )
    if not is_whole:
        raise ConfigError(f"{path} does not say how its configurations were made: it is damaged")
    return path, seeds, config
