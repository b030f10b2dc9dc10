"""numpy archives: streamed, compressed, damaged."""

import io
import json
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    convert,
    inspect,
    read,
    slab_sums,
    write,
)
from flowmc_adapters import transfer as transfer_module
from flowmc_adapters.numpy_files import zip_archive
from flowmc_adapters.numpy_files.crc32 import Crc32Sum

DIMS = (2, 4, 6, 8)


@pytest.fixture
def many_slabs(monkeypatch):
    monkeypatch.setattr(slab_sums, "_SITES", 16)
    monkeypatch.setattr(transfer_module, "_SERIAL_VOLUME", 1)


def test_numpy_reads_what_is_written(tmp_path, make_configuration, many_slabs):
    metadata = {"SEQUENCE_NUMBER": "12", "note": "ä\n\ud800"}
    configuration = make_configuration(DIMS, metadata=metadata)
    assert write(tmp_path / "u.npz", configuration, "npz") == []
    with np.load(tmp_path / "u.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["links", "metadata"]
        assert archive["links"].tobytes() == configuration.links.tobytes()
        assert archive["links"].shape == (8, 6, 4, 2, 4, 3, 3)
        assert json.loads(archive["metadata"].item()) == metadata
    with zipfile.ZipFile(tmp_path / "u.npz") as archive:
        assert archive.testzip() is None
        assert {info.date_time[0] for info in archive.infolist()} == {1980}
    again = read(tmp_path / "u.npz")
    assert again.metadata == metadata
    assert again.checksum.ok
    assert again.warnings == []
    assert again.links.tobytes() == configuration.links.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<c16", ">c16", "<c8"])
@pytest.mark.parametrize("order", "CF")
def test_reads_what_numpy_writes(tmp_path, make_links, many_slabs, save, dtype, order):
    links = make_links(DIMS, precision=32 if dtype == "<c8" else 64)
    save(tmp_path / "u.npz", links=np.asarray(links.astype(dtype), order=order))
    again = read(tmp_path / "u.npz")
    assert again.links.tobytes() == links.tobytes()
    assert again.checksum.ok
    assert inspect(tmp_path / "u.npz")["checksum"]["kind"] == "crc32"


def test_equal_input_gives_equal_bytes_and_conversion_keeps_all(
    tmp_path, make_configuration, many_slabs
):
    configuration = make_configuration(DIMS, metadata={"SEQUENCE_NUMBER": "3"})
    write(tmp_path / "a.npz", configuration, "npz")
    time.sleep(2.1)  # zip archives count in steps of two seconds
    convert(tmp_path / "a.npz", tmp_path / "b.nersc", "nersc")
    write(tmp_path / "c.npz", read(tmp_path / "a.npz"), "npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    assert read(tmp_path / "b.nersc").number == 3


@pytest.mark.parametrize("dims", [(3, 5), (2, 3, 4)])
def test_other_dimensions(tmp_path, make_configuration, dims):
    configuration = make_configuration(dims, nc=2)
    write(tmp_path / "u.npz", configuration, "npz", precision=32)
    assert read(tmp_path / "u.npz").dims == dims


@pytest.mark.parametrize("limit", [100, 2000])
def test_sizes_of_64_bits(tmp_path, make_configuration, monkeypatch, limit):
    configuration = make_configuration(DIMS, metadata={"A": "b" * 600})
    monkeypatch.setattr(zip_archive, "_LIMIT", limit)
    write(tmp_path / "u.npz", configuration, "npz")
    with np.load(tmp_path / "u.npz", allow_pickle=False) as archive:
        assert archive["links"].tobytes() == configuration.links.tobytes()
    assert read(tmp_path / "u.npz").links.tobytes() == configuration.links.tobytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_is_seen(tmp_path, make_links, compressed):
    links = make_links(DIMS)
    content = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(content, links=links)
    data = bytearray(content.getvalue())
    if compressed:  # the stored CRC, in the archive's directory
        data[data.index(b"PK\x01\x02") + 16] ^= 1
    else:
        data[len(data) // 2 // 8 * 8 + 3] ^= 1
    (tmp_path / "u.npz").write_bytes(data)
    with pytest.raises(CheckError, match="checksum does not match"):
        read(tmp_path / "u.npz")
    assert list(read(tmp_path / "u.npz", check_checksum=False).failed_checks) == ["checksum"]


def archive_of(name, header, data, claimed=None):
    """An archive with one compressed member, whose size may be made up."""
    body = io.BytesIO()
    np.lib.format.write_array_header_1_0(body, header)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body.getvalue() + data)
    raw = bytearray(content.getvalue())
    if claimed is not None:
        struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 24, claimed)
    return bytes(raw)


@pytest.mark.parametrize("claimed", [2**30, 2**32 - 2])
def test_bombs_are_refused(tmp_path, claimed):
    shape = (claimed // 576 // 16, 4, 2, 2, 4, 3, 3)
    header = {"descr": "<c16", "fortran_order": False, "shape": shape}
    (tmp_path / "u.npz").write_bytes(archive_of("links.npy", header, bytes(10000), claimed))
    with pytest.raises(FormatError, match="cannot give"):
        read(tmp_path / "u.npz")
    # A size that the compressed data could have, but the shape has not
    (tmp_path / "u.npz").write_bytes(archive_of("links.npy", header, bytes(10000)))
    with pytest.raises(FormatError, match="the archive holds"):
        read(tmp_path / "u.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_compressed_links_in_any_order_of_threads(tmp_path, make_links, monkeypatch, order):
    """Few slices kept, many threads: whoever comes late unpacks from the beginning again."""
    monkeypatch.setattr("flowmc_adapters.slab_sums._SITES", 8)
    monkeypatch.setattr("flowmc_adapters.transfer._SERIAL_VOLUME", 1)
    monkeypatch.setattr("flowmc_adapters.numpy_files.npz._SMALL_SLICES", 1)
    monkeypatch.setattr("flowmc_adapters.numpy_files.npz._KEPT_BYTES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    links = make_links((4, 2, 6, 8))
    np.savez_compressed(tmp_path / "u.npz", links=np.asarray(links, order=order))
    found = read(tmp_path / "u.npz")
    assert np.array_equal(found.links, links)
    assert found.checksum.ok
    convert(tmp_path / "u.npz", tmp_path / "copy", "openqcd")
    assert np.array_equal(read(tmp_path / "copy").links, links)


def test_pickles_and_strangers_are_refused(tmp_path, make_links):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    np.savez(tmp_path / "a.npz", links=np.array([Bomb()], dtype=object))
    with pytest.raises(FormatError, match="no gauge field"):
        read(tmp_path / "a.npz")
    links = make_links(DIMS)
    np.savez(tmp_path / "b.npz", links=links, metadata=np.array(Bomb(), dtype=object))
    configuration = read(tmp_path / "b.npz")
    assert configuration.metadata == {}
    assert "ignored" in configuration.warnings[0]
    np.savez(tmp_path / "c.npz", other=links)
    with pytest.raises(FormatError, match=r"without links.npy.*other.npy"):
        read(tmp_path / "c.npz")


def test_numbers_that_are_not_finite(tmp_path, make_links):
    links = make_links(DIMS)
    links[1, 2, 3, 0, 2, 1, 1] = np.nan
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "u.npz", links=links)
        with pytest.raises(CheckError, match=r"site \[0,3,2,1\], mu = z"):
            read(tmp_path / "u.npz", check_checksum=False)


@pytest.mark.parametrize("compressed", [False, True])
def test_random_damage(tmp_path, make_configuration, compressed):
    configuration = make_configuration((2, 1, 2, 3), metadata={"A": "b"})
    write(tmp_path / "u.npz", configuration, "npz")
    if compressed:
        with np.load(tmp_path / "u.npz") as archive:
            np.savez_compressed(tmp_path / "u.npz", **dict(archive.items()))
    content = (tmp_path / "u.npz").read_bytes()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        place = int(rng.integers(len(content))) if rng.random() < 0.5 else int(
            rng.choice([rng.integers(700), len(content) - 1 - rng.integers(250)])
        )  # fmt: skip
        kind = rng.integers(4)
        if kind == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            damaged[place : place + 8] = rng.bytes(8)
        elif kind == 2:
            del damaged[place : place + int(rng.integers(1, 200))]
        else:
            damaged[place:place] = rng.bytes(int(rng.integers(1, 200)))
        (tmp_path / "u.npz").write_bytes(damaged)
        try:
            found = read(tmp_path / "u.npz")
        except FormatError:
            refused += 1
            continue
        assert np.array_equal(found.links, configuration.links)
    assert refused > 66


def test_crc_of_pieces_in_any_order_and_of_several_ranks():
    data = np.frombuffer(np.random.default_rng(1).bytes(48 * 100), dtype=np.uint8)
    one, other = Crc32Sum(48, data.size, b"before"), Crc32Sum(48, data.size, b"before")
    for sum_, begin, end in ((one, 50, 100), (other, 0, 7), (one, 7, 50)):
        sum_.update(begin, data[begin * 48 : end * 48])
    one.absorb(other)
    assert one.text == f"{zlib.crc32(b'before' + data.tobytes()):x}"
