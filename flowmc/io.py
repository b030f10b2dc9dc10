"""Configuration files <-> fields: the one module that knows both conventions.

Files follow ILDG: ``U[t, z, y, x, mu, row, col]``, the first direction running fastest.  Fields
have ``(chains, mu, x, y, z, t, row, col)``.  U(1) angles and real fields follow the same rule
without the axes they do not have: ``theta[..., y, x, mu]`` and ``phi[..., y, x]``.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import flowmc_adapters
import numpy as np
import torch
from flowmc_adapters import FormatError
from flowmc_adapters.boundaries import has_fixed_start, has_open_end
from flowmc_adapters.layout_format import LayoutFormat
from flowmc_adapters.naming import number_in_name
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN, U1
from flowmc.registry import ConfigError

__all__ = [
    "StoredField",
    "check_format",
    "configuration_array",
    "field_to_file_order",
    "file_order_to_field",
    "load_field",
    "made_field",
    "number_in_name",
    "read_field",
    "take_field",
    "with_signs",
    "write_field",
]

# Links of 64-bit files that are further from the group than this were computed in single precision.
_DOUBLE_TOLERANCE = 1e-9
# What flowmc_adapters calls these fields.
SCALAR_KIND, U1_KIND = "scalar", "u1"
# As in flowmc_adapters: beyond this the links are damaged, not rounded.
_GROUP_TOLERANCE = 1e-5
# Numbers of a field that is looked at as a whole: the slices of a small one take longer one by one.
_SMALL_FIELD = 1 << 16


@dataclass(frozen=True)
class StoredField:
    """A field with what its file said.

    Attributes:
        field: ``(1, ...)``.
        format: name of the file's format.
        precision: bits of one real number in the file.
        metadata: as in :class:`flowmc_adapters.Configuration`.
        number: configuration number in the file's metadata, else in its name, else None.
        notes: what was changed or odd, one sentence each, for the log.
        signs: directions in which the links of the last slice carried the fermions' antiperiodic
            sign in the file; the field is without it, see :func:`with_signs`.
        moved: how far links were moved, at most, to be elements of the group again, beside the
            sign; 0 if they were taken bit for bit.
    """

    field: Tensor
    format: str
    precision: int
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    number: int | None = None
    notes: tuple[str, ...] = ()
    signs: tuple[int, ...] = ()
    moved: float = 0.0


def read_field(
    path: str | os.PathLike[str],
    action: Action,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the field of a file as one chain, ``(1, ...)``; see :func:`load_field`."""
    return load_field(path, action, dtype=dtype, device=device).field


def load_field(
    path: str | os.PathLike[str],
    action: Action,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    number: int | None = None,
) -> StoredField:
    """Read a configuration file of any format and check that it is a field of a theory.

    Links of 64-bit files are taken bit for bit.  Links that were rounded to single precision are
    projected back onto the group, and the fermions' antiperiodic sign is taken off the links of a
    last slice (their determinant shows it where N is odd); a note says so.

    Args:
        path: the file; its format is recognised by content.
        action: the theory.
        dtype: precision of the real components of the field.
        device: where to put the field.
        number: which configuration of an HDF5 file of scalar or U(1) fields; None for the only
            one.

    Raises:
        FormatError: an unreadable or damaged file (its child CheckError: checksum, plaquette, or
            numbers that are not finite), another lattice or group, boundary conditions other than
            those of the theory (periodic, open), or links outside the group.
        OSError: the file cannot be opened.
    """
    _require_a_format(path, action)
    configuration: flowmc_adapters.Configuration | flowmc_adapters.FieldConfiguration
    array: np.ndarray
    if isinstance(action.group, SUN):
        configuration = flowmc_adapters.read(path)
        array = configuration.links
        _require(path, action, configuration.dims, f"SU({configuration.nc})")
        _require_boundaries(path, array, configuration.metadata, action)
        array = _with_time_links(array, action)
    else:
        configuration = _read_real_field(path, action, number)
        array = configuration.values
    notes = list(configuration.warnings)
    precision = configuration.precision
    final, signs = take_field(
        array, action, path, precision=precision, dtype=dtype, device=device, notes=notes
    )
    moved = 0.0
    if isinstance(configuration, flowmc_adapters.Configuration):
        written = torch.from_numpy(file_order_to_field(array, action)).to(final)[None]
        moved = float((with_signs(written, signs) - final).abs().max())
    stored_number = configuration.number
    if stored_number is None:
        stored_number = number_in_name(path)
    return StoredField(
        final,
        configuration.format,
        precision,
        configuration.metadata,
        stored_number,
        tuple(notes),
        signs,
        moved,
    )


