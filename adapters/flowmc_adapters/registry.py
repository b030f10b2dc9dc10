"""Which formats there are, and the two functions most callers need: `read` and `write`.

Other packages add formats through the entry-point group "flowmc.formats" (each entry a `Format`
subclass, or an instance), users through `register` or by naming one as "package.module:Name".
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from .bmw import BmwFormat
from .bridge import BridgeFormat
from .changes import Change, Reunitarize, StripSigns
from .checks import Verdict, judge
from .configuration import DIRECTIONS, Configuration, Header
from .errors import CheckError, FormatError
from .formats import Format, PathLike
from .hdf5.gauge import Hdf5Format
from .heads import read_head
from .layout_format import LayoutFormat, scan
from .lime.ildg import IldgFormat
from .lime.scidac import ScidacFormat
from .milc.binary import MilcFormat
from .nersc.archive import NerscFormat
from .numpy_files.npy import NumpyFormat
from .numpy_files.npz import NpzFormat
from .observables import GroupErrors, measure_links
from .openqcd.export import OpenQcdFormat
from .openqcd.hirep import HirepFormat
from .seeds import holds_seeds, refusal_of_seeds
from .selection import split_selection
from .transfer import Progress
from .unpacking import compression_of, unpacking
from .unsupported import refuse

ENTRY_POINT_GROUP = "flowmc.formats"
# Beyond this, a departure from the group is damage.
_PROJECTABLE = 1e-2
_formats: dict[str, Format] = {}


def register(new_format: Format) -> None:
    """Add a format to the table; detection asks in the order of registration.

    Raises:
        ValueError: the name is taken.
    """
    if new_format.name in _formats:
        raise ValueError(f"a format named {new_format.name!r} is registered already")
    _formats[new_format.name] = new_format


def formats() -> dict[str, Format]:
    """All known formats by name, those of installed packages included."""
    _load_entry_points()
    return dict(_formats)


def format_named(name: str) -> Format:
    """The format of that name, or of "package.module:Name".

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = formats()
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            return _instance(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, TypeError) as error:
            raise ValueError(f"cannot load format {name!r}: {error}") from error
    raise ValueError(f"unknown format {name!r}; known are {', '.join(known)}")


def detect(path: PathLike, layout: str | None = None) -> Format:
    """The format of a file, recognised by its content.

    Args:
        path: the file.
        layout: a layout that the format is asked to read it in.

    Raises:
        FormatError: unknown, or known but not readable by this version; the message says which. Or
            the format has no such layout.
        OSError: the file cannot be opened.
    """
    if Path(path).is_dir():
        gpt = (Path(path) / "index.crc32").exists()
        what = "a GPT directory, which this version cannot read" if gpt else "a directory"
        raise FormatError(path, None, f"{what}: give a single configuration file")
    head = read_head(path)
    path, selection = split_selection(path)
    if holds_seeds(head):
        raise refusal_of_seeds(path)
    candidates = list(formats().values())
    if compression_of(head):
        candidates = [unpacking(path, detect)]
    for candidate in candidates:
        if compression_of(head) or candidate.detect(head, path):
            if selection is not None and not candidate.several:
                raise FormatError(
                    path,
                    None,
                    f"{candidate.name} files hold one configuration: leave out #{selection}",
                )
            if layout is not None and layout not in candidate.layouts:
                known = ", ".join(candidate.layouts) or "none to choose from"
                raise FormatError(
                    path, None, f"{candidate.name} has no layout {layout!r}; it has: {known}"
                )
            return candidate
    raise refuse(path, head)


def read_header(
    path: PathLike, *, dims: tuple[int, ...] | None = None, layout: str | None = None
) -> Header:
    """What a file says about itself, without reading the links; arguments and errors as `read`."""
    return detect(path, layout).read_header(path, dims=dims, layout=layout)


def read(
    path: PathLike,
    *,
    check_checksum: bool = True,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
    strip_signs: bool = False,
    reunitarize: bool = False,
) -> Configuration:
    """Read a configuration of any format.

    The checksum, plaquette and link trace stored in the file are compared with those of the links
    (plaquette and link trace to 1e-5). Links outside SU(N) are returned with a warning.

    Args:
        path: the file; its format is recognised by content. Of a LIME or HDF5 file with several
            gauge fields "FILE#N" is the N-th one, "FILE#/path" that of a dataset.
        check_checksum: if False, disagreements become warnings and entries of `failed_checks`.
        dims: extents (Lx, Ly, Lz, Lt), for the few files that do not state them.
        layout: order of the numbers, for the few files that leave it open; see `Format.layouts`.
        strip_signs: multiply links that carry the fermions' antiperiodic sign by -1.
        reunitarize: project the links onto SU(N), see `changes.reunitarize`.

    Raises:
        FormatError: not readable.
        CheckError: readable, but checksum, plaquette or link trace disagree, or links are not
            finite (the latter whatever `check_checksum` is), or too far from SU(N) to be
            projected.
        OSError: the file cannot be opened.
    """
    found = detect(path, layout)
    if isinstance(found, LayoutFormat):
        configuration, verdict = found.load(path, dims=dims, layout=layout)
    else:
        configuration = found.read(path, dims=dims, layout=layout)
        verdict = _judge_in_memory(configuration)
    require_dims(path, configuration.dims, dims)
    configuration.failed_checks = verdict.failed_checks
    configuration.warnings = require_sound(path, verdict, check_checksum)
    group = verdict.measurements.group
    if strip_signs:
        configuration.warnings.append(signs_text(group.antiperiodic))
        change = StripSigns(configuration.dims, group.antiperiodic)
        _apply(change, configuration)
    if reunitarize:
        configuration.warnings.append(require_projectable(path, group, stripped=strip_signs))
        _apply(Reunitarize(), configuration)
    return configuration


