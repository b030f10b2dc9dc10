"""Files of other programs whose header is wrong or leaves something out, and whose content proves
what they are."""

import math
import re
import struct

import h5py
import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    FieldConfiguration,
    FormatError,
    convert,
    inspect,
    link_trace,
    read,
    read_field,
    read_header,
    write,
    write_field,
)
from flowmc_adapters.fields.files import is_field

DIMS = (2, 3, 4, 5)


def swapped(content, start, size):
    """The bytes with the numbers behind `start` in the other byte order."""
    numbers = np.frombuffer(content, f"u{size}", offset=start).byteswap()
    return content[:start] + numbers.tobytes()


def nersc_file(path, links, changes, **options):
    """A NERSC file with header lines replaced, or left out if None."""
    write(path, Configuration(links), "nersc", **options)
    content = path.read_bytes()
    head, links_bytes = content.split(b"END_HEADER\n", 1)
    for key, value in changes.items():
        line = rf"(?m)^{key}\b.*\n".encode()
        new = b"" if value is None else f"{key} = {value}\n".encode()
        head, count = re.subn(line, new, head)
        assert count == 1
    path.write_bytes(head + b"END_HEADER\n" + links_bytes)


def payload_start(content):
    return content.index(b"END_HEADER\n") + len(b"END_HEADER\n")


@pytest.mark.parametrize("nc", [2, 4, 5])
def test_old_grid_calls_every_group_su3(tmp_path, make_links, nc):
    """And divides the link trace by 3 whatever N is."""
    links = make_links(nc=nc)
    trace = f"{link_trace(links) * nc / 3:.10g}"
    changes = {"DATATYPE": "4D_SU3_GAUGE_3x3", "LINK_TRACE": trace}
    nersc_file(tmp_path / "ckpoint_lat.4", links, changes)
    found = read(tmp_path / "ckpoint_lat.4")
    assert np.array_equal(found.links, links) and found.checksum.ok
    assert any("November 2021" in warning for warning in found.warnings)
    assert inspect(tmp_path / "ckpoint_lat.4")["nc"] == nc
    # Any other number is no link trace
    nersc_file(tmp_path / "b", links, {**changes, "LINK_TRACE": "0.25"})
    with pytest.raises(CheckError, match="link trace"):
        read(tmp_path / "b")
    # A file that is too long or short for SU(3) and holds no links of another group
    nersc_file(tmp_path / "c", 1.3 * links, changes)
    with pytest.raises((FormatError, CheckError)):
        read(tmp_path / "c")


@pytest.mark.parametrize("precision", [32, 64])
def test_short_files_of_old_grid(tmp_path, make_links, precision):
    """Two rows whatever N is: all of SU(2), too few of SU(4) and above."""
    path = tmp_path / "ckpoint_lat.4"
    links = make_links(nc=2, precision=precision)
    trace = f"{link_trace(links) * 2 / 3:.10g}"
    nersc_file(path, links, {"DATATYPE": "4D_SU3_GAUGE", "LINK_TRACE": trace})
    found = read(path)
    assert np.array_equal(found.links, links) and found.checksum.ok
    assert sum("November 2021" in warning for warning in found.warnings) == 2
    for nc in (4, 6):
        links = make_links(nc=nc, precision=precision)
        nersc_file(path, links, {"DATATYPE": "4D_SU3_GAUGE"})
        content = path.read_bytes()
        rows = np.ascontiguousarray(links[..., :2, :])
        big = rows.view(rows.real.dtype).astype(rows.real.dtype.newbyteorder(">"))
        path.write_bytes(content[: payload_start(content)] + big.tobytes())
        for use in (read, lambda file: convert(file, tmp_path / "copy", "npy")):
            with pytest.raises(FormatError, match=rf"first 2 rows of SU\({nc}\) matrices"):
                use(path)
        path.write_bytes(path.read_bytes()[:-8])  # no more than a damaged file
        with pytest.raises(FormatError, match="announces"):
            read(path)


def test_old_grid_in_ildg_files(tmp_path, make_links):
    links = make_links(nc=2)
    path = tmp_path / "a.lime"
    write(path, Configuration(links), "ildg")
    content = path.read_bytes()
    for old, new in (
        (b"<field>su2gauge</field>", b"<field>su3gauge</field>"),
        (b"<colors>2</colors>", b"<colors>3</colors>"),
    ):
        assert content.count(old) == 1
        content = content.replace(old, new)
    trace = f"{link_trace(links) * 2 / 3: .15f}".encode()
    content, count = re.subn(rb"(?<=<linktr>)[^<]{18}(?=</linktr>)", trace, content)
    assert count == 1
    path.write_bytes(content)
    found = read(path)
    assert np.array_equal(found.links, links)
    assert sum("November 2021" in warning for warning in found.warnings) == 2


