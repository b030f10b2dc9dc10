"""#BMW files, made word by word: none written by the codes themselves is public."""

import itertools
import struct

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    Configuration,
    FormatError,
    convert,
    detect,
    examine,
    formats,
    inspect,
    read,
    read_header,
    slab_sums,
    transfer,
    write,
)
from flowmc_adapters.bmw import BmwChecksum
from flowmc_adapters.layout import Layout

DIMS = (4, 2, 6, 8)


def reference_payload(links, rows):
    lt, lz, ly, lx = links.shape[:4]
    content = b""
    for t in range(lt):
        for z in range(lz):
            for y in range(ly):
                for x in range(lx):
                    for mu in range(4):
                        for number in links[t, z, y, x, mu, :rows].ravel():
                            content += struct.pack(">2d", number.real, number.imag)
    return content


def reference_checksum(payload):
    """The recurrence itself."""
    prime = 4294967291
    a, b = 1, 0
    for (word,) in struct.iter_unpack(">I", payload):
        a = (a + word) % prime
        b = (b + a) % prime
    return (b << 32) + a


def reference_file(links, rows=2, form="{:x}", filling=b"\n"):
    lt, lz, ly, lx = links.shape[:4]
    payload = reference_payload(links, rows)
    name = {2: "#BMW", 3: "#18BMW"}[rows]
    line = f"{name} {lx} {ly} {lz} {lt} {form.format(reference_checksum(payload))}\n"
    return (line.encode() + b"some words of the run\n").ljust(4096, filling) + payload


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conf"