def made_field(
    array: np.ndarray,
    action: Action,
    where: str | os.PathLike[str],
    *,
    dims: tuple[int, ...],
    group: str,
    precision: int,
    metadata: Mapping[str, str],
    number: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> StoredField:
    """Return numbers that were made again as :func:`load_field` returns those of a file.

    Args:
        array: of one configuration, in the order of files.
        action: the theory.
        where: they come from, for messages.
        dims: extents of the lattice that they were made on.
        group: of that theory.
        precision: in bits that they were computed with.
        metadata, number: of the configuration.
        dtype: precision of the real components of the field.
        device: where to put the field.

    Raises:
        FormatError: another lattice or group than that of the theory.
    """
    _require(where, action, dims, group)
    notes: list[str] = []
    field, signs = take_field(
        array, action, where, precision=precision, dtype=dtype, device=device, notes=notes
    )
    return StoredField(field, "seeds", precision, metadata, number, tuple(notes), signs)


def take_field(
    array: np.ndarray,
    action: Action,
    where: str | os.PathLike[str],
    *,
    precision: int,
    dtype: torch.dtype,
    device: torch.device | str,
    notes: list[str],
) -> tuple[Tensor, tuple[int, ...]]:
    """Return numbers in the order of files, whoever made them, as the field of one chain.

    Args:
        array: links, angles or values of one configuration, of the theory's lattice.
        action: the theory.
        where: they come from, for messages.
        precision: in bits that they were computed with; links of 64 bits are taken as they are.
        dtype: precision of the real components of the field.
        device: where to put the field.
        notes: what was changed is appended, one sentence each.

    Returns:
        The field ``(1, ...)``, and the directions whose last links carried the fermions'
        antiperiodic sign, which was taken off; see :func:`with_signs`.

    Raises:
        FormatError: links outside the group.
        ValueError, TypeError: it is not a field of this theory.
    """
    signs: tuple[int, ...] = ()
    if isinstance(action.group, SUN):
        array = _with_time_links(array, action)
    if action.has_open_time:
        notes[:] = [note for note in notes if "open boundary conditions" not in note]
    # In double precision first: projecting in single would leave the chain 1e-7 off the group.
    double = action.group.field_dtype(torch.float64)
    loaded = torch.from_numpy(file_order_to_field(array, action)).to(double)[None]
    is_small = loaded.numel() <= _SMALL_FIELD
    if isinstance(action.group, SUN) and not (
        precision == 64 and is_small and _is_in_group(loaded, action.group)
    ):
        errors = flowmc_adapters.group_errors(array)
        signs = errors.antiperiodic
        if signs:
            loaded = with_signs(loaded, signs)
            errors = flowmc_adapters.group_errors(field_to_file_order(loaded[0].numpy(), action))
            named = ", ".join("xyzt"[mu] if action.dimensions == 4 else str(mu) for mu in signs)
            notes[:] = [note for note in notes if "antiperiodic" not in note]
            notes.append(
                f"{where}: the fermions' antiperiodic sign was taken off the links of the last "
                f"slice in direction {named}"
            )
        loaded = _onto_group(loaded, errors, action, where, precision, notes)
    elif isinstance(action.group, U1) and bool((loaded.abs() > math.pi).any()):
        loaded = action.group.project(loaded)
        notes.append(f"{where}: angles were mapped to [-pi, pi)")
    if precision == 64 and dtype == torch.float32:
        notes.append(f"{where}: rounded from 64 to 32 bit, the precision of this run")
    _require_fixed_links(where, loaded, action, precision)
    final = loaded.to(dtype=action.group.field_dtype(dtype), device=device).contiguous()
    action.check_field(final)
    return final, signs


def with_signs(field: Tensor, directions: Sequence[int]) -> Tensor:
    """Return links ``(chains, mu, ...)`` with the last slice in some directions times -1.

    The links U_mu(x) with x_mu = L_mu - 1 of each direction mu change sign, which takes the
    fermions' antiperiodic sign off, or puts it back.
    """
    field = field.clone()
    for mu in directions:
        field[:, mu].select(1 + mu, -1).neg_()
    return field


def write_field(
    path: str | os.PathLike[str],
    chain: Tensor,
    action: Action,
    *,
    format: str,
    precision: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the field of one chain atomically; equal arguments give equal bytes.

    Args:
        path: the file; directories are made.
        chain: ``(...)`` or ``(1, ...)``.
        action: the theory.
        format: "nersc", "ildg", "scidac" and others for SU(N) links in four dimensions; "hdf5" and
            "npy" for any field, "ildg" for scalar and U(1) fields, too.
        precision: 32 or 64; None keeps that of the field.
        metadata: see :class:`flowmc_adapters.Configuration`; npy files have no place for it.

    Raises:
        FormatError: the format cannot hold the field, or the field is not finite.
        OSError: disk full and the like; a file that was there before is untouched.
    """
    _require_a_format(path, action)
    if chain.dim() == len(action.field_shape(1)):
        (chain,) = chain
    if action.has_open_time and isinstance(action.group, SUN):
        _require_open_format(path, format, action)
    array = configuration_array(chain, action)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(action.group, SUN):
        configuration = flowmc_adapters.Configuration(array, dict(metadata or {}))
        flowmc_adapters.write(path, configuration, format, precision)
        return
    if format not in flowmc_adapters.FIELD_FORMATS:
        known = ", ".join(flowmc_adapters.FIELD_FORMATS)
        raise FormatError(
            path,
            None,
            f"{format} files hold SU(N) links, not {action.group.name} fields: use one of {known}",
        )
    kind = U1_KIND if action.is_gauge else SCALAR_KIND
    flowmc_adapters.write_field(
        path,
        flowmc_adapters.FieldConfiguration(array, kind, dict(metadata or {})),
        format,
        precision,
    )


def configuration_array(chain: Tensor, action: Action) -> np.ndarray:
    """Return the field ``(...)`` of one chain as files hold it: in their order, with the links that
    the theory holds fixed, and zeros for those that a lattice with open boundaries lacks.
    """
    chain = action.with_fixed_links(chain[None])[0]
    if action.has_open_time and isinstance(action.group, SUN):
        chain = chain.clone()
        chain[-1, ..., -1, :, :] = 0
    return field_to_file_order(chain.detach().cpu().resolve_conj().numpy(), action)


def check_format(
    name: str, action: Action, where: str, *, present: int = 64, precision: int | None = None
) -> None:
    """Raise ConfigError unless files of this format can hold fields of this theory.

    Args:
        name: of the format.
        action: the theory.
        where: what to blame in the message.
        present: precision of the fields, 32 or 64.
        precision: asked of the files; None for that of the fields.
    """
    group = action.group
    if not (action.is_gauge or action.is_scalar):
        raise ConfigError(
            f"{where}: no file format holds {action.space}: leave configurations out; the run "
            "keeps its chains in its checkpoint, and observables are measured on the way"
        )
    if not isinstance(group, SUN) and name in flowmc_adapters.FIELD_FORMATS:
        return
    try:
        found = flowmc_adapters.format_named(name)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(group, SUN):
        what = f"{group.name} fields in {action.dimensions} dimensions"
        usable = ", ".join(f'"{known}"' for known in flowmc_adapters.FIELD_FORMATS)
        raise ConfigError(
            f"{where}: {name} files hold SU(N) links, not {what}: use one of the formats {usable}"
        )
    if not found.writable:
        raise ConfigError(f"{where}: {name} files are only read: use another format")
    if action.has_open_time:
        try:
            _require_open_format("", name, action)
        except FormatError as error:
            raise ConfigError(f"{where}: {error.reason}") from error
    if isinstance(found, LayoutFormat):
        try:
            found.require_holds(action.lattice, group.n, present, precision)
        except FormatError as error:
            raise ConfigError(f"{where}: {error.reason}") from error


def _require_a_format(path: str | os.PathLike[str], action: Action) -> None:
    if not (action.is_gauge or action.is_scalar):
        raise FormatError(path, None, f"no file format holds {action.space}")


def file_order_to_field(array: np.ndarray, action: Action) -> np.ndarray:
    """Return one chain's field ``(d, x, ..., t[, N, N])`` or ``(x, ..., t)`` from file order.

    The lattice axes are reversed; the direction axis, behind them in files, comes to the front.
    """
    d = action.dimensions
    lattice_axes = tuple(reversed(range(d)))
    if not action.is_gauge:
        return np.ascontiguousarray(array.transpose(lattice_axes))
    inner = tuple(range(d + 1, array.ndim))
    return np.ascontiguousarray(array.transpose((d, *lattice_axes, *inner)))


def field_to_file_order(array: np.ndarray, action: Action) -> np.ndarray:
    """Return file order from one chain's field: the inverse of :func:`file_order_to_field`."""
    d = action.dimensions
    if not action.is_gauge:
        return np.ascontiguousarray(array.transpose(tuple(reversed(range(d)))))
    inner = tuple(range(d + 1, array.ndim))
    return np.ascontiguousarray(array.transpose((*range(d, 0, -1), 0, *inner)))


def _read_real_field(
    path: str | os.PathLike[str], action: Action, number: int | None
) -> flowmc_adapters.FieldConfiguration:
    found = flowmc_adapters.read_field(
        path, number=number, kind=U1_KIND if action.is_gauge else SCALAR_KIND
    )
    if found.dims != action.lattice:
        size = "x".join(map(str, action.lattice))
        expected = (*reversed(action.lattice), *((action.dimensions,) if action.is_gauge else ()))
        raise FormatError(
            path,
            None,
            f"holds an array of shape {found.values.shape}, but the {action.group.name} theory on "
            f"a {size} lattice needs {expected}",
        )
    return found


def _require(
    path: str | os.PathLike[str], action: Action, dims: tuple[int, ...], group: str
) -> None:
    if group != action.group.name:
        raise FormatError(
            path, None, f"holds {group} links, but the theory is {action.group.name}: they differ"
        )
    if dims != action.lattice:
        stored, wanted = ("x".join(map(str, extents)) for extents in (dims, action.lattice))
        raise FormatError(
            path,
            None,
            f"holds a {stored} lattice, but [theory] has lattice = {wanted} (x first): correct one "
            "of them",
        )


def _require_boundaries(
    path: str | os.PathLike[str],
    array: np.ndarray,
    metadata: Mapping[str, str],
    action: Action,
) -> None:
    """Raise FormatError for links with other boundary conditions than the theory has.

    Taken as periodic, zero links never let a proposal be accepted, and fixed ones are updated.
    """
    conjugated = [
        key
        for key in (f"BOUNDARY_{i}" for i in range(1, array.ndim - 2))
        if metadata.get(key, "").upper() in ("GPARITY", "CONJUGATE", "CSTAR")
    ]
    if has_open_end(array):
        if action.has_open_time and (action.fixed_links is not None or not has_fixed_start(array)):
            return
        if action.has_open_time:
            raise FormatError(
                path,
                None,
                "the field has the boundary of a Schroedinger functional on its first time slice, "
                "but the theory has open boundaries: give the action schroedinger_functional",
            )
        raise FormatError(
            path,
            None,
            "the field has open boundaries in time (the time links of the last slice are zero), "
            'but the theory is periodic: give time_boundary = "open" with an action that has that '
            "key, as improved has",
        )
    if has_fixed_start(array):
        found = "the boundary of a Schroedinger functional on its first time slice alone"
    elif conjugated:
        found = f"charge-conjugated boundaries ({conjugated[0]} = {metadata[conjugated[0]]})"
    elif action.has_open_time:
        raise FormatError(
            path,
            None,
            "the field is periodic in time (the time links of the last slice are not zero), but "
            "the theory has open boundaries: start from another file, or cold or hot",
        )
    else:
        return
    raise FormatError(
        path,
        None,
        f"the field has {found}, but the lattices of all theories here are periodic, open in time, "
        "or have fixed links on the last slice as well: go on with the code that wrote it",
    )


def _require_fixed_links(
    path: str | os.PathLike[str], field: Tensor, action: Action, precision: int
) -> None:
    """Raise FormatError unless a field has the links that its theory holds fixed."""
    if action.fixed_links is None:
        return
    error = float(action.group.distance(field, action.with_fixed_links(field)))
    if not error <= (1e-10 if precision == 64 else 1e-5):
        raise FormatError(
            path,
            None,
            f"links that the theory holds fixed, on its first and last time slice, differ from "
            f"those of the file by {error:.1e}: correct eta, phases and end_phases in [theory]",
        )


def _with_time_links(array: np.ndarray, action: Action) -> np.ndarray:
    """Return SU(N) links in the order of files, with ones for those that an open lattice lacks."""
    if not (action.has_open_time and has_open_end(array)):
        return array
    array = array.copy()
    array[-1, ..., -1, :, :] = np.eye(array.shape[-1])
    return array


def _require_open_format(path: str | os.PathLike[str], name: str, action: Action) -> None:
    """Raise FormatError unless readers of a format know open boundaries, or the file is ours."""
    if action.fixed_links is not None and name not in ("hdf5", "npy"):
        raise FormatError(
            path,
            None,
            f"the theory holds links fixed, on all slices that flowmc keeps, which is no {name} "
            "file of other programs: use hdf5 or npy",
        )
    if not (flowmc_adapters.format_named(name).open_boundaries or name in ("hdf5", "npy")):
        raise FormatError(
            path,
            None,
            f"the theory has open boundaries in time, which readers of {name} files take for "
            "periodic ones: use openqcd, hirep, hdf5 or npy",
        )


def _is_in_group(links: Tensor, group: SUN) -> bool:
    """Return whether links are in SU(N) as double precision has it; of NaN they are not."""
    ones = torch.eye(group.n, dtype=links.dtype)
    unitarity = (links @ links.mH - ones).abs().amax()
    determinant = (torch.linalg.det(links) - 1).abs().amax()
    return bool(unitarity <= _DOUBLE_TOLERANCE) and bool(determinant <= _DOUBLE_TOLERANCE)


def _onto_group(
    loaded: Tensor,
    errors: flowmc_adapters.GroupErrors,
    action: Action,
    path: str | os.PathLike[str],
    precision: int,
    notes: list[str],
) -> Tensor:
    error = max(errors.unitarity, errors.determinant)
    if not error <= _GROUP_TOLERANCE:
        detail = next((note for note in notes if "determinant" in note or "links are" in note), "")
        raise FormatError(
            path,
            None,
            f"links are not in {action.group.name} ({detail or f'error {error:.1e}'}): a chain "
            "cannot start from it",
        )
    if precision == 64 and error <= _DOUBLE_TOLERANCE:
        return loaded
    projected = action.group.project(loaded)
    moved = float((projected - loaded).abs().max())
    notes.append(
        f"{path}: the links are in {action.group.name} to {error:.1e} only ({precision}-bit file); "
        f"they were projected onto the group in double precision, which moved them by up to "
        f"{moved:.1e}"
    )
    return projected
