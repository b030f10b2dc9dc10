"""Damaged files raise FormatError, name the place, and never give wrong links silently."""

import os
import struct

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    convert,
    field_numbers,
    inspect,
    read,
    read_field,
    write,
)

WITH_CHECKSUM = ["nersc", "ildg", "scidac"]
FORMATS = [*WITH_CHECKSUM, "npy"]
DIMS = (2, 1, 2, 3)


@pytest.fixture
def sound(tmp_path, make_configuration):
    def make(format, **kwargs):
        path = tmp_path / f"sound.{format}"
        write(path, make_configuration(DIMS, metadata={"SEQUENCE_NUMBER": "1"}, **kwargs), format)
        return path

    return make


def record_offsets(content):
    offset = 0
    while offset < len(content):
        (length,) = struct.unpack_from(">Q", content, offset + 8)
        yield offset, length
        offset += 144 + length + (-length % 8)


@pytest.mark.parametrize("format", FORMATS)
def test_truncation_anywhere(sound, format):
    path = sound(format)
    content = path.read_bytes()
    cuts = {0, 1, 3, 13, 100, len(content) // 2, len(content) - 200, len(content) - 64}
    if format in ("ildg", "scidac"):
        for offset, length in record_offsets(content):
            cuts |= {offset, offset + 1, offset + 143, offset + 144, offset + 144 + length - 1}
    else:
        cuts |= {len(content) - 1}
    for cut in sorted(cut for cut in cuts if cut < len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        report = inspect(path)
        assert report["error"] or report["warnings"]


@pytest.mark.parametrize("format", WITH_CHECKSUM)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.999])
def test_flipped_bit_in_the_links(sound, format, where):
    path = sound(format)
    content = bytearray(path.read_bytes())
    size = 12 * 4 * 144
    start = content.index(b"END_HEADER\n") + 11 if format == "nersc" else next(
        offset + 144 for offset, length in record_offsets(content) if length == size
    )  # fmt: skip
    position = start + int(where * size) // 8 * 8 + 7  # lowest bits of a double
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckError, match="checksum does not match"):
        read(path)
    configuration = read(path, check_checksum=False)
    assert list(configuration.failed_checks) == ["checksum"]
    report = inspect(path)
    assert report["error"] is None
    assert report["checksum"]["ok"] is False


