"""Small valid files of every format and style, from which `fuzzing` makes damaged ones."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flowmc_adapters import (
    FIELD_FORMATS,
    Configuration,
    FieldConfiguration,
    FormatError,
    append_field,
    formats,
    read_header,
    write,
    write_field,
)

DIMS = (2, 2, 2, 2)
METADATA = {
    "SEQUENCE_NUMBER": "12",
    "ENSEMBLE_ID": "b6.0",
    "CREATION_DATE": "Mon Jan  1 00:00:00 2024",
    "xlf-info": "plaquette = 0.5\n trajectory nr = 12\n beta = 6.0\n",
    "ildg-data-lfn": "lfn://a/b",
}


@dataclass(frozen=True)
class Seed:
    """A file, with those that belong to it.

    Attributes:
        format: name of the format.
        name: what is special about it.
        files: content by file name; the first one is the one to read.
        payload: (first byte, bytes) of the links in the first file, where mutations are dull.
        dims: extents to give to the reader, or None.
        layout: layout to ask for, or None.
    """

    format: str
    name: str
    files: dict[str, bytes]
    payload: tuple[int, int] = (0, 0)
    dims: tuple[int, ...] | None = None
    layout: str | None = None

    @property
    def main(self) -> bytes:
        return next(iter(self.files.values()))


def links_of(dims: tuple[int, ...] = DIMS, nc: int = 3, precision: int = 64) -> Any:
    """Random SU(N) links."""
    rng = np.random.default_rng(1)
    shape = (*reversed(dims), len(dims), nc, nc)
    unitary, _ = np.linalg.qr(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    unitary[..., 0] /= np.linalg.det(unitary)[..., None]
    return unitary.astype(np.complex64 if precision == 32 else np.complex128)


def all_seeds() -> dict[str, list[Seed]]:
    """Seeds of every format in the table, by its name, and of "fields", which are no links."""
    found: dict[str, list[Seed]] = {name: [] for name in formats()}
    for seed in [
        *_written(),
        *_nersc(),
        *_lime(),
        *_milc(),
        *_bmw(),
        *_bridge(),
        *_numpy(),
        *_openqcd(),
    ]:
        found.setdefault(seed.format, []).append(seed)
    found["hdf5"] += list(_hdf5(found["hdf5"]))
    known = {name: [_with_payload(seed) for seed in seeds] for name, seeds in found.items()}
    return known | {"fields": list(_fields())}


def kept_seeds(path: Path | None) -> dict[str, list[Seed]]:
    """All seeds, from a file if it is there and else into it: to make them takes five seconds."""
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    seeds = all_seeds()
    if path is not None:
        path.write_bytes(pickle.dumps(seeds))
    return seeds


def _with_payload(seed: Seed) -> Seed:
    """Raises if a seed is not sound: damaged seeds would test nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = store(seed, Path(folder))
        header = read_header(path, dims=seed.dims)
    assert header.format == seed.format, (seed, header.format)
    layout = header.layout
    if layout is None or layout.directions is not None or layout.total_bytes > len(seed.main):
        return seed
    return Seed(seed.format, seed.name, seed.files, (layout.offset, layout.total_bytes), seed.dims)


def store(seed: Seed, folder: Path) -> Path:
    """Write the files of a seed; returns the one to read."""
    for name, content in seed.files.items():
        (folder / name).write_bytes(content)
    return folder / next(iter(seed.files))


def _written() -> Iterator[Seed]:
    """Everything that the package writes: precisions, options, groups, dimensions."""
    for name, format in formats().items():
        if not format.writable:
            continue
        ways: list[dict[str, str]] = [{}]
        ways += [{option: value} for option, values in format.options.items() for value in values]
        for options in ways:
            for nc, dims in ((3, DIMS), (2, DIMS), (3, (2, 4, 2, 2)), (2, (2, 2, 2)), (3, (2, 2))):
                for precision in (32, 64):
                    field = Configuration(links_of(dims, nc, precision), metadata=dict(METADATA))
                    try:
                        files = _files_of(name, field, precision, options)
                    except FormatError:
                        continue  # the format has no such field
                    text = " ".join(f"{key}={value}" for key, value in options.items())
                    yield Seed(name, f"{text} SU({nc}) {dims} {precision}", files)