@pytest.mark.parametrize(
    ("rows", "precision", "keys"),
    [
        ("3", 64, ["DATATYPE"]),
        ("2", 64, ["DATATYPE"]),
        ("3", 32, ["FLOATING_POINT"]),
        ("3", 64, ["FLOATING_POINT"]),
        ("2", 64, ["FLOATING_POINT"]),
        ("3", 64, ["DIMENSION_1"]),
        ("2", 32, ["DIMENSION_4"]),
        ("3", 64, ["DATATYPE", "DIMENSION_3", "FLOATING_POINT"]),
        ("2", 32, ["DATATYPE", "FLOATING_POINT"]),
    ],
)
@pytest.mark.parametrize("order", ["big", "little"])
def test_keys_that_the_size_decides(tmp_path, make_links, rows, precision, keys, order):
    if order == "little" and "FLOATING_POINT" not in keys:
        pytest.skip("the byte order is in the header")
    links = make_links(precision=precision)
    path = tmp_path / "lat"
    nersc_file(path, links, dict.fromkeys(keys), rows=rows, byte_order=order)
    found = read(path)
    assert np.abs(found.links - links).max() < (1e-6 if precision == 32 else 1e-14)
    assert (found.dims, found.precision) == (DIMS, precision) and found.checksum.ok
    assert any(f"lacks {', '.join(keys)}" in warning for warning in found.warnings)
    report = inspect(path)
    assert (report["dims"], report["error"]) == (list(DIMS), None)
    convert(path, tmp_path / "copy", "ildg")
    assert np.array_equal(read(tmp_path / "copy").links, found.links)