def test_every_format_notices_a_cut(tmp_path, make_configuration, equal_precision, writable):
    """Whatever its layout: a file without its end is refused in one sentence, everywhere."""
    path, copy = tmp_path / "conf", tmp_path / "copy"
    dims = (2, 4, 2, 6)
    write(path, make_configuration(dims, precision=equal_precision(writable)), writable)
    content = path.read_bytes()
    for cut in (1, 100, len(content) // 2, len(content) - 200, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(FormatError):
            convert(path, copy, writable)
        assert not copy.exists() and inspect(path)["error"]


def test_every_checksum_notices_a_flipped_bit(
    tmp_path, make_configuration, equal_precision, writable
):
    """In the lowest bits of a link; a format that stores no checksum cannot know."""
    path, copy = tmp_path / "conf", tmp_path / "copy"
    precision = equal_precision(writable)
    configuration = make_configuration((2, 4, 2, 6), precision=precision)
    # Odd enough to be found again among the bytes of any format.
    marker = configuration.links.real[1, 0, 1, 1, 2, 0, 1] = np.float32(0.123456789)
    write(path, configuration, writable)
    sound, code = path.read_bytes(), "f" if precision == 32 else "d"
    places = [(order, struct.pack(f"{order}{code}", marker)) for order in "<>"]
    ((order, wanted),) = [place for place in places if sound.count(place[1]) == 1]
    flipped = bytearray(wanted)
    flipped[0 if order == "<" else -1] ^= 1
    path.write_bytes(sound.replace(wanted, bytes(flipped)))
    report = inspect(path)
    if report["checksum"] is None:
        assert read(path).checksum is None
        return
    assert report["checksum"]["ok"] is False
    for attempt in (lambda: read(path), lambda: convert(path, copy, writable)):
        with pytest.raises(CheckError, match="checksum") as caught:
            attempt()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not copy.exists()


FIRST, INNER = (0, 0, 0, 0, 0, 0, 0), (2, 1, 0, 1, 3, 2, 0)


@pytest.mark.parametrize(
    ("value", "index"),
    [
        # Each value at one place, each place with a value, of every format; the rest is slow.
        *[(np.nan, INNER), (np.inf, FIRST), (-np.inf, INNER)],
        *[pytest.param(v, FIRST, marks=pytest.mark.slow) for v in (np.nan, -np.inf)],
        pytest.param(np.inf, INNER, marks=pytest.mark.slow),
    ],
)
def test_numbers_that_are_not_finite(tmp_path, make_configuration, writable_at, value, index):
    """Found wherever they are, with file, byte and site, and never written."""
    format, precision = writable_at
    dims, path = (2, 4, 2, 6), tmp_path / "conf"
    configuration = make_configuration(dims, precision=precision)
    real = configuration.links.real
    # Odd enough to be found again among the bytes of any format
    marker = real[index] = np.float32(0.123456789)
    write(path, configuration, format)
    sound, code = path.read_bytes(), "f" if precision == 32 else "d"
    places = [(order, struct.pack(f"{order}{code}", marker)) for order in "<>"]
    ((order, wanted),) = [place for place in places if sound.count(place[1]) == 1]
    path.write_bytes(sound.replace(wanted, struct.pack(f"{order}{code}", value)))
    t, z, y, x, mu = index[:5]
    site = f"site [{x},{y},{z},{t}], mu = {'xyzt'[mu]}"
    for check in (True, False):
        with pytest.raises(CheckError) as caught:
            read(path, check_checksum=check)
        assert caught.value.path == str(path)
        assert site in caught.value.reason
        assert "not a finite number" in caught.value.reason
        # The slab's first byte, where the format has one
        assert 0 < (caught.value.offset or 1) <= sound.index(wanted)
    assert inspect(path)["error"] == str(caught.value)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(CheckError, match="not a finite number"):
        convert(path, tmp_path / "copy", "nersc")
    assert not (tmp_path / "copy").exists()
    real[index] = value
    before = path.read_bytes()
    with pytest.raises(CheckError, match="refusing") as caught:
        write(path, configuration, format)
    assert site in caught.value.reason
    assert path.read_bytes() == before


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_that_overflows_is_refused(tmp_path, make_configuration, format):
    configuration = make_configuration(DIMS)
    configuration.links[0, 0, 0, 0, 0, 0, 0] = 1e300
    with pytest.raises(CheckError, match="refusing"):
        write(tmp_path / "a", configuration, format, precision=32)


@pytest.mark.parametrize("reader", [read, inspect, convert, read_field, field_numbers])
def test_what_is_no_file_is_not_waited_for(tmp_path, reader):
    """Opening a pipe waits for a writer, /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("zeros", "a device")):
        path = tmp_path / name
        arguments = (tmp_path / "copy", "nersc") if reader is convert else ()
        if reader is inspect:
            assert kind in inspect(path)["error"]
            continue
        with pytest.raises(FormatError, match=kind) as caught:
            reader(path, *arguments)
        assert caught.value.path == str(path)


def test_too_many_records(tmp_path, sound):
    path = sound("ildg")
    record = struct.pack(">IHHQ128s", 0x456789AB, 1, 0xC000, 0, b"x")
    path.write_bytes(path.read_bytes() + 20_000 * record)
    with pytest.raises(FormatError, match="more than 20000 LIME records") as caught:
        read(path)
    assert caught.value.offset < path.stat().st_size


@pytest.mark.parametrize("version", [1, 2])
def test_long_npy_headers_are_not_read(tmp_path, version):
    """numpy reads a header before it finds it too long, and quotes it in the message."""
    path = tmp_path / "conf.npy"
    length = 60_000 if version == 1 else 2**31
    start = b"\x93NUMPY" + struct.pack("<BBH" if version == 1 else "<BBI", version, 0, length)
    path.write_bytes(start + b"{'descr': " + b" " * 70_000)
    with pytest.raises(FormatError, match=f"it would have {length} bytes"):
        read(path)
    shape = b"(" * 900 + b")" * 900
    header = b"{'descr': '<c16', 'fortran_order': False, 'shape': " + shape + b", }\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    with pytest.raises(FormatError, match="damaged npy header") as caught:
        read(path)
    assert len(caught.value.reason) < 300
    assert "\n" not in caught.value.reason


def test_sizes_that_would_not_fit_in_memory(sound):
    path = sound("ildg")
    content = bytearray(path.read_bytes())
    offset = next(offset for offset, length in record_offsets(content) if length == 12 * 4 * 144)
    for length in (2**63, 2**64 - 1, len(content)):
        struct.pack_into(">Q", content, offset + 8, length)
        path.write_bytes(content)
        with pytest.raises(FormatError, match="truncated"):
            read(path)


def test_lengths_that_are_too_short(sound):
    path = sound("ildg")
    content = bytearray(path.read_bytes())
    struct.pack_into(">Q", content, 8, 8)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="no LIME record after"):
        read(path)


def test_links_outside_the_group_are_returned_with_a_warning(sound):
    path = sound("npy")
    configuration = read(path)
    configuration.links[1, 0, 0, 1, 2] *= 1.001
    write(path, configuration, "nersc")
    assert any("not in SU(3)" in warning for warning in read(path).warnings)


def test_boundary_sign_is_pointed_out(sound):
    configuration = read(sound("ildg"))
    configuration.links[-1, ..., 3, :, :] *= -1
    path = sound("nersc")
    write(path, configuration, "nersc")
    (warning,) = read(path).warnings
    assert "direction t" in warning


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (struct.pack("<I", 19920410) + bytes(100), "CP-PACS"),
        (struct.pack(">I", 19920410) + bytes(100), "CP-PACS"),
        (struct.pack("<I", 53546) + bytes(100), "MILC file of 1996"),
        (b"\x1f\x8b" + bytes(100), "gzip"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"some text", "not a known configuration file"),
    ],
)
def test_recognised_but_not_readable(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read(path)
    assert message in inspect(path)["error"]


@pytest.mark.parametrize("what", ["another field", "some text"])
def test_what_follows_the_links_is_not_lost_without_a_word(
    tmp_path, make_configuration, equal_precision, writable, what
):
    """Formats without a length of their own; the others refuse it as damage."""
    path = tmp_path / "conf"
    configuration = make_configuration((2, 4, 2, 6), precision=equal_precision(writable))
    write(path, configuration, writable)
    sound = path.read_bytes()
    path.write_bytes(sound + (sound[-2000:] if what == "another field" else b"some text"))
    if writable == "npz" and what == "some text":
        return  # a comment, by the rules of zip archives
    with pytest.raises(FormatError):
        read(path)
    with pytest.raises(FormatError):
        convert(path, tmp_path / "copy", writable)
    assert not (tmp_path / "copy").exists()
    report = inspect(path)
    assert report["error"] or any("bytes follow" in text for text in report["warnings"])


def test_directories(tmp_path):
    with pytest.raises(FormatError, match="a directory"):
        read(tmp_path)
    (tmp_path / "index.crc32").write_text("0")
    with pytest.raises(FormatError, match="GPT"):
        read(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_random_damage(sound, format):
    """Read either raises FormatError, or returns the very links: the checksum saw no change."""
    path = sound(format)
    original = read(path)
    content = path.read_bytes()
    rng = np.random.default_rng(20)
    for attempt in range(250):
        damaged = bytearray(content)
        # Half of the blows go to the first 2 kB, where the headers are
        reach = len(content) if rng.random() < 0.5 else min(2048, len(content))
        kind = rng.integers(4)
        position = int(rng.integers(reach))
        if kind == 0:
            damaged[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            damaged[position : position + 8] = rng.bytes(8)
        elif kind == 2:
            del damaged[position : position + int(rng.integers(1, 200))]
        else:
            damaged[position:position] = rng.bytes(int(rng.integers(1, 200)))
        path.write_bytes(damaged)
        report = inspect(path) if attempt % 10 == 0 else None
        try:
            found = read(path)
        except FormatError:
            assert report is None or report["error"] or report["warnings"]
            continue
        assert report is None or report["error"] is None
        if format != "npy":
            no_checksum = found.checksum is None
            assert no_checksum or np.array_equal(found.links, original.links)