def _files_of(
    name: str, field: Configuration, precision: int, options: dict[str, str]
) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "conf", field, name, precision, **options)
        paths = sorted(Path(folder).iterdir(), key=lambda path: len(path.name))
        return {path.name: path.read_bytes() for path in paths}


def _nersc() -> Iterator[Seed]:
    """Two rows, little-endian, byte order left open, no checksum."""
    for rows in (2, 3):
        for order, floating in (("<", "IEEE64LITTLE"), (">", "IEEE64"), ("<", "IEEE64")):
            data = links_of()[..., :rows, :].astype(f"{order}c16").tobytes()
            total = int(np.frombuffer(data, f"{order}u4").sum(dtype=np.uint64)) % 2**32
            for check in (f"CHECKSUM = {total:x}\n", ""):
                suffix = "_3x3" if rows == 3 else ""
                head = f"BEGIN_HEADER\nDATATYPE = 4D_SU3_GAUGE{suffix}\n"
                head += "".join(f"DIMENSION_{i} = 2\n" for i in (1, 2, 3, 4))
                head += f"{check}FLOATING_POINT = {floating}\nEND_HEADER\n"
                yield Seed("nersc", f"{rows} {floating} {check}", {"conf": head.encode() + data})


def lime_record(kind: str, data: bytes, flags: int = 0xC000) -> bytes:
    head = struct.pack(">IHHQ", 0x456789AB, 1, flags, len(data)) + kind.encode().ljust(128, b"\0")
    return head + data + bytes(-len(data) % 8)


def _lime() -> Iterator[Seed]:
    """As tmLQCD and Grid write; without extents; two binary records."""
    data = links_of().astype(">c16").tobytes()
    form = (
        b"<?xml version='1.0'?><ildgFormat><version>1.0</version><field>su3gauge</field>"
        b"<precision>64</precision><lx>2</lx><ly>2</ly><lz>2</lz><lt>2</lt></ildgFormat>"
    )
    sums = [0, 0]
    for rank in range(16):
        code = zlib.crc32(data[rank * 576 : (rank + 1) * 576])
        for i, modulus in enumerate((29, 31)):
            shift = rank % modulus
            sums[i] ^= (code << shift | code >> (32 - shift)) & 0xFFFFFFFF if shift else code
    check = f"<scidacChecksum><suma>{sums[0]:x}</suma><sumb>{sums[1]:x}</sumb></scidacChecksum>"
    tmlqcd = [
        lime_record("xlf-info", METADATA["xlf-info"].encode()),
        lime_record("ildg-format", form),
        lime_record("ildg-binary-data", data),
        lime_record("scidac-checksum", check.encode()),
    ]
    grid = b"<FieldMetaData><plaquette>0.1</plaquette><link_trace>0</link_trace></FieldMetaData>"
    yield Seed("ildg", "tmLQCD", {"conf": b"".join(tmlqcd)})
    yield Seed("ildg", "Grid", {"conf": lime_record("grid-format", grid) + b"".join(tmlqcd)})
    yield Seed("ildg", "bare", {"conf": tmlqcd[2]}, dims=DIMS)
    twice = b"".join([*tmlqcd, *tmlqcd[1:], lime_record("unknown", b"\0" * 100)])
    yield Seed("ildg", "two records", {"conf": twice})
    yield Seed("scidac", "bare", {"conf": lime_record("scidac-binary-data", data)}, dims=DIMS)


def _milc() -> Iterator[Seed]:
    """Old versions, both byte orders."""
    if "milc" not in formats():
        return
    words = links_of(precision=32)
    date = b"Mon Jan  1 00:00:00 2024".ljust(64, b"\0")
    for order in "<>":
        data = words.astype(f"{order}c8").tobytes()
        sites = struct.pack(f"{order}16i", *reversed(range(16)))
        heads = {
            "version 5": struct.pack(f"{order}5i64s3i", 20103, *DIMS, date, 0, 0, 0),
            "site list": struct.pack(f"{order}5i64si", 20103, *DIMS, date, 1) + sites + bytes(8),
            "version 1": struct.pack(f"{order}5i2f", 59354, *DIMS, 0.1, 0.2),
            "FNAL": struct.pack(f"{order}9i", 0x71626434, 0, 4, 72, *DIMS, 0),
        }
        for name, head in heads.items():
            yield Seed("milc", f"{name} {order}", {"conf": head + data})


