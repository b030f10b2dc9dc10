"""The layouts of gauge fields in HDF5 files, recognised by shapes, types and names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..configuration import PathLike, is_gauge_shape
from ..errors import FormatError
from ..layout import Layout
from ..selection import selected
from .attributes import text_attribute
from .file import NumberType, member, number_type, place_of, walk

GAUGE_FORMAT = "flowmc gauge field"
LINKS = "links"
STYLES = ("flowmc", "pyquda", "qdp++", "lyncs", "qlua")
_DIRECTION_NAMES = (("X", "Y", "Z", "T"), ("0", "1", "2", "3"))


@dataclass(frozen=True)
class Found:
    """A gauge field in an HDF5 file.

    Attributes:
        style: whose layout it has, one of `STYLES`.
        group: path of the group that the datasets are in.
        datasets: their paths: one, or one for each direction.
        layout: extents, precision and byte order; where the links are if `in_place`.
        in_place: whether the links can be read by their place in the file, without h5py.
        time_last: the axes of the datasets are (Lx, Ly, Lz, Lt).
        warnings: oddities.
    """

    style: str
    group: str
    datasets: tuple[str, ...]
    layout: Layout
    in_place: bool = True
    time_last: bool = False
    warnings: list[str] = field(default_factory=list)


def find_links(
    file: Any,
    path: PathLike,
    style: str | None,
    dims: tuple[int, ...] | None,
    selection: str | None = None,
) -> Found:
    """The gauge field of a file; of several the first, with a warning.

    Args:
        file: the open file.
        path: for error messages.
        style: look for this one of `STYLES` only.
        dims: extents (Lx, Ly, Lz, Lt), which tell QLUA's order of axes from QDP++'s.
        selection: which of several, see `selection`.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    objects, skipped = walk(file, path)
    known = dict(objects)
    candidates: list[_Candidate] = []
    taken: set[str] = set()
    for place, found in objects:
        if hasattr(found, "keys"):
            candidate = _directions(found, place, path)
            if candidate is not None:
                taken |= set(candidate.datasets)
                candidates.append(candidate)
        elif place not in taken:
            candidate = _single(found, place, known, path)
            if candidate is not None:
                candidates.append(candidate)
    if style is not None:
        candidates = [one for one in candidates if style in one.styles]
    if not candidates:
        raise FormatError(path, None, _nothing(style, [place for place, _ in objects], skipped))
    candidates.sort(key=lambda one: "flowmc" not in one.styles)
    named = [one for one in candidates if selection in (one.group, *one.datasets)]
    chosen = named[0] if named else selected(path, candidates, selection)
    result = _resolve(file, path, chosen, style, dims)
    if len(candidates) > 1 and selection is None:
        others = ", ".join(
            f"{' '.join(one.datasets)} (#{i})" for i, one in enumerate(candidates[1:9], start=2)
        )
        result.warnings.append(
            f"several gauge fields: {' '.join(chosen.datasets)} was read, not {others}; FILE#N "
            "selects one"
        )
    return result


@dataclass(frozen=True)
class _Candidate:
    styles: tuple[str, ...]
    group: str
    datasets: tuple[str, ...]
    kind: NumberType
    shape: tuple[int, ...]


def _single(dataset: Any, place: str, known: dict[str, Any], path: PathLike) -> _Candidate | None:
    """A dataset (Lt, Lz, Ly, Lx, 4, N, N), the matrices being array elements or the last axes."""
    kind = number_type(dataset)
    if kind is None or kind.element.kind != "c" or dataset.shape is None:
        return None
    shape = (*dataset.shape, *kind.inner)
    if not is_gauge_shape(shape) or len(kind.inner) not in (0, 2):
        return None
    group = place.rpartition("/")[0] or "/"
    style = "qdp++" if kind.inner else "lyncs"
    if place.endswith(f"/{LINKS}") and (
        text_attribute(known[group], "format", path) == GAUGE_FORMAT
    ):
        style = "flowmc"
    return _Candidate((style,), group, (place,), kind, shape)