def test_a_missing_extent_in_ildg_files(tmp_path, make_links):
    links = make_links()
    path = tmp_path / "a.lime"
    write(path, Configuration(links), "ildg", style="simulateqcd")
    content = path.read_bytes()
    assert content.count(b"<lt>5</lt>") == 1
    path.write_bytes(content.replace(b"<lt>5</lt>", b"          "))
    found = read(path)
    assert found.dims == DIMS and np.array_equal(found.links, links)
    path.write_bytes(content.replace(b"<lt>5</lt>", b"<lt>x</lt>"))
    with pytest.raises(FormatError, match="extents"):
        read(path)


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("precision", [32, 64])
@pytest.mark.parametrize("summed", ["as labelled", "as stored"])
def test_nersc_links_in_the_other_byte_order(tmp_path, make_links, order, precision, summed):
    """The checksum may be of either kind: some codes add words up before they swap them."""
    links = make_links(precision=precision)
    path = tmp_path / "lat"
    write(path, Configuration(links), "nersc", byte_order=order)
    content = path.read_bytes()
    start = payload_start(content)
    content = swapped(content, start, precision // 8)
    if summed == "as labelled":
        words = np.frombuffer(content, ">u4" if order == "big" else "<u4", offset=start)
        total = int(words.sum(dtype=np.uint64)) % 2**32
        content, count = re.subn(rb"CHECKSUM = *[0-9a-f]+", b"CHECKSUM = %8x" % total, content)
        assert count == 1
    path.write_bytes(content)
    found = read(path)
    assert np.array_equal(found.links, links) and found.checksum.ok
    assert any("in that order only" in warning for warning in found.warnings)
    assert convert(path, tmp_path / "copy", "nersc").warnings
    assert np.array_equal(read(tmp_path / "copy").links, links)
    damaged = bytearray(content)
    damaged[-4] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckError, match="checksum"):
        read(path)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("ildg", {}),
        ("npy", {}),
        ("npy", {"style": "pyquda"}),
        ("npz", {}),
        ("hdf5", {}),
        ("hdf5", {"style": "pyquda"}),
        ("hdf5", {"style": "qdp++"}),
        ("milc", {}),
        ("milc", {"byte_order": "big"}),
        ("milc", {"sites": "listed"}),
    ],
)
@pytest.mark.parametrize("precision", [32, 64])
def test_links_in_the_other_byte_order(tmp_path, make_links, form, options, precision):
    if (form, precision) == ("milc", 64):
        pytest.skip("MILC files are 32 bit")
    links = make_links(precision=precision)
    path = tmp_path / "conf"
    listed = options == {"sites": "listed"}
    write(path, Configuration(links), form, **({} if listed else options))
    content = path.read_bytes()
    original = read_header(path).layout
    for offset in original.directions or (original.offset,):
        end = offset + links.nbytes // len(original.directions or [0])
        data = swapped(content[offset:end], 0, precision // 8)
        content = content[:offset] + data + content[end:]
    if listed:
        numbers = struct.pack(f"<{math.prod(DIMS)}i", *range(math.prod(DIMS)))
        content = content[:84] + struct.pack("<i", 1) + numbers + content[88:]
        path.with_name("conf.info").unlink()
    path.write_bytes(content)
    # Checksums of bytes are those of the old ones here
    bytes_are_summed = form in ("ildg", "npz") or (form, options.get("style")) in (
        ("hdf5", None),
        ("hdf5", "pyquda"),
    )
    found = read(path, check_checksum=not bytes_are_summed)
    assert np.array_equal(found.links, links)
    assert any("in that order only" in warning for warning in found.warnings)
    convert(path, tmp_path / "copy", "npy", check_checksum=not bytes_are_summed)
    assert np.array_equal(read(tmp_path / "copy").links, links)


@pytest.mark.parametrize("form", ["Fortran order", "chunks"])
@pytest.mark.parametrize("precision", [32, 64])
def test_another_byte_order_is_named_where_it_is_not_looked_for(
    tmp_path, make_links, form, precision
):
    links = make_links(precision=precision).byteswap()
    path = tmp_path / "conf"
    if form == "chunks":
        with h5py.File(path, "w") as file:
            file.create_dataset("links", data=links, chunks=(1, *links.shape[1:]))
    else:
        with open(path, "wb") as file:
            np.save(file, np.asfortranarray(links))
    report = inspect(path)
    assert "another byte order than it says" in str(report["error"]) + str(report["warnings"])


def test_links_outside_the_group_are_left_as_they_are(tmp_path, make_links):
    """Neither byte order proves anything: what the file says counts."""
    links = 1.5 * make_links()
    for form in ("nersc", "ildg"):
        write(tmp_path / form, Configuration(links), form)
        found = read(tmp_path / form)
        assert np.array_equal(found.links, links)
        assert not any("endian" in warning for warning in found.warnings)


def test_milc_sums_of_either_order(tmp_path, make_links):
    links = make_links(precision=32)
    path = tmp_path / "lat"
    write(path, Configuration(links), "milc", byte_order="big")
    wanted = path.read_bytes()[88:96]
    write(path, Configuration(links), "milc", byte_order="little")
    content = bytearray(path.read_bytes())
    # Little-endian header around big-endian links whose words were added up as they are
    first, second = struct.unpack(">2I", wanted)
    struct.pack_into("<2I", content, 88, first, second)
    path.with_name("lat.info").unlink()
    path.write_bytes(swapped(bytes(content), 96, 4))
    assert np.array_equal(read(path).links, links)


@pytest.mark.parametrize("form", ["openqcd", "hirep"])
@pytest.mark.parametrize("swap", ["everything", "the links alone"])
def test_whole_files_in_the_other_byte_order(tmp_path, make_links, form, swap):
    """openQCD writes little-endian and HiRep big-endian on every machine; other codes do not."""
    links = make_links((4, 2, 6, 8))
    path = tmp_path / "runn1"
    write(path, Configuration(links), form)
    content = path.read_bytes()
    integers = 4 if form == "openqcd" else 5
    start = 4 * integers + 8
    if swap == "the links alone":
        if form == "hirep":
            pytest.skip("no known code does that")
        path.write_bytes(swapped(content, start, 8))
    else:
        head = np.frombuffer(content, "u4", count=integers).byteswap().tobytes()
        path.write_bytes(head + swapped(content[4 * integers :], 0, 8))
    found = read(path)
    assert found.format == form and np.array_equal(found.links, links)
    assert any("endian" in warning for warning in found.warnings)
    convert(path, tmp_path / "copy", form)
    assert (tmp_path / "copy").read_bytes() == content
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError):
        read(path)


@pytest.mark.parametrize("size", [512, 2048, 4096, 65536])
def test_hdf5_behind_a_user_block(tmp_path, make_links, size):
    """Of MATLAB, Julia or any other program."""
    links = make_links()
    path = tmp_path / "lat.h5"
    with h5py.File(path, "w", userblock_size=size) as file:
        file["gauge/links"] = links
        file["phi"] = 1.0
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    found = read(path)
    assert np.array_equal(found.links, links)
    assert inspect(path)["format"] == "hdf5"
    assert not is_field(path)
    # Fields of our own, copied there
    write_field(tmp_path / "one.h5", FieldConfiguration(np.ones((4, 6)), "scalar"), "hdf5")
    with (
        h5py.File(tmp_path / "one.h5") as source,
        h5py.File(path, "w", userblock_size=size) as file,
    ):
        source.copy("configuration", file)
    assert np.array_equal(read_field(path).values, np.ones((4, 6)))
