"""The files of an ensemble: which a command line means, and what is missing among them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..atomic import ENDING
from ..errors import FormatError
from ..heads import read_head
from ..naming import name_pattern, named_like_configuration, natural_key
from ..registry import detect, formats
from ..seeds import holds_seeds
from ..unpacking import compression_of, unpacked_head
from ..unsupported import is_configuration

_UNKNOWN = "no configuration"
UNFINISHED = "unfinished: it is being written now, or the write was killed; then remove it"


@dataclass(frozen=True)
class FileList:
    """What was found.

    Attributes:
        files: in the order of the arguments, those of a directory by the numbers in their names.
        skipped: files of directories that are no configurations, with the reason.
        many: whether a directory or a pattern was among the arguments.
    """

    files: list[str]
    skipped: list[tuple[str, str]]
    many: bool


def expand(arguments: Sequence[str]) -> FileList:
    """Files, directories and patterns (for shells that leave them alone) as a list of files.

    Of a directory, hidden files (unfinished ones with a word), `.info` companions, random-number
    states, directories and files that no format knows are left out. A file that is named like a
    configuration, by a number, a suffix or as others in the directory that are some, or is empty,
    stays: it may be what is left of one. A directory that a pattern stands for counts like one that
    is named. Of several files, companions are left out as well.
    """
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    many = False
    for argument in arguments:
        meant = [argument]
        if not os.path.lexists(argument) and glob.has_magic(argument):
            many = True
            meant = sorted(glob.glob(argument), key=natural_key) or [argument]
        several = many or len(arguments) > 1
        for name in meant:
            if _is_folder(name):
                many = True
                found, left_out = _of_folder(Path(name))
                files += found
                skipped += left_out
            elif not (several and _is_companion(Path(name))):
                files.append(name)
    return FileList(files, skipped, many)


def _of_folder(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The configurations of a directory, and what was left out, with the reason."""
    paths = sorted(folder.iterdir(), key=natural_key)
    reasons = {path: _reason_to_skip(path) for path in paths}
    patterns = {name_pattern(path) for path, reason in reasons.items() if reason is None}
    for path, reason in reasons.items():
        if reason == _UNKNOWN and name_pattern(path) in patterns:
            reasons[path] = None
    return (
        [str(path) for path, reason in reasons.items() if reason is None],
        [(str(path), reason) for path, reason in reasons.items() if reason],
    )


def _is_folder(path: str) -> bool:
    """Whether it is a directory of files, not one that is a configuration itself."""
    return os.path.isdir(path) and not os.path.exists(os.path.join(path, "index.crc32"))


def number_gaps(numbers: Sequence[int]) -> tuple[int, list[int]]:
    """The usual distance of configuration numbers, and the numbers missing at that distance.

    Args:
        numbers: in any order.

    Returns:
        (0, []) for fewer than three numbers.
    """
    ordered = sorted(set(numbers))
    if len(ordered) < 3:
        return 0, []
    steps = Counter(after - before for before, after in pairwise(ordered))
    step = max(steps, key=lambda distance: (steps[distance], -distance))
    missing: list[int] = []
    for before, after in pairwise(ordered):
        if (after - before) % step == 0 and after - before < 1000 * step:
            missing += range(before + step, after, step)
    return step, missing


def _is_companion(path: Path) -> bool:
    """Whether this is the text that MILC writes beside a configuration that is there, too."""
    return path.suffix == ".info" and path.with_suffix("").exists()


def _reason_to_skip(path: Path) -> str | None:
    """None for a configuration, "" for a file not worth a word, else the reason."""
    if path.name.startswith(".") and path.name.endswith(ENDING):
        return UNFINISHED
    if path.name.startswith(".") or _is_companion(path):
        return ""
    if path.is_dir():
        return "a directory, not looked into" if _is_folder(str(path)) else None
    if not path.is_file():
        return ""
    try:
        head = read_head(path)
        compression = compression_of(head)
        if holds_seeds(head):
            return None
        if compression is not None:  # not unpacked for that
            head = unpacked_head(path, compression)
            known = any(one.detect(head, path) for one in formats().values())
            return None if known or named_like_configuration(path, head) else _UNKNOWN
        found = detect(path)
        found.read_header(path)
    except FormatError as error:
        if "random-number state" in error.reason:
            return "a random-number state"
        if _is_unknown(path):
            return _UNKNOWN
    except OSError:
        pass
    return None


def _is_unknown(path: Path) -> bool:
    """Whether no format knows a file, and it is not even the remains of a configuration."""
    try:
        detect(path)
    except FormatError:
        head = read_head(path)
        kept = not head or is_configuration(head) or named_like_configuration(path, head)
        return not kept
    return False
