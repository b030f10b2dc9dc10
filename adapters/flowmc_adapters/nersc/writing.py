"""Headers of NERSC archives: the one that all readers accept, and those of single codes.

The universal header is equally long whatever the checksum and the observables are. Those of other
codes are not, so that the links are measured before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..checksums import NerscChecksum
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout
from ..layout_format import Description, Frame, Written
from ..metadata import DERIVED_KEYS, carried_keys, is_capital_key
from ..text import parse_integer

OPTIONS = {
    "style": ("universal", "simulateqcd", "qdp++", "cps"),
    "rows": ("3", "2"),
    "byte_order": ("big", "little"),
}
# QDP++ reads at most 127 characters a line, newline included; MILC fewer than 128 lines.
_LONGEST_LINE = 126
_MOST_LINES = 126
# A reconstructed row is as far from the one left out as the matrix is from SU(N).
_RECONSTRUCTION_TOLERANCE = 1e-5

_DIMENSIONS = tuple(f"DIMENSION_{i}" for i in (1, 2, 3, 4))
_BOUNDARIES = tuple(f"BOUNDARY_{i}" for i in (1, 2, 3, 4))
_ENSEMBLE = (
    "ENSEMBLE_ID",
    "ENSEMBLE_LABEL",
    "SEQUENCE_NUMBER",
    "CREATOR",
    "CREATOR_HARDWARE",
    "CREATION_DATE",
    "ARCHIVE_DATE",
)
# Where the metadata have nothing. A date of our own would make equal input give different files.
_DEFAULTS = (
    dict.fromkeys(_BOUNDARIES, "PERIODIC")
    | dict.fromkeys(_ENSEMBLE, "unknown")
    | {"SEQUENCE_NUMBER": "0", "CREATOR": "flowmc"}
)
# Some readers look for it anywhere in the file
_MARK = re.compile("(BEGIN|END)_HEADER")
_PADDED = {"LINK_TRACE": 18, "PLAQUETTE": 18, "CHECKSUM": 8}


@dataclass(frozen=True)
class _Style:
    """The header of one code.

    Attributes:
        code: its name.
        keys: in its order.
        digits: significant digits of plaquette and link trace.
        rows: rows of a matrix that it writes.
        precisions: bits of a number that it writes.
        byte_orders: those it writes.
        checksum_width: to which the checksum is padded with blanks on the left.
        names: keys that it spells otherwise.
    """

    code: str
    keys: tuple[str, ...]
    digits: int
    rows: tuple[int, ...] = (3, 2)
    precisions: tuple[int, ...] = (32, 64)
    byte_orders: tuple[str, ...] = ("big",)
    checksum_width: int = 0
    names: Mapping[str, str] | None = None


_STYLES = {
    "simulateqcd": _Style(
        "SIMULATeQCD",
        ("DATATYPE", *_DIMENSIONS, "CHECKSUM", "LINK_TRACE", "PLAQUETTE", "FLOATING_POINT"),
        digits=10,
    ),
    "qdp++": _Style(
        "QDP++",
        (
            *("CHECKSUM", "LINK_TRACE", "PLAQUETTE", "DATATYPE", "HDR_VERSION", "STORAGE_FORMAT"),
            *(*_DIMENSIONS, *_BOUNDARIES, *_ENSEMBLE, "FLOATING_POINT"),
        ),
        digits=6,
        rows=(2,),
        precisions=(32,),
    ),
    "cps": _Style(
        "CPS",
        (
            *("HDR_VERSION", "DATATYPE", "STORAGE_FORMAT", *_DIMENSIONS, "LINK_TRACE", "PLAQUETTE"),
            *(*_BOUNDARIES, "CHECKSUM", *_ENSEMBLE, "FLOATING_POINT"),
        ),
        digits=10,
        byte_orders=("big", "little"),
        checksum_width=8,
        names={"PLAQUETTE": "PLAQUETTE "},
    ),
}


def nersc_frame(path: PathLike, field: Description, options: Mapping[str, str]) -> Frame:
    """The frame of a NERSC archive.

    Args:
        path: for error messages.
        field: what is written.
        options: one value for each entry of `OPTIONS`.

    Raises:
        FormatError: the code of that style writes no such files, or a metadata entry does not fit.
    """
    rows, byte_order = int(options["rows"]), options["byte_order"]
    if rows == 2 and field.nc != 3:
        raise FormatError(path, None, f"rows=2 is for SU(3), this field is SU({field.nc})")
    layout = Layout(
        offset=0,
        dims=field.dims,
        nc=field.nc,
        rows=2 if rows == 2 else field.nc,
        precision=field.precision,
        byte_order={"big": ">", "little": "<"}[byte_order],
    )
    if options["style"] == "universal":
        return _UniversalFrame(path, field, layout)
    style = _STYLES[options["style"]]
    if field.nc != 3:
        raise FormatError(path, None, f"{style.code} writes SU(3), this field is SU({field.nc})")
    for asked, possible, hint in (
        (rows, style.rows, "rows"),
        (field.precision, style.precisions, "precision"),
        (byte_order, style.byte_orders, "byte_order"),
    ):
        if asked not in possible:
            raise FormatError(
                path,
                None,
                f"{style.code} does not write {hint} {asked}: ask for {hint}={possible[0]}",
            )
    return _StyleFrame(path, field, layout, style)


class _NerscFrame(Frame):
    """What all headers have in common."""

    def __init__(self, path: PathLike, field: Description, layout: Layout) -> None:
        super().__init__(layout)
        self._path, self._field = path, field
        if layout.rows < layout.nc:
            self.warnings.append(
                "the last row of each matrix is left out, readers restore it and may change its "
                "last bits: a chain does not continue exactly"
            )
        number = field.metadata.get("SEQUENCE_NUMBER", "0")
        if parse_integer(number) is None:
            raise FormatError(
                path,
                None,
                f"SEQUENCE_NUMBER must be an integer (Grid reads it as one) and is {number!r}: set "
                "it in the metadata",
            )

    def new_checksum(self) -> NerscChecksum:
        return NerscChecksum(self.layout.byte_order)

    def _fixed_values(self) -> dict[str, str]:
        """The values that do not depend on the links, one line each."""
        layout, nc = self.layout, self.layout.nc
        suffix = f"_{nc}x{nc}" if layout.rows == nc else ""
        order = {">": "BIG", "<": "LITTLE"}[layout.byte_order]
        values = {
            "HDR_VERSION": "1.0",
            "DATATYPE": f"4D_SU{nc}_GAUGE{suffix}",
            "STORAGE_FORMAT": "1.0",
            "FLOATING_POINT": f"IEEE{layout.precision}{order}",
        }
        values |= {key: str(extent) for key, extent in zip(_DIMENSIONS, layout.dims, strict=True)}
        for key, value in (_DEFAULTS | carried_keys(self._field.metadata)).items():
            # One line of printable ASCII, whatever the metadata hold
            line = re.sub(r"[\x00-\x1f\x7f]+", " ", value).strip()
            ascii_line = line.encode("ascii", errors="replace").decode("ascii")
            if ascii_line != line:
                self._warn(f"{key} has letters outside ASCII, which became question marks")
            if _MARK.search(f"{key} {line}"):
                self._warn(f"{key} left out: readers would take it for the end of the header")
                if key not in _DEFAULTS:
                    continue
                ascii_line = _DEFAULTS[key]
            values[key] = ascii_line or "unknown"
        return values

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _observables(self, written: Written) -> tuple[str, float, float]:
        """Checksum, plaquette and link trace.

        Raises:
            FormatError: rows are left out of matrices that cannot be restored.
        """
        assert written.checksum is not None
        measured = written.measurements
        error = max(measured.group.unitarity, measured.group.determinant)
        if self.layout.rows < self.layout.nc and not error <= _RECONSTRUCTION_TOLERANCE:
            raise FormatError(
                self._path,
                None,
                f"the last row cannot be left out, it would not come back: links are off SU(3) by "
                f"{error:.1e}; write all rows (rows=3)",
            )
        return written.checksum.text, measured.plaquettes.mean, measured.link_trace

    def _text(self, lines: list[tuple[str, str]]) -> bytes:
        whole = []
        for key, value in lines:
            line = f"{key} = {value}"
            if len(line) > _LONGEST_LINE:
                line = line[:_LONGEST_LINE].rstrip()
                warning = f"{key} cut to the {_LONGEST_LINE} characters of a NERSC header line"
                if warning not in self.warnings:
                    self.warnings.append(warning)
            whole.append(line)
        if len(whole) > _MOST_LINES - 2:
            raise FormatError(
                self._path,
                None,
                f"{len(whole)} header lines, MILC reads {_MOST_LINES}: drop some metadata",
            )
        return "\n".join(["BEGIN_HEADER", *whole, "END_HEADER", ""]).encode("ascii")


class _UniversalFrame(_NerscFrame):
    """The header that all readers accept.

    Every line is `KEY = VALUE` with a non-empty value, which MILC insists on. The three values that
    are known only after the links are padded with blanks on the left, as CPS and Grid do.
    """

    def __init__(self, path: PathLike, field: Description, layout: Layout) -> None:
        super().__init__(path, field, layout)
        if layout.byte_order == "<":
            grid = "" if layout.precision == 64 else ", nor by Grid"
            self.warnings.append(f"little-endian NERSC files are not read by QDP++ and MILC{grid}")
        self._values = self._fixed_values()
        lost = sorted(
            key for key in field.metadata if key not in self._values and not is_capital_key(key)
        )
        if lost:
            self.warnings.append(f"NERSC headers have no place for: {', '.join(lost)}")
        self.prefix(None)  # for its warnings

    def prefix(self, written: Written | None) -> bytes:
        checksum, plaquette, trace = ("0", 0.0, 0.0)
        if written is not None:
            checksum, plaquette, trace = self._observables(written)
        measured = {
            "CHECKSUM": checksum,
            "PLAQUETTE": decimal_text(plaquette),
            "LINK_TRACE": decimal_text(trace),
        }
        padded = {key: value.rjust(_PADDED[key]) for key, value in measured.items()}
        values = self._values | padded
        first = ("HDR_VERSION", "DATATYPE", "STORAGE_FORMAT", *_DIMENSIONS, "LINK_TRACE")
        first = (*first, "PLAQUETTE", *_BOUNDARIES, "CHECKSUM", *_ENSEMBLE)
        last = "FLOATING_POINT"
        others = [key for key in values if key not in first and key != last]
        return self._text([(key, values[key]) for key in (*first, *others, last)])


class _StyleFrame(_NerscFrame):
    """The header of one code, character by character."""

    measured_first = True

    def __init__(self, path: PathLike, field: Description, layout: Layout, style: _Style) -> None:
        super().__init__(path, field, layout)
        self._style = style
        lost = sorted(field.metadata.keys() - set(style.keys) - DERIVED_KEYS)
        if lost:
            self.warnings.append(f"the header of {style.code} has no place for: {', '.join(lost)}")

    def prefix(self, written: Written | None) -> bytes:
        if written is None:
            raise TypeError("the length of this header is known only after the links")
        checksum, plaquette, trace = self._observables(written)
        style = self._style
        values = self._fixed_values() | {
            "CHECKSUM": checksum.rjust(style.checksum_width),
            "PLAQUETTE": f"{plaquette:.{style.digits}g}",
            "LINK_TRACE": f"{trace:.{style.digits}g}",
        }
        names = style.names or {}
        return self._text([(names.get(key, key), values[key]) for key in style.keys])


def decimal_text(value: float) -> str:
    """A plaquette or link trace with 12 significant digits, never fewer than 12 decimals.

    GPT looks for a decimal point and takes the number of decimals for the accuracy, PyQUDA compares
    to a relative 1e-9. At most 15 decimals: a double-precision mean is not known any better. Never
    more than 18 characters, for which links far outside the group need an exponent.
    """
    if abs(value) >= 1e4:
        return f"{value:.10e}"
    decimals = 12
    if value != 0 and math.isfinite(value):
        decimals = min(15, max(12, 11 - math.floor(math.log10(abs(value)))))
    return f"{value:.{decimals}f}"
