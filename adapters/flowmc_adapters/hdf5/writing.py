"""Writing gauge fields to HDF5 files: the frames of the three layouts."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from .. import scidac_xml
from ..checksums import ChecksumSum, ScidacChecksum
from ..configuration import PathLike
from ..errors import FormatError
from ..layout import Layout
from ..layout_format import Description, Frame, Written
from ..metadata import carried_keys, metadata_text, no_text
from .attributes import set_attributes
from .checksum import PyQudaChecksum
from .file import completed, created, new_dataset
from .layouts import GAUGE_FORMAT, LINKS

GROUP = "gauge"
PYQUDA_GROUP = "LatticeColorMatrix"
PYQUDA_METADATA = "flowmc_metadata"
_CONVENTIONS = (
    "U_mu(x) is the parallel transporter in the plaquette "
    "U_mu(x) U_nu(x+mu) U_mu(x+nu)^dagger U_nu(x)^dagger, whose mean Re Tr / N is the attribute "
    "plaquette; x is the first direction and runs fastest among the sites, mu counts the "
    "directions in the order of dims; link_trace is the mean Re Tr U / N"
)
CHECKSUM_DEFINITION = (
    "SciDAC: with c(r) the CRC-32 of the little-endian bytes of site r = x + Lx (y + Ly (z + ...)),"
    " suma = XOR rotl32(c(r), r mod 29), sumb = XOR rotl32(c(r), r mod 31)"
)


class Hdf5Frame(Frame):
    """An HDF5 file around the links: made first with room for them, completed with attributes.

    Args:
        field: what is written.
        layout: how the links are stored.
    """

    def __init__(self, field: Description, layout: Layout) -> None:
        super().__init__(layout)
        self._field = field

    @property
    def _number(self) -> np.dtype[Any]:
        return np.dtype(f"<c{self._field.precision // 4}")

    def begin(self, path: Path, written: Written | None) -> Layout:
        """See `Frame.begin`."""
        with created(path) as file:
            return self.make(file)

    def finish(self, path: Path, written: Written) -> None:
        """See `Frame.finish`."""
        with completed(path) as file:
            self.complete(file, written)

    @abstractmethod
    def make(self, file: Any) -> Layout:
        """Make the datasets; returns where the links go."""

    @abstractmethod
    def complete(self, file: Any, written: Written) -> None:
        """Add what is known after the links."""


class OwnFrame(Hdf5Frame):
    """Our self-describing layout: group `gauge` with dataset `links` and attributes.

    The checksum is that of the SciDAC files. A SHA-256 would be stronger, but could not be put
    together from slabs that several threads and ranks have seen, in any order.
    """

    def __init__(self, field: Description) -> None:
        super().__init__(field, Layout(0, field.dims, field.nc, field.nc, field.precision, "<"))

    def new_checksum(self) -> ScidacChecksum:
        """See `Frame.new_checksum`."""
        return ScidacChecksum(self.layout.site_bytes)

    def make(self, file: Any) -> Layout:
        """See `Hdf5Frame.make`."""
        dims, nc = self._field.dims, self._field.nc
        shape = (*reversed(dims), len(dims), nc, nc)
        offset = new_dataset(file.create_group(GROUP), LINKS, shape, self._number)
        return self.layout.moved(offset)

    def complete(self, file: Any, written: Written) -> None:
        """See `Hdf5Frame.complete`."""
        field, measured = self._field, written.measurements
        assert isinstance(written.checksum, ScidacChecksum)
        suma, sumb = written.checksum.sums
        names = "xyzt" if len(field.dims) == 4 else [str(mu) for mu in range(len(field.dims))]
        attributes: dict[str, str | int | float | tuple[int, ...]] = {
            "format": GAUGE_FORMAT,
            "version": 1,
            "axes": " ".join([*reversed(names), "mu row column"]),
            "conventions": _CONVENTIONS,
            "dims": field.dims,
            "nc": field.nc,
            "plaquette": measured.plaquettes.mean,
            "plaquette_time": measured.plaquettes.time,
            "link_trace": measured.link_trace,
            "suma": f"{suma:x}",
            "sumb": f"{sumb:x}",
            "checksum_definition": CHECKSUM_DEFINITION,
            "metadata": metadata_text(field.metadata),
        }
        if measured.plaquettes.space is not None:
            attributes["plaquette_space"] = measured.plaquettes.space
        set_attributes(file[GROUP], attributes)


class PyQudaFrame(Hdf5Frame):
    """PyQUDA's group `LatticeColorMatrix` with datasets X, Y, Z, T.

    Metadata go into an attribute that PyQUDA does not look at.
    """

    def __init__(self, field: Description) -> None:
        layout = Layout(0, field.dims, field.nc, field.nc, field.precision, "<")
        share = layout.total_bytes // 4
        firsts = tuple(mu * share for mu in range(4))
        super().__init__(
            field, Layout(0, field.dims, field.nc, field.nc, field.precision, "<", firsts)
        )
        self.warnings += no_text(field.metadata, ["Annotation"])

    def new_checksum(self) -> ChecksumSum:
        """See `Frame.new_checksum`."""
        return PyQudaChecksum(4, self.layout.link_bytes)

    def make(self, file: Any) -> Layout:
        """See `Hdf5Frame.make`."""
        field, group = self._field, file.create_group(PYQUDA_GROUP)
        shape = (*reversed(field.dims), field.nc, field.nc)
        firsts = tuple(new_dataset(group, name, shape, self._number) for name in "XYZT")
        return Layout(0, field.dims, field.nc, field.nc, field.precision, "<", firsts)

    def complete(self, file: Any, written: Written) -> None:
        """See `Hdf5Frame.complete`."""
        field, group = self._field, file[PYQUDA_GROUP]
        rest = dict(field.metadata)
        group.attrs["Annotation"] = storable(rest.pop("Annotation", ""))
        group.attrs["Lattice"] = " ".join(map(str, field.dims))
        group.attrs["Color"] = str(field.nc)
        if rest:
            group.attrs[PYQUDA_METADATA] = metadata_text(rest)
        assert isinstance(written.checksum, PyQudaChecksum)
        for name, (sum29, sum31) in zip("XYZT", written.checksum.sums, strict=True):
            group[name].attrs["sum29"] = f"{sum29:08x}"
            group[name].attrs["sum31"] = f"{sum31:08x}"


class QdpFrame(Hdf5Frame):
    """QDP++'s layout: one dataset of matrices, `gauge`.

    QDP++ commits the types of its numbers at the root of the file as well. A committed type has a
    time stamp, which would make equal fields different files; the types are equal without.
    """

    def __init__(self, field: Description) -> None:
        super().__init__(field, Layout(0, field.dims, field.nc, field.nc, field.precision, "<"))
        self._file_xml = field.metadata.get("scidac-file-xml", scidac_xml.NO_FILE_XML)
        kept = {*carried_keys(field.metadata), "scidac-file-xml", "scidac-record-xml"}
        lost = sorted(set(field.metadata) - kept)
        if lost:
            self.warnings.append(f"QDP++'s layout has no place for: {', '.join(lost)}")
        self.warnings += no_text(field.metadata, kept)

    def make(self, file: Any) -> Layout:
        """See `Hdf5Frame.make`."""
        field = self._field
        matrix = np.dtype((self._number, (field.nc, field.nc)))
        shape = (*reversed(field.dims), len(field.dims))
        return self.layout.moved(new_dataset(file, GROUP, shape, matrix))

    def complete(self, file: Any, written: Written) -> None:
        """See `Hdf5Frame.complete`."""
        measured = written.measurements
        record = self._field.metadata.get("scidac-record-xml", "")
        info = scidac_xml.tag_text(record, "info") or ""
        info = scidac_xml.join_info(
            scidac_xml.split_info(info)[0], carried_keys(self._field.metadata)
        )
        dataset = file[GROUP]
        dataset.attrs["file_xml"] = storable(self._file_xml)
        user = scidac_xml.usqcd_info(measured.plaquettes.mean, measured.link_trace, info)
        dataset.attrs["record_xml"] = storable(user)


def frame_of_style(path: PathLike, field: Description, style: str) -> Frame:
    """The frame for one of the styles "flowmc", "pyquda", "qdp++".

    Raises:
        FormatError: not a four-dimensional lattice, which all but ours are for.
    """
    if style == "flowmc":
        return OwnFrame(field)
    if len(field.dims) != 4:
        raise FormatError(
            path,
            None,
            f"the HDF5 layout of {style} is for four-dimensional lattices, this field has "
            f"{len(field.dims)} dimensions: leave out style={style!r}",
        )
    return PyQudaFrame(field) if style == "pyquda" else QdpFrame(field)


def storable(text: str) -> str:
    """A text as HDF5 can hold it: without NUL, and without the halves of characters that a JSON
    text may contain."""
    return text.replace("\0", " ").encode("utf-8", errors="replace").decode("utf-8")