def _fields() -> Iterator[Seed]:
    """Scalar and U(1) fields, alone and several in a file."""
    rng = np.random.default_rng(2)
    for kind, shape in (("scalar", (2, 2, 2)), ("u1", (2, 2, 2)), ("u1", (2, 2, 2, 2, 4))):
        for type_ in (np.float32, np.float64):
            field = FieldConfiguration(
                rng.normal(size=shape).astype(type_), kind, {"SEQUENCE_NUMBER": "3", "CHAIN": "1"}
            )
            for format in FIELD_FORMATS:
                with tempfile.TemporaryDirectory() as folder:
                    write_field(Path(folder) / "conf", field, format)
                    content = (Path(folder) / "conf").read_bytes()
                yield Seed("fields", f"{kind} {format} {type_.__name__}", {"conf": content})
            with tempfile.TemporaryDirectory() as folder:
                for number in (1, 2, 30):
                    append_field(Path(folder) / "conf", field, number)
                content = (Path(folder) / "conf").read_bytes()
            yield Seed("fields", f"{kind} ensemble {type_.__name__}", {"conf": content})


def _bmw() -> Iterator[Seed]:
    if "bmw" not in formats():
        return
    for name, rows in (("#BMW", 2), ("#18BMW", 3)):
        data = links_of()[..., :rows, :].astype(">c16").tobytes()
        a, b = 1, 0
        for (word,) in struct.iter_unpack(">I", data):
            a = (a + word) % 4294967291
            b = (b + a) % 4294967291
        line = f"{name} 2 2 2 2 {(b << 32) + a:x}\nwords\n".encode()
        yield Seed("bmw", name, {"conf": line.ljust(4096, b"\n") + data})


def _bridge() -> Iterator[Seed]:
    if "bridge" not in formats():
        return
    for nc in (2, 3):
        numbers = links_of(nc=nc).view(float).ravel()
        for ending in ("\n", "\r\n"):
            text = ending.join([*(f"{number:.17g}" for number in numbers), ""])
            yield Seed("bridge", f"SU({nc}) {ending!r}", {"conf": text.encode()}, dims=DIMS)


def _openqcd() -> Iterator[Seed]:
    """openQ*D's U(1) field behind the links; all angles zero, so that the plaquette is 1."""
    field = Configuration(links_of())
    content = _files_of("openqcd", field, 64, {})["conf"]
    u1 = struct.pack("<d", 1.0) + bytes(32 * 16)
    yield Seed("openqcd", "SU(3) x U(1)", {"conf": content + u1})


def _numpy() -> Iterator[Seed]:
    """Fortran order, big-endian, headers of version 2, one file per direction."""
    links = links_of()
    for name, array in (
        ("Fortran order", np.asfortranarray(links)),
        ("big-endian", links.astype(">c16")),
        ("32 bit", links.astype("<c8")),
    ):
        file = io.BytesIO()
        np.save(file, array)
        yield Seed("npy", name, {"conf": file.getvalue()})
    file = io.BytesIO()
    np.lib.format.write_array(file, links, version=(2, 0))
    yield Seed("npy", "version 2", {"conf": file.getvalue()})
    files = {}
    for mu in range(4):
        file = io.BytesIO()
        one = np.asfortranarray(links[..., mu, :, :].transpose(4, 5, 3, 2, 1, 0))
        np.save(file, one)
        files[f"u{mu}.npy"] = file.getvalue()
    yield Seed("npy", "four files", files)


def _hdf5(written: list[Seed]) -> Iterator[Seed]:
    """Copies of those written as old versions of the library store them, which have no checksums
    in their headers, and with compressed chunks."""
    import h5py

    def copy(source: Any, target: Any, **how: Any) -> None:
        for key, value in source.attrs.items():
            target.attrs[key] = value
        for name, item in source.items():
            if isinstance(item, h5py.Group):
                copy(item, target.create_group(name), **how)
            else:
                made = target.create_dataset(name, data=item[()], **how)
                for key, value in item.attrs.items():
                    made.attrs[key] = value

    for seed in written:
        for libver in ("earliest", "latest"):
            for how in ({}, {"chunks": True, "compression": "gzip", "shuffle": True}):
                file = io.BytesIO()
                with (
                    h5py.File(io.BytesIO(seed.main), "r") as source,
                    h5py.File(file, "w", libver=libver) as target,
                ):
                    copy(source, target, **how)
                name = f"{seed.name} {libver} {'chunks' if how else ''}"
                yield Seed("hdf5", name, {"conf": file.getvalue()})
