"""Files of seeds: what made the configurations of an ensemble, in the place of the configurations.

A zip archive of two members, which `zipfile` or `unzip -p FILE seeds.json` show:

- `seeds.json`, a JSON object: theory, random seeds, digests of flows and what else the program that
  wrote it needs to make the configurations again;
- `checksums.npy`, a numpy array of uint64, `(configurations of a chain, chains)`: what
  `configuration_checksum` gives for each of them.

The CRC-32 that an archive has of each member is its checksum. Configurations themselves are made by
`flowmc regenerate`; here is what can be known without.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import atomic_write
from .configuration import PathLike
from .errors import FormatError
from .heads import read_head

__all__ = [
    "Seeds",
    "checkpoint_path",
    "configuration_checksum",
    "holds_seeds",
    "is_seeds",
    "read_seeds",
    "refusal_of_seeds",
    "write_seeds",
]

SEEDS, CHECKSUMS = "seeds.json", "checksums.npy"
LAYOUT = 1
# Bytes of the first member's header in a zip archive; its name follows.
_LOCAL_HEADER = 30
_LARGEST_HEADER = 2**28
_COPY = "restore it from a copy"


@dataclass(frozen=True)
class Seeds:
    """The content of a file of seeds.

    Attributes:
        content: of `seeds.json`; `lattice` (x first), `group` ("R", "U(1)", "SU(3)"), `precision`
            (bits of a number), `name` of the ensemble, `first` (number of the first configuration
            of all chains, or of each), `step` (from one number to the next), `checkpoint_every`
            (updates of production from one kept checkpoint to the next, 0 if none is needed), and
            what belongs to the program that wrote it.
        checksums: `(configurations of a chain, chains)`, uint64.
    """

    content: Mapping[str, Any]
    checksums: npt.NDArray[np.uint64]

    @property
    def chains(self) -> int:
        """Number of Markov chains."""
        return int(self.checksums.shape[1])

    @property
    def checkpoints(self) -> range:
        """Updates of production after which checkpoints were kept that are needed."""
        every, last = self.content["checkpoint_every"], len(self.checksums) * self.content["step"]
        return range(0, last + 1, every) if every else range(0)

    def numbers(self, chain: int = 0) -> range:
        """The configuration numbers of a chain, in order."""
        first = self.content["first"]
        start, step = first[chain if len(first) > 1 else 0], self.content["step"]
        return range(start, start + step * len(self.checksums), step)


def checkpoint_path(path: PathLike, production_update: int) -> Path:
    """Where the checkpoint after so many updates of production is that belongs to a file of seeds,
    or to others in its directory."""
    return Path(path).parent / "checkpoints" / f"{production_update:08d}.h5"


def configuration_checksum(values: npt.NDArray[Any]) -> int:
    """The checksum of a configuration: BLAKE2b with a digest of 8 bytes, as an integer.

    Args:
        values: in the order of files, `U[t, z, y, x, mu, row, col]`, of the precision in which they
            were computed. Their bytes, little-endian, are summed up, so that it does not depend on
            the format of any file.
    """
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(plain.reshape(-1).view(np.uint8).data, digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def holds_seeds(head: bytes) -> bool:
    """Whether a file that begins so is a file of seeds."""
    name = head[_LOCAL_HEADER : _LOCAL_HEADER + len(SEEDS)]
    return head.startswith(b"PK\x03\x04") and name == SEEDS.encode()


def is_seeds(path: PathLike) -> bool:
    """Whether this is a file of seeds; False for what is no file."""
    return os.path.isfile(path) and holds_seeds(read_head(path))


def refusal_of_seeds(path: PathLike) -> FormatError:
    """The error for a file of seeds where a configuration is needed."""
    return FormatError(
        path,
        None,
        "holds what configurations were made of, not the configurations: make them with `flowmc "
        "regenerate FILE`",
    )


def read_seeds(path: PathLike) -> Seeds:
    """The content of a file of seeds.

    Raises:
        FormatError: it is none, damaged, or of a later version.
        OSError: it cannot be opened.
    """
    if not is_seeds(path):
        open(path, "rb").close()
        raise FormatError(path, None, "is no file of seeds, as flowmc run writes them")
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(_member(archive, SEEDS, _LARGEST_HEADER))
            data = io.BytesIO(_member(archive, CHECKSUMS, os.path.getsize(path)))
            checksums = np.lib.format.read_array(data, allow_pickle=False)
    except Exception as error:  # damage shows as almost any exception
        text = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(
            path, None, f"damaged or truncated file of seeds ({text}): {_COPY}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("layout"), int):
        if content["layout"] != LAYOUT:
            raise FormatError(
                path,
                None,
                f"has layout {content['layout']}, this version reads {LAYOUT}: use the version of "
                "flowmc that made it",
            )
        if _is_complete(content, checksums):
            return Seeds(content, checksums.astype(np.uint64, copy=False))
    raise FormatError(path, None, f"damaged file of seeds (it lacks what it should say): {_COPY}")


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member, compared with its CRC-32; at most so many bytes of it."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise ValueError(f"{name} claims {size} bytes")
    with archive.open(name) as member:
        data = member.read(size)
        if member.read(1):  # the CRC-32 is compared at the end
            raise ValueError(f"{name} has more than {size} bytes")
    return data


def _is_complete(content: Mapping[str, Any], checksums: npt.NDArray[Any]) -> bool:
    def integers(value: Any, least: int) -> bool:
        return isinstance(value, list) and all(type(n) is int and n >= least for n in value)

    if checksums.ndim != 2 or checksums.dtype != np.dtype("<u8") or not checksums.shape[1]:
        return False
    first, step = content.get("first"), content.get("step")
    return (
        integers(content.get("lattice"), 1)
        and integers(first, 0)
        and isinstance(first, list)
        and len(first) in (1, checksums.shape[1])
        and type(step) is int
        and step > 0
        and type(content.get("checkpoint_every")) is int
        and content["checkpoint_every"] >= 0
        and content.get("precision") in (32, 64)
        and all(isinstance(content.get(key), str) for key in ("group", "name"))
    )


def write_seeds(path: PathLike, seeds: Seeds) -> None:
    """Write a file of seeds atomically; equal content gives equal bytes.

    Raises:
        OSError: disk full and the like; a file that was there before is untouched.
    """
    text = json.dumps({"layout": LAYOUT, **seeds.content}, separators=(",", ":"))
    data = io.BytesIO()
    np.lib.format.write_array(data, np.ascontiguousarray(seeds.checksums, "<u8"), version=(1, 0))
    with atomic_write(path, follow=False) as file, zipfile.ZipFile(file, "w") as archive:
        # An archive's first day, 1 January 1980, in the place of now
        archive.writestr(zipfile.ZipInfo(SEEDS), text, zipfile.ZIP_DEFLATED, 9)
        archive.writestr(zipfile.ZipInfo(CHECKSUMS), data.getvalue())


def describe(path: PathLike, seeds: Seeds) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Entries for the report of `inspect`, what else there is to say, and warnings."""
    content, rows = seeds.content, len(seeds.checksums)
    group, made_with = content["group"], content.get("made_with")
    surroundings = made_with if isinstance(made_with, dict) else {}
    is_special = group.startswith("SU(") and group[3:-1].isdecimal()
    kind = "u1" if group == "U(1)" else "scalar" if group == "R" else "gauge"
    report = {
        "writer": " ".join(["flowmc", str(surroundings.get("flowmc", ""))]).strip(),
        "kind": kind,
        "dims": content["lattice"],
        "nc": int(group[3:-1]) if is_special else None,
        "precision": content["precision"],
        "configurations": seeds.checksums.size,
    }
    said = {"CHAINS": str(seeds.chains)}
    if rows:
        firsts = {seeds.numbers(chain)[0] for chain in range(len(content["first"]))}
        each = "" if len(firsts) == 1 else " of chain 0"
        numbers = seeds.numbers()
        steps = f" in steps of {numbers.step}" if rows > 1 else ""
        said["NUMBERS"] = f"{numbers[0]} to {numbers[-1]}{steps}{each}"
    every = content["checkpoint_every"]
    said["MADE_FROM"] = f"checkpoints every {every} updates" if every else "the draws of flows"
    configuration = content.get("configuration")
    if isinstance(configuration, dict):
        said["THEORY"] = json.dumps(configuration.get("theory"))
        chains = configuration.get("chains")
        said["SEED"] = str(chains.get("seed") if isinstance(chains, dict) else None)
    flows = content.get("flows")
    for name, digest in (flows if isinstance(flows, dict) else {}).items():
        said[f"FLOW {name}"] = str(digest)
    said["MADE_WITH"] = ", ".join(f"{key} {value}" for key, value in surroundings.items())
    missing = [one for one in seeds.checkpoints if not checkpoint_path(path, one).exists()]
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {len(seeds.checkpoints)} checkpoints are missing, the first one is "
            f"{checkpoint_path(path, missing[0])}: what follows it cannot be made again"
        )
    return report, said, warnings