def _directions(group: Any, place: str, path: PathLike) -> _Candidate | None:
    """A group with one dataset (Lt, Lz, Ly, Lx, N, N) for each direction."""
    for names in _DIRECTION_NAMES:
        members = [member(group, name) for name in names]
        if any(one is None or not hasattr(one, "dtype") for one in members):
            continue
        if any(not hasattr(one, "shape") or one.shape is None for one in members):
            continue
        kinds = [number_type(one) for one in members]
        kind = kinds[0]
        if kind is None or kind.element.kind != "c" or len(kind.inner) not in (0, 2):
            continue
        shape = (*members[0].shape, *kind.inner)
        if len(shape) != 6 or shape[-1] != shape[-2] or min(shape) < 1:
            continue
        if any(one.shape != members[0].shape for one in members) or len(set(kinds)) > 1:
            raise FormatError(
                path, None, f"the datasets {', '.join(names)} of {place} differ in shape or type"
            )
        prefix = place.rstrip("/")
        styles = ("pyquda",) if names[0] == "X" else ("qlua", "qdp++")
        return _Candidate(styles, place, tuple(f"{prefix}/{n}" for n in names), kind, shape)
    return None


def _resolve(
    file: Any,
    path: PathLike,
    chosen: _Candidate,
    style: str | None,
    dims: tuple[int, ...] | None,
) -> Found:
    """Order of the axes, and whether the links can be read in place."""
    warnings: list[str] = []
    apart = len(chosen.datasets) > 1
    lattice = chosen.shape[: -2 if apart else -3]
    time_last, found_style = False, chosen.styles[0]
    if "qlua" in chosen.styles:
        time_last = _is_qlua(file, path, chosen, style, dims, warnings)
        found_style = "qlua" if time_last else "qdp++"
    nc, kind = chosen.shape[-1], chosen.kind
    extents = tuple(lattice) if time_last else tuple(reversed(lattice))
    offsets = [place_of(file[name], path) for name in chosen.datasets]
    present = [offset for offset in offsets if offset is not None]
    in_place = len(present) == len(offsets) and not time_last
    # Checksums are those of little-endian bytes, in whatever order these are here
    checked = found_style in ("flowmc", "pyquda")
    in_place = in_place and not (checked and kind.byte_order == ">")
    layout = Layout(
        present[0] if in_place else 0,
        extents,
        nc,
        nc,
        4 * kind.element.itemsize,
        kind.byte_order if in_place else "<",
    )
    if apart:
        share = layout.total_bytes // len(offsets)
        firsts = present if in_place else [mu * share for mu in range(len(offsets))]
        layout = Layout(
            0, extents, nc, nc, layout.precision, layout.byte_order, directions=tuple(firsts)
        )
    return Found(found_style, chosen.group, chosen.datasets, layout, in_place, time_last, warnings)


def _is_qlua(
    file: Any,
    path: PathLike,
    chosen: _Candidate,
    style: str | None,
    dims: tuple[int, ...] | None,
    warnings: list[str],
) -> bool:
    """Whether datasets 0 to 3 have the axes (Lx, Ly, Lz, Lt) of QLUA itself."""
    shape = chosen.shape[:4]
    if style is not None:
        return style == "qlua"
    if dims is not None and shape != tuple(reversed(shape)):
        return tuple(dims) == shape
    places = [*chosen.datasets, chosen.group]
    genuine = any(".sha256" in file[place].attrs for place in places)
    if shape != tuple(reversed(shape)) or not genuine:
        axes, other = ("Lx, Ly, Lz, Lt", "qdp++") if genuine else ("Lt, Lz, Ly, Lx", "qlua")
        warnings.append(
            f"the axes of the datasets 0 to 3 were taken as ({axes}), because they "
            f"{'have' if genuine else 'lack'} the .sha256 of QLUA; if the plaquette is wrong, ask "
            f"for layout={other!r} (--layout {other})"
        )
    if genuine:
        warnings.append("the .sha256 of QLUA was not verified")
    return genuine


def _nothing(style: str | None, places: list[str], skipped: list[str]) -> str:
    what = "gauge field" if style is None else f"gauge field in the layout of {style}"
    text = (
        f"no {what} among {', '.join(places[1:9]) or 'no datasets'}: expected complex numbers "
        "(Lt, Lz, Ly, Lx, 4, N, N), or four datasets X, Y, Z, T or 0, 1, 2, 3; scalar and U(1) "
        "fields are read with flowmc_adapters.read_field"
    )
    if skipped:
        text += (
            f"; links to other places are not followed: {', '.join(skipped[:4])}: copy the data "
            "into this file (h5repack, h5copy)"
        )
    return text