@pytest.mark.parametrize("dims", [DIMS, (2, 3, 5, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("filling", [b"\n", b" "])
def test_three_rows(path, make_links, dims, filling):
    links = make_links(dims)
    path.write_bytes(reference_file(links, 3, filling=filling))
    found = read(path)
    assert (found.format, found.dims, found.nc) == ("bmw", dims, 3)
    assert found.links.tobytes() == links.tobytes()
    assert found.checksum.ok is True
    assert found.warnings == []


def test_two_rows(path, make_links):
    links = make_links(DIMS)
    path.write_bytes(reference_file(links))
    found = read(path)
    assert found.links[..., :2, :].tobytes() == links[..., :2, :].tobytes()
    assert np.abs(found.links - links).max() < 1e-14
    assert found.checksum.ok is True
    (warning,) = found.warnings
    assert "2 rows" in warning


@pytest.mark.parametrize("rows", [2, 3])
def test_slabs_and_threads(path, make_links, monkeypatch, rows):
    monkeypatch.setattr(slab_sums, "_SITES", 16)
    monkeypatch.setattr(transfer, "_SERIAL_VOLUME", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    links = make_links((4, 2, 7, 9))
    path.write_bytes(reference_file(links, rows))
    found = read(path)
    assert found.checksum.ok is True
    assert found.links[..., :rows, :].tobytes() == links[..., :rows, :].tobytes()
    copy = path.with_name("copy")
    convert(path, copy, "nersc")
    assert read(copy).links.tobytes() == found.links.tobytes()


def test_checksum_in_any_order_and_in_parts():
    layout = Layout(0, (2, 3, 40, 20), 3, 2, 64, ">")
    rng = np.random.default_rng(3)
    # Words close to 2^32, too, where a careless sum would overflow
    payload = rng.integers(0, 256, layout.total_bytes, dtype=np.uint8)
    payload[: layout.total_bytes // 2] = 255
    expected = reference_checksum(payload.tobytes())
    assert payload.size // 4 > 3 * 2**16
    sites = layout.total_bytes // layout.site_bytes
    cuts = [0, *sorted(rng.choice(sites, 12, replace=False).tolist()), sites]
    pieces = list(itertools.pairwise(cuts))
    for pieces_at_once in ([(0, sites)], pieces, rng.permutation(pieces).tolist()):
        sums = BmwChecksum(layout), BmwChecksum(layout)
        for i, (begin, end) in enumerate(pieces_at_once):
            raw = payload[begin * layout.site_bytes : end * layout.site_bytes]
            sums[i % 2].update(begin, raw)
        sums[0].absorb(sums[1])
        assert sums[0].value == expected
        assert sums[0].text == f"{expected:x}"


@pytest.mark.parametrize("form", ["{:016x}", "{:X}", "0x{:x}", "{:d}"])
def test_ways_to_print_the_checksum(path, make_links, form):
    content = reference_file(make_links(DIMS), 3, form)
    assert len(str(reference_checksum(content[4096:]))) > 16
    path.write_bytes(content)
    found = read(path)
    assert found.checksum.ok is True
    assert found.warnings == []


@pytest.mark.parametrize("stored", ["12345", "nonsense", "12345678901234567890123"])
def test_a_wrong_checksum_is_a_warning(path, make_links, stored):
    links = make_links(DIMS)
    path.write_bytes(reference_file(links, 3, form=stored))
    found = read(path)
    assert found.links.tobytes() == links.tobytes()
    assert found.checksum.ok is False
    assert found.failed_checks == {}
    assert any("checksum does not match" in warning for warning in found.warnings)
    report = inspect(path)
    assert report["checksum"]["ok"] is False
    assert report["error"] is None


def test_damage_shows(path, make_links):
    content = bytearray(reference_file(make_links(DIMS), 3))
    for position in (4096 + 7, len(content) // 16 * 16 + 7 - 16, len(content) - 1):
        content[position] ^= 1
        path.write_bytes(content)
        assert any("checksum does not match" in warning for warning in read(path).warnings)
        content[position] ^= 1
    # Two numbers that change places leave the plain sum as it is
    content[4096:4112] = content[4104:4112] + content[4096:4104]
    path.write_bytes(content)
    assert read(path).checksum.ok is False


def test_no_checksum(path, make_links):
    content = reference_file(make_links(DIMS), 3)
    path.write_bytes(b"#18BMW 4 2 6 8\n".ljust(4096, b"\n") + content[4096:])
    assert read(path).checksum is None
    assert any("no checksum" in warning for warning in read(path).warnings)


@pytest.mark.parametrize(
    "line",
    [
        b"#BMW\n",
        b"#BMW 4 2 6\n",
        b"#BMW 4 2 6 x 0\n",
        b"#BMW 4 2 6 0 0\n",
        b"#BMW 4 2 6 -8 0\n",
        b"#BMW 4 2 6 1e9 0\n",
        b"#BMW 4 2 6 99999999999999999999 0\n",
        b"#BMW 65536 65536 65536 65536 0\n",
        b"#BMW 4 2 6 9 0\n",
        b"#BMW4 2 6 8 0\n",
        b"#18BMW 4 2 6 8 0\n",
        b"#BMW 4 2 6 8 0",
        b"#BMW \xff\xfe 2 6 8 0\n",
    ],
)
def test_wrong_header(path, make_links, line):
    content = reference_file(make_links(DIMS))
    filling = b" " if not line.endswith(b"\n") else b"\n"
    path.write_bytes(line.ljust(4096, filling) + content[4096:])
    with pytest.raises(FormatError):
        read(path)
    with pytest.raises(FormatError):
        read_header(path)


@pytest.mark.parametrize("cut", [4, 20, 4095, 4096, 4100, -1, -96])
def test_truncation(path, make_links, cut):
    path.write_bytes(reference_file(make_links(DIMS))[:cut])
    with pytest.raises(FormatError, match="truncated"):
        read(path)


def test_bytes_after_the_links(path, make_links):
    path.write_bytes(reference_file(make_links(DIMS), 3) + b"12345")
    with pytest.raises(CheckError, match="5 bytes follow"):
        read(path)
    assert any("5 bytes follow" in text for text in read(path, check_checksum=False).warnings)
    assert examine(path).status == 1
    path.write_bytes(path.read_bytes()[:-5] + b"\n")
    assert any("1 bytes follow" in warning for warning in read(path).warnings)


def test_writing_is_refused_with_the_formats_to_use(path, make_links):
    assert formats()["bmw"].writable is False
    assert formats()["nersc"].writable is True
    links = make_links(DIMS)
    with pytest.raises(FormatError, match="read but not written: write nersc"):
        write(path, Configuration(links), "bmw")
    source = path.with_name("source")
    write(source, Configuration(links), "nersc")
    with pytest.raises(FormatError, match="read but not written: write nersc"):
        convert(source, path, "bmw")
    assert not path.exists()
    path.write_bytes(reference_file(links))
    assert detect(path).name == "bmw"
