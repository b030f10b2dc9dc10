"""The format "hdf5": gauge fields in HDF5 files, in our layout and in those of other codes.

    flowmc   group `gauge`, dataset `links` (Lt, Lz, Ly, Lx, 4, N, N), all else in attributes
    pyquda   group `LatticeColorMatrix`, datasets X, Y, Z, T of shape (Lt, Lz, Ly, Lx, N, N)
    qdp++    one dataset (Lt, Lz, Ly, Lx, 4) of [N][N] matrices, anywhere
    lyncs    one dataset (Lt, Lz, Ly, Lx, 4, N, N), anywhere (read only)
    qlua     datasets 0, 1, 2, 3 of shape (Lx, Ly, Lz, Lt) of [N][N] matrices (read only)

Datasets that lie in one piece are read and written by their place in the file, like any other
format; chunked and compressed ones go through the HDF5 library. Sources: the readers and writers of
PyQUDA, QDP++, QLUA and lyncs.io.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .. import scidac_xml
from ..byte_order import proven_order
from ..checksums import ChecksumSum, ScidacChecksum, parse_hexadecimal
from ..configuration import Checksum, Header, PathLike
from ..errors import FormatError
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat
from ..links import LayoutSource, LinkSource
from ..metadata import parse_metadata
from ..selection import file_of, split_selection
from ..storage import FileStorage, OpenStorage
from ..surplus import check_end
from .attributes import attribute, real_attribute, text_attribute, vet_heaps
from .checksum import PyQudaChecksum
from .file import guarded, is_hdf5, opened, stated_end
from .layouts import STYLES, Found, find_links
from .source import Hdf5Source
from .writing import PYQUDA_METADATA, frame_of_style

_WRITERS = {"flowmc": "flowmc", "pyquda": "PyQUDA", "qdp++": "QDP++", "qlua": "QLUA"}


@dataclass(frozen=True)
class Hdf5Header(Header):
    """A header that remembers where in the file the links were found."""

    found: Found | None = None


class Hdf5Format(LayoutFormat):
    """HDF5: ours, PyQUDA, QDP++/Chroma, lyncs.io, QLUA."""

    name = "hdf5"
    description = "HDF5 (ours, PyQUDA, QDP++/Chroma; lyncs.io and QLUA read only)"
    options = {"style": ("flowmc", "pyquda", "qdp++")}  # noqa: RUF012 - declared in Format
    layouts = STYLES
    four_dimensions = False
    several = True

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By magic, at the places where a user block allows it."""
        return is_hdf5(head, path)

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Hdf5Header:
        """See `Format.read_header`."""
        path, selection = split_selection(path)
        with opened(path) as file, guarded(path):
            found = find_links(file, path, layout, dims, selection)
            header = _header(file, path, found)
        if found.in_place:
            check_size(path, found.layout)
            layout_found = proven_order(path, found.layout, header.warnings)
            header = replace(header, layout=layout_found, found=replace(found, layout=layout_found))
        end = stated_end(path)
        if end is not None:
            header.failed_checks.update(check_end(path, end, header.warnings))
        return header

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        if not isinstance(header, Hdf5Header) or header.found is None:
            raise TypeError(f"{self.name}: the header is of another format")
        kind = None if header.checksum is None else header.checksum.kind

        def checksum(layout: Layout) -> ChecksumSum:
            if kind == PyQudaChecksum.kind:
                return PyQudaChecksum(len(layout.dims), layout.link_bytes)
            return ScidacChecksum(layout.site_bytes)

        path, found = file_of(path), header.found
        if found.in_place:
            with storage(path) as file:
                yield LayoutSource(file, found.layout, checksum)
            return
        with opened(path) as file:
            yield Hdf5Source(path, file, found.datasets, found.layout, found.time_last, checksum)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        return frame_of_style(path, field, options["style"])


