"""What a run writes in the place of configurations: a file of seeds, and checkpoints that stay.

``ensemble/<name>.seeds`` (:mod:`flowmc_adapters.seeds`) has the resolved configuration, the digests
of the flows and a checksum of every configuration; ``ensemble/checkpoints/<count>.h5`` are
checkpoints after so many updates of production, from which :mod:`flowmc.chains.regeneration` goes
on.  A run whose configurations are all draws of a flow needs none: what was drawn in an update
follows from the seed and the number of the update.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flowmc_adapters import FormatError
from flowmc_adapters.seeds import (
    Seeds,
    checkpoint_path,
    configuration_checksum,
    read_seeds,
    write_seeds,
)
from torch import Tensor

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.storage.configurations import ConfigurationWriter, Origins
from flowmc.chains.storage.directory import RunDirectory, environment, identity_of
from flowmc.io import configuration_array
from flowmc.jobs.own_files import naming
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError

__all__ = ["SeedsWriter"]

# Of the surroundings, what rounding may depend on; neither ranks nor threads change a byte.
_ROUNDING = ("flowmc", "torch", "numpy", "cpu", "device_name")
# Of [ensemble] keep_every.
_KEPT_EVERY = 100


class SeedsWriter:
    """Collects the checksums of configurations, and writes them with every checkpoint.

    Args:
        directory: of the run.
        config: with an ``[ensemble]`` of seeds.
        assembly: of it.
        origins: of the chains of this rank, see
            :func:`~flowmc.chains.storage.configurations.origin_of`.
    """

    def __init__(
        self, directory: RunDirectory, config: RunConfig, assembly: Assembly, origins: Origins
    ) -> None:
        assert config.ensemble is not None and config.run.save_every is not None
        self._config, self._assembly, self._origins = config, assembly, origins
        self._folder = directory.ensemble
        self._save_every = config.run.save_every
        self._content: Mapping[str, Any] | None = None
        # On rank 0: of all chains, what is beyond the rows so far is blank.
        rows = config.run.updates // self._save_every
        self._checksums = np.zeros((rows, config.chains.count), np.uint64)
        self._new: list[tuple[int, int, int]] = []

    @property
    def path(self) -> Path:
        """The file; rank 0 knows its name once it was written or read."""
        assert self._content is not None
        return self._folder / f"{self._content['name']}.seeds"

    def is_kept(self, production_update: int) -> bool:
        """Whether a checkpoint after so many production updates stays."""
        every = _checkpoint_every(self._config)
        return every > 0 and production_update >= 0 and production_update % every == 0

    def checkpoint(self, production_update: int) -> Path:
        """Return where that checkpoint is; the folder is made."""
        path = checkpoint_path(self._folder / "seeds", production_update)
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, chain: int, production_update: int, chain_field: Tensor) -> None:
        """Note the checksum of the field ``(...)`` of one chain."""
        row = production_update // self._save_every - 1
        values = configuration_array(chain_field, self._config.action)
        self._new.append((row, chain, configuration_checksum(values)))

    def store(self, production_update: int, communicator: Communicator) -> None:
        """Write the file with all configurations up to an update; collective.

        Raises:
            OSError, CollectiveError: disk full and the like; the file is as before.
        """
        rows = production_update // self._save_every
        if rows < 1:
            return
        # Who they come from is said once.
        origins = self._origins if self._content is None else {}
        gathered = communicator.gather((np.array(self._new, np.uint64).reshape(-1, 3), origins))
        self._new = []

        def write() -> None:
            assert gathered is not None
            for new, _ in gathered:
                places = new[:, :2].astype(np.int64)
                self._checksums[places[:, 0], places[:, 1]] = new[:, 2]
            if self._content is None:
                merged = {chain: one for _, own in gathered for chain, one in own.items()}
                self._content = _content(self._config, self._assembly, merged, self._folder)
            with naming(self.path):
                self._folder.mkdir(parents=True, exist_ok=True)
                write_seeds(self.path, Seeds(self._content, self._checksums[:rows]))

        communicator.from_root(write)
        self._content = self._content or {}

    def restore(self, production_update: int) -> None:
        """Take up what was written up to the checkpoint of an earlier process; on rank 0.

        Raises:
            ConfigError: the file is missing, damaged, or not the one that belongs to the run.
        """
        rows = production_update // self._save_every
        if rows < 1:
            return
        self._content = _content(self._config, self._assembly, self._origins, self._folder)
        remedy = "restore it from a copy, or choose another --output"
        try:
            found = read_seeds(self.path)
        except (FormatError, OSError) as error:
            text = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{self.path} cannot be read ({text}), the run cannot be resumed: {remedy}"
            ) from error
        if found.content.get("identity") != self._content["identity"] or (
            found.chains != self._config.chains.count or len(found.checksums) < rows
        ):
            raise ConfigError(
                f"{self.path} does not hold the {rows} configurations of each chain that the run "
                f"has made up to its checkpoint: {remedy}"
            )
        self._checksums[:rows] = found.checksums[:rows]


def _checkpoint_every(config: RunConfig) -> int:
    """Return the production updates from one kept checkpoint to the next; 0: none is needed."""
    assert config.ensemble is not None and config.run.save_every is not None
    if config.is_drawn:
        return 0
    return (config.ensemble.keep_every or _KEPT_EVERY) * config.run.save_every


def _content(
    config: RunConfig, assembly: Assembly, origins: Origins, folder: Path
) -> dict[str, Any]:
    """Return what a file of seeds says beside the checksums.

    Args:
        config: of the run.
        assembly: of it.
        origins: of all chains.
        folder: that the file is in.
    """
    assert config.ensemble is not None and config.run.save_every is not None
    action, made_with = config.action, environment(assembly.device)
    numbering = ConfigurationWriter(folder, config, origins)
    first = [numbering.number(chain, config.run.save_every) for chain in range(config.chains.count)]
    each = [origins[chain] for chain in range(config.chains.count)]
    return {
        "lattice": list(action.lattice),
        "group": action.group.name,
        "precision": config.chains.precision,
        "name": config.ensemble.name or each[0]["name"],
        "first": first[:1] if len(set(first)) == 1 else first,
        "step": config.run.save_every,
        "checkpoint_every": _checkpoint_every(config),
        "configuration": _without_defaults(config.resolved),
        "identity": identity_of(config.resolved)[:32],
        "base": os.path.relpath(config.base.absolute(), folder.absolute()),
        "flows": dict(assembly.fingerprints),
        "origins": each[:1] if all(one == each[0] for one in each) else each,
        "made_with": {key: made_with[key] for key in _ROUNDING if key in made_with},
    }


def _without_defaults(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without what is not set, and what changes no configuration."""
    tables = {
        name: table for name, table in resolved.items() if name not in ("measure", "parallel")
    }
    tables["run"] = {
        key: value
        for key, value in resolved["run"].items()
        if key not in ("time_limit", "report", "checkpoint_every", "measure_every")
    }
    return {name: _set(table) for name, table in tables.items()}


def _set(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _set(one) for key, one in value.items() if one is not None}
    return [_set(one) for one in value] if isinstance(value, list) else value
