"""What a file format is to the rest of the package: the `Format` contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from .configuration import Configuration, Header, PathLike
from .errors import FormatError

__all__ = ["Format", "PathLike"]


class Format(ABC):
    """A file format: recognise, read and write.

    A format parses and encodes. What all formats have in common is done by the registry: comparing
    the checksum, plaquette and link trace a file stores with those of its links, group membership,
    and the choice of the format. Formats whose links are at regular places in the file derive from
    `LayoutFormat`, which reads and writes for them, whatever the size.

    Attributes:
        name: what users type, e.g. "nersc".
        description: one line for help texts.
        options: what `write` takes besides, each with the values allowed, the default first.
        layouts: for formats in which several orders of the same numbers are in use, what can be
            asked for when the file itself leaves it open.
        suffix: of the files that `convert` makes of an ensemble; "" for that of the name.
        writable: whether `write` is there; old formats are only read.
        several: whether a file may hold several gauge fields, of which FILE#N selects one, see
            `selection`; the path then reaches `read_header`, `open` and `read` as it was written.
        open_boundaries: whether its readers know fields with open boundaries in time, whose time
            links on the last slice are zero.
    """

    name: str
    description: str
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    layouts: tuple[str, ...] = ()
    suffix: str = ""
    writable: bool = True
    several: bool = False
    open_boundaries: bool = False

    @abstractmethod
    def detect(self, head: bytes, path: PathLike) -> bool:
        """Whether this format should read the file. Must not raise.

        Args:
            head: the first bytes of the file (4096, or all of a shorter one).
            path: the file, for those that need more than the head.
        """

    @abstractmethod
    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """What the file says about itself, without reading the links; arguments as `read`.

        Raises:
            FormatError: the header is damaged or its claims do not fit the size of the file.
            OSError: the file cannot be opened.
        """

    @abstractmethod
    def read(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Configuration:
        """The links, and the stored checksum, plaquette and link trace, not yet compared.

        Args:
            path: the file.
            dims: extents (Lx, Ly, Lz, Lt), for files that do not state them.
            layout: one of `layouts`, for files that do not tell; None to find out.

        Raises:
            FormatError: damaged, truncated, or `dims` missing.
            CheckError: the links are not finite.
            OSError: the file cannot be opened.
        """

    @abstractmethod
    def write(
        self,
        path: PathLike,
        configuration: Configuration,
        *,
        precision: int | None = None,
        **options: str,
    ) -> list[str]:
        """Write atomically; equal arguments give equal bytes.

        Args:
            path: the file, replaced if it exists.
            configuration: links and metadata.
            precision: 32 or 64; None keeps that of the links.
            options: see `options` of the class.

        Returns:
            Warnings: what could not be kept.

        Raises:
            FormatError: the format cannot hold this field, or is not `writable`.
            CheckError: the links are not finite.
            OSError: disk full and the like; `path` is then as before.
        """

    def read_only(self, path: PathLike) -> FormatError:
        """The error for whoever wants to write a format that is not `writable`."""
        return FormatError(
            path,
            None,
            f"{self.name} files are read but not written: write nersc, ildg or npy instead",
        )

    def check_options(self, options: Mapping[str, str]) -> dict[str, str]:
        """The options with their defaults filled in.

        Raises:
            ValueError: unknown name or value; the message lists those there are.
        """
        for name, value in options.items():
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"{self.name} has no option {name!r}; it has: {known}")
            if value not in self.options[name]:
                allowed = ", ".join(self.options[name])
                raise ValueError(f"{self.name}: {name} must be one of {allowed}; not {value!r}")
        return {name: allowed[0] for name, allowed in self.options.items()} | dict(options)