def _header(file: Any, path: PathLike, found: Found) -> Hdf5Header:
    """What the attributes say."""
    warnings = list(found.warnings)
    group, dataset = file[found.group], file[found.datasets[0]]
    if found.style != "flowmc":
        pieces = found.layout.directions or (found.layout.offset,)
        share = found.layout.total_bytes // len(pieces)
        vet_heaps(path, [(first, share) for first in pieces] if found.in_place else [])
    checksum, plaquette, trace = None, None, None
    metadata: dict[str, str] = {}
    if found.style == "flowmc":
        _require_same(path, group, found)
        checksum = _own_checksum(group, path, warnings)
        plaquette = real_attribute(group, "plaquette", path)
        trace = real_attribute(group, "link_trace", path)
        metadata = _metadata(group, "metadata", path, warnings)
    elif found.style == "pyquda":
        checksum = _pyquda_checksum([file[name] for name in found.datasets], path, warnings)
        metadata = _metadata(group, PYQUDA_METADATA, path, warnings, vetted=True)
        annotation = text_attribute(group, "Annotation", path, vetted=True)
        if annotation:
            metadata["Annotation"] = annotation
        extents = " ".join(map(str, found.layout.dims))
        stated = text_attribute(group, "Lattice", path, vetted=True)
        if stated is not None and stated.split() != extents.split():
            warnings.append(f"attribute Lattice says {stated[:40]!r}, the datasets are {extents}")
    elif found.style == "qdp++":
        for name, key in (("file_xml", "scidac-file-xml"), ("record_xml", "scidac-record-xml")):
            text = text_attribute(dataset, name, path, vetted=True)
            if text:
                metadata[key] = text
        info = scidac_xml.tag_text(metadata.get("scidac-record-xml", ""), "usqcdInfo")
        if info is not None:
            plaquette = scidac_xml.tag_real(info, "plaq")
            trace = scidac_xml.tag_real(info, "linktr")
            metadata |= scidac_xml.split_info(scidac_xml.tag_text(info, "info") or "")[1]
    else:
        for name in list(dataset.attrs)[:1000]:
            value = attribute(dataset, name, path, vetted=True)
            if isinstance(value, str | int | float) and not name.startswith("."):
                metadata[name] = str(value)
    if found.style in ("flowmc", "pyquda") and checksum is None:
        warnings.append("no checksum in this file: damage would go unnoticed")
    layout = found.layout
    return Hdf5Header(
        format=Hdf5Format.name,
        dims=layout.dims,
        nc=layout.nc,
        precision=layout.precision,
        layout=layout if found.in_place else None,
        writer=_WRITERS.get(found.style, ""),
        checksum=checksum,
        plaquette=plaquette,
        link_trace=trace,
        metadata=metadata,
        warnings=warnings,
        found=found,
    )


def _require_same(path: PathLike, group: Any, found: Found) -> None:
    stated = attribute(group, "dims", path)
    if isinstance(stated, list) and tuple(stated) != found.layout.dims:
        raise FormatError(
            path,
            None,
            f"attribute dims says {stated}, the dataset has {list(found.layout.dims)}: damaged",
        )


def _own_checksum(group: Any, path: PathLike, warnings: list[str]) -> Checksum | None:
    texts = [text_attribute(group, name, path) for name in ("suma", "sumb")]
    return _checksum("scidac", texts, warnings)


def _pyquda_checksum(datasets: list[Any], path: PathLike, warnings: list[str]) -> Checksum | None:
    texts = [
        text_attribute(dataset, name, path, vetted=True)
        for dataset in datasets
        for name in ("sum29", "sum31")
    ]
    return _checksum("pyquda", texts, warnings)


def _checksum(kind: str, texts: list[str | None], warnings: list[str]) -> Checksum | None:
    if all(text is None for text in texts):
        return None
    values = [parse_hexadecimal(text or "") for text in texts]
    if any(value is None for value in values):
        # Kept as a checksum that nothing can equal, so that it fails the check
        warnings.append(f"the stored checksum is not hexadecimal numbers: {texts}")
        return Checksum(kind, "unreadable", None)
    return Checksum(kind, " ".join(f"{value:x}" for value in values), None)


def _metadata(
    owner: Any, name: str, path: PathLike, warnings: list[str], *, vetted: bool = False
) -> dict[str, str]:
    found = parse_metadata(text_attribute(owner, name, path, vetted=vetted))
    if found is None:
        warnings.append(f"attribute {name} is not a JSON object of texts: ignored")
        return {}
    return found
