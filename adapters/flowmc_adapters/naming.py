"""Names of configuration files: the number in them, and what a converted file is called."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Of configurations and of nothing else, of configurations or settings, and of anything
_OF_CONFIGURATIONS = frozenset(
    {".lime", ".ildg", ".scidac", ".nersc", ".milc", ".openqcd", ".hirep", ".bmw", ".bridge"}
    | {".h5", ".hdf5", ".npy", ".npz"}
)
_OF_PACKED_FILES = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4", ".lz"})
_OF_SETTINGS = frozenset({".cfg", ".conf"})
_SUFFIXES = _OF_CONFIGURATIONS | _OF_SETTINGS | {".dat", ".bin", ".txt"}


def number_in_name(path: str | os.PathLike[str]) -> int | None:
    """The configuration number at the end of a file name: 1000 of "lat.1000", "run1n1000",
    "conf-1000.lime"; None if there is none.
    """
    name = _without_packing(Path(path).name)
    stem, dot, suffix = name.rpartition(".")
    if dot and not suffix.isdigit():
        name = stem
    found = re.search(r"(?:^|[._\-n])(\d+)$", name)
    return int(found[1]) if found else None


def _without_packing(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in _OF_PACKED_FILES else name


def named_like_configuration(path: str | os.PathLike[str], head: bytes) -> bool:
    """Whether the name of a file says that it is meant to be a configuration: by a number at the
    end, or by its suffix, which for some must not be that of a text.

    Args:
        path: the file.
        head: its first bytes.
    """
    suffix = Path(_without_packing(Path(path).name)).suffix.lower()
    if number_in_name(path) is not None or suffix in _OF_CONFIGURATIONS:
        return True
    return suffix in _OF_SETTINGS and b"\0" in head


def name_pattern(path: str | os.PathLike[str]) -> str:
    """A file's name with every number in it replaced by "#"."""
    return re.sub(r"\d+", "#", Path(path).name)


def converted_name(path: str | os.PathLike[str], suffix: str) -> str:
    """A file's name with the suffix of another format: "conf-1000.lime" becomes "conf-1000.h5",
    "lat.1000" becomes "lat.1000.h5"; the second configuration of a file, "all.lime#2", becomes
    "all_2.h5"."""
    name, selection = Path(path).name, ""
    if not os.path.lexists(path) and (found := re.fullmatch(r"(.+)#(\d+)", name)):
        name, selection = found[1], f"_{found[2]}"
    name = _without_packing(name)
    stem, dot, old = name.rpartition(".")
    if dot and stem and f".{old.lower()}" in _SUFFIXES:
        name = stem
    return name + selection + suffix


def natural_key(path: str | os.PathLike[str]) -> list[tuple[int, int | str]]:
    """For sorting names by the numbers in them: lat.900 before lat.1000."""
    parts = re.split(r"(\d+)", os.fspath(path))
    return [(0, int(part)) if i % 2 else (1, part) for i, part in enumerate(parts)]
