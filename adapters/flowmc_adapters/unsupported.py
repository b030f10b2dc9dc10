"""Files that are recognised but cannot be read by this version, so that the error can name them."""

from __future__ import annotations

import struct

from .errors import FormatError
from .formats import PathLike

_EXPORT = "export it as NERSC or ILDG with the code that wrote it"
_ARCHIVES = (
    (b"PK\x03\x04", "a zip archive, and no npz file of links", "unzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd, which cannot be read here", "zstd -d"),
    (b"\x04\x22\x4d\x18", "compressed with lz4, which cannot be read here", "lz4 -d"),
    (b"LZIP", "compressed with lzip, which cannot be read here", "lzip -d -k"),
    (b"\x1f\x9d", "compressed with compress, which cannot be read here", "uncompress"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
)
_MILC_1996 = 53546
_CP_PACS = 19920410


def refuse(path: PathLike, head: bytes) -> FormatError:
    """The error for a file that no format wants.

    Args:
        path: the file.
        head: its first bytes.
    """
    name = _name(head)
    if name is None:
        return FormatError(path, 0, f"not a known configuration file; it begins with {head[:16]!r}")
    return FormatError(path, 0, name)


def is_configuration(head: bytes) -> bool:
    """Whether a file that cannot be read is certainly a configuration."""
    return _binary_name(head) is not None


def _name(head: bytes) -> str | None:
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the data: fetch the file with `git lfs pull`"
    if head.startswith(b"magic_number"):
        return "the text that MILC writes beside a configuration: give the configuration itself"
    for magic, what, command in _ARCHIVES:
        if head.startswith(magic):
            return f"{what}: unpack it with `{command} FILE`"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it with `tar -xf FILE` and give the configuration inside"
    return _binary_name(head)


def _binary_name(head: bytes) -> str | None:
    if len(head) < 24:
        return None
    for order in "<>":
        (magic,) = struct.unpack_from(f"{order}I", head)
        if magic == _MILC_1996:
            return f"a MILC file of 1996, which this version cannot read: {_EXPORT}"
        if magic == _CP_PACS:
            return f"a CP-PACS file, which this version cannot read: {_EXPORT}"
    return None
