"""One of several configurations in a file, written FILE#N: which file, and which of them.

In files of links, N counts the gauge fields from 1 on, the one that is read by default first; in
HDF5 files it may also be the path of the dataset or group. In HDF5 files of scalar and U(1) fields
N is the configuration's number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from .configuration import PathLike
from .errors import FormatError

_T = TypeVar("_T")


def split_selection(path: PathLike) -> tuple[PathLike, str | None]:
    """The file, and what stands behind the last "#", or None.

    A file that has such a name is meant itself. Without the file before the "#", the path is
    returned as it is, for the error of whoever opens it.

    Raises:
        FormatError: what follows the "#" selects nothing.
    """
    name, mark, selection = os.fspath(path).rpartition("#")
    if not mark or not os.path.exists(name) or os.path.lexists(path):
        return path, None
    if not selection.isdecimal() and not selection.startswith("/"):
        raise FormatError(
            name,
            None,
            f"#{selection} selects no configuration: write FILE#N, or FILE#/path/of/dataset for "
            "HDF5 files",
        )
    return name, selection


def file_of(path: PathLike) -> PathLike:
    """The file that FILE#N is in; errors as `split_selection`."""
    return split_selection(path)[0]


def selected(path: PathLike, found: Sequence[_T], selection: str | None) -> _T:
    """The N-th of what was found in a file, the first one if there is no selection.

    Raises:
        FormatError: there is none such.
    """
    if selection is None:
        return found[0]
    if not selection.isdecimal() or not 1 <= int(selection) <= len(found):
        raise FormatError(
            path,
            None,
            f"#{selection} selects none of the fields in it: there "
            + ("is one" if len(found) == 1 else f"are {len(found)}, #1 to #{len(found)}"),
        )
    return found[int(selection) - 1]
