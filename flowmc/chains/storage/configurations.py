"""Saved configurations: which chain's field goes into which file, under which number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flowmc.chains.config import RunConfig
from flowmc.chains.start import StartFiles
from flowmc.ensembles.claims import seeds_of
from flowmc.ensembles.naming import CARRIED, base_name, field_metadata
from flowmc.groups import SUN
from flowmc.io import number_in_name, write_field
from flowmc.jobs.own_files import naming

__all__ = ["ConfigurationWriter", "origin_of"]


Origins = Mapping[int, Mapping[str, str]]


class ConfigurationWriter:
    """Writes ``<name>.<number>``, or ``chain0003/<name>.<number>`` for several chains.

    The number is that of the start file plus the number of production updates, or counts from
    ``first_number`` in steps of ``save_every``.

    Args:
        directory: where they are.
        config: with an ``[ensemble]`` table.
        origins: by chain, see :func:`origin_of`.
    """

    def __init__(self, directory: Path, config: RunConfig, origins: Origins) -> None:
        assert config.ensemble is not None and config.run.save_every is not None
        self.directory, self.config = directory, config
        self.settings, self.save_every = config.ensemble, config.run.save_every
        self.origins = origins

    def path(self, chain: int, production_update: int) -> Path:
        """Return the file of a chain after so many production updates."""
        origin = self.origins[chain]
        name = self.settings.name or origin["name"]
        folder = self.directory
        if self.config.chains.count > 1:
            folder = folder / f"chain{chain:04d}"
        return folder / f"{name}.{self.number(chain, production_update)}"

    def number(self, chain: int, production_update: int) -> int:
        """Return the configuration number of a chain after so many production updates."""
        if self.settings.first_number is not None:
            return self.settings.first_number + production_update - self.save_every
        return int(self.origins[chain]["number"]) + production_update

    def metadata(self, chain: int, production_update: int) -> dict[str, str]:
        """Return what stands beside the field of a chain after so many production updates."""
        origin = self.origins[chain]
        metadata = {key: origin[key] for key in CARRIED if key in origin}
        earlier = [int(word) for word in origin.get("seeds", "").split()]
        metadata |= field_metadata(self.config.action, self.config.chains.seed, earlier)
        metadata |= {
            "SEQUENCE_NUMBER": str(self.number(chain, production_update)),
            "FLOWMC_CHAIN": str(chain),
            "FLOWMC_UPDATE": str(production_update),
            "FLOWMC_SOURCE": origin["source"],
        }
        if not isinstance(self.config.action.group, SUN):
            seed = self.config.chains.seed
            metadata["CHAIN"] = str(chain)
            metadata["RANDOM_STATE"] = f"seed {seed}, chain {chain}, update {production_update}"
        return metadata

    def write(self, chain: int, production_update: int, chain_field: Tensor) -> Path:
        """Write the field ``(...)`` of one chain; return the file.

        Raises:
            OSError, FormatError: as :func:`flowmc.io.write_field`.
        """
        path = self.path(chain, production_update)
        with naming(path):
            write_field(
                path,
                chain_field,
                self.config.action,
                format=self.settings.format,
                precision=self.settings.precision,
                metadata=self.metadata(chain, production_update),
            )
        return path


def origin_of(config: RunConfig, files: StartFiles, chain: int) -> dict[str, str]:
    """Return what saved configurations of a chain inherit: name, number and source of the start.

    It is stored with the run, so that a resumed run need not read the start files again.
    """
    origin = {"name": "conf", "number": "0", "source": str(config.chains.start)}
    if files.paths:
        path, stored = files.of_chain(chain)
        origin["name"], origin["source"] = base_name(path), Path(path).name
        # The name comes first: it is what users see and number their next files by.
        in_name = number_in_name(path)
        number = in_name if in_name is not None else stored.number
        origin["number"] = str(number or 0)
        seeds = seeds_of(path, stored.metadata)
        if seeds:
            origin["seeds"] = " ".join(map(str, seeds))
        origin |= {key: stored.metadata[key] for key in CARRIED if key in stored.metadata}
    return origin