def _apply(change: Change, configuration: Configuration) -> None:
    planes = configuration.links.shape[1]
    for t, part in enumerate(configuration.links):
        part[...] = change.apply(part, (t, 0, planes))


def require_sound(path: PathLike, verdict: Verdict, check_checksum: bool) -> list[str]:
    """The warnings on a file; raises CheckError if it failed a check and that is not to be
    ignored."""
    failed = list(verdict.failed_checks.values())
    if failed and check_checksum:
        raise CheckError(path, None, "; ".join(failed))
    return [*verdict.warnings, *failed]


def require_projectable(path: PathLike, group: GroupErrors, *, stripped: bool) -> str:
    """What to say about a projection onto the group; raises CheckError if it would hide damage."""
    if group.antiperiodic and not stripped:
        raise CheckError(
            path,
            None,
            "links with the fermions' antiperiodic sign cannot be projected onto SU(N): strip it "
            "as well (strip_signs=True or --strip-signs)",
        )
    determinant = 0.0 if group.antiperiodic else group.determinant
    if not max(group.unitarity, determinant) <= _PROJECTABLE:
        raise CheckError(
            path,
            None,
            f"links are off SU(N) by {max(group.unitarity, determinant):.1e}: that is damage, not "
            "rounding, and projecting them onto the group would hide it",
        )
    return f"links were projected onto SU(N), as asked; they were off by {group.unitarity:.1e}"


def signs_text(directions: tuple[int, ...]) -> str:
    """What to say about stripping boundary signs in these directions."""
    if not directions:
        return "no antiperiodic sign found, nothing was stripped"
    names = ", ".join(DIRECTIONS[mu] if mu < len(DIRECTIONS) else str(mu) for mu in directions)
    return f"the antiperiodic sign in direction {names} was stripped, as asked"


def verify(
    path: PathLike,
    *,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Read a file once and judge it, without keeping the links.

    Raises:
        As `read`, but disagreements are left in the verdict's `failed_checks`.
    """
    found = detect(path, layout)
    if isinstance(found, LayoutFormat):
        header = found.read_header(path, dims=dims, layout=layout)
        require_dims(path, header.dims, dims)
        with found.open(path, header) as source:
            return scan(source, header, progress=progress)
    configuration = found.read(path, dims=dims, layout=layout)
    require_dims(path, configuration.dims, dims)
    return _judge_in_memory(configuration)


def require_dims(path: PathLike, present: tuple[int, ...], asked: tuple[int, ...] | None) -> None:
    """Raise FormatError if a file has other extents than asked for."""
    if asked is not None and present != tuple(asked):
        raise FormatError(
            path, None, f"extents {tuple(asked)} were asked for, the file says {present}"
        )


def _judge_in_memory(configuration: Configuration) -> Verdict:
    """For formats that only read into memory."""
    header = Header(
        format=configuration.format,
        dims=configuration.dims,
        nc=configuration.nc,
        precision=configuration.precision,
        checksum=configuration.checksum,
        plaquette=configuration.stored_plaquette,
        link_trace=configuration.stored_link_trace,
        metadata=configuration.metadata,
        warnings=configuration.warnings,
        failed_checks=configuration.failed_checks,
    )
    return judge(header, None, measure_links(configuration.links))


def write(
    path: PathLike,
    configuration: Configuration,
    format: str,
    precision: int | None = None,
    **options: str,
) -> list[str]:
    """Write a configuration, atomically and reproducibly: equal arguments give equal bytes.

    Args:
        path: the file; replaced if it exists.
        configuration: links and metadata.
        format: name of a format, or "package.module:Name".
        precision: 32 or 64; None keeps that of the links.
        options: of the format, see its `options`.

    Returns:
        Warnings on what could not be kept: digits, metadata.

    Raises:
        ValueError: unknown format, precision or option.
        FormatError: the format cannot hold the field.
        CheckError: the links are not finite.
        OSError: disk full and the like; a file that was there before is untouched.
    """
    return format_named(format).write(path, configuration, precision=precision, **options)


def _instance(found: object) -> Format:
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Format):
        raise TypeError(f"{found!r} is not a flowmc_adapters.Format")
    return made


@cache
def _load_entry_points() -> None:
    """Once, and only when formats are asked for; a broken package must not break the others."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(_instance(entry.load()))
        except Exception as error:
            warnings.warn(f"format {entry.name!r} ({entry.value}): {error}", stacklevel=2)


# The order of detection: magic numbers first, plausible sizes last
for _built_in in (
    NerscFormat(),
    ScidacFormat(),
    IldgFormat(),
    MilcFormat(),
    BmwFormat(),
    NumpyFormat(),
    NpzFormat(),
    Hdf5Format(),
    HirepFormat(),
    OpenQcdFormat(),
    BridgeFormat(),
):
    register(_built_in)
