"""Bridge++ text, one number per line, written number by number."""

import numpy as np
import pytest
from flowmc_adapters import (
    Configuration,
    FormatError,
    bridge,
    convert,
    detect,
    formats,
    inspect,
    read,
    read_header,
    write,
)

DIMS = (4, 2, 6, 8)
NC2 = "ildg/gaugefields-conf_00000100_4444nc2.ildg"
NC4 = "ildg/latticeqcdjl-Heatbath_L04040404_beta5.7_quenched_su4.ildg"


def reference_lines(links):
    lt, lz, ly, lx = links.shape[:4]
    nc = links.shape[-1]
    lines = []
    for t in range(lt):
        for z in range(lz):
            for y in range(ly):
                for x in range(lx):
                    for mu in range(4):
                        for row in range(nc):
                            for column in range(nc):
                                number = complex(links[t, z, y, x, mu, row, column])
                                lines += [repr(number.real), repr(number.imag)]
    return lines


def reference_file(links, ending="\n"):
    return "".join(line + ending for line in reference_lines(links)).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "conf.txt"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(bridge, "_BLOCK", 1000)


@pytest.mark.parametrize(("dims", "nc"), [(DIMS, 3), (DIMS, 2), ((2, 3, 5, 1), 4), ((1,) * 4, 2)])
@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n"])
def test_reading(path, make_links, dims, nc, ending):
    links = make_links(dims, nc=nc)
    path.write_bytes(reference_file(links, ending))
    assert detect(path).name == "bridge"
    found = read(path, dims=dims)
    assert (found.format, found.dims, found.nc, found.precision) == ("bridge", dims, nc, 64)
    assert found.links.tobytes() == links.tobytes()
    assert found.warnings == ["no checksum in this file: damage would go unnoticed"]
    header = read_header(path, dims=dims)
    assert (header.dims, header.nc) == (dims, nc)


@pytest.mark.parametrize("block", [1, 17, 1000, 4096])
def test_blocks(path, make_links, monkeypatch, block):
    monkeypatch.setattr(bridge, "_BLOCK", block)
    links = make_links((2, 1, 2, 3))
    path.write_bytes(reference_file(links))
    assert read(path, dims=(2, 1, 2, 3)).links.tobytes() == links.tobytes()
    path.write_bytes(reference_file(links)[:-1])  # no newline at the end
    assert read(path, dims=(2, 1, 2, 3)).links.tobytes() == links.tobytes()


def test_extents_must_be_given(path, make_links):
    path.write_bytes(reference_file(make_links((4, 4, 4, 8))))
    for reader in (read, read_header):
        with pytest.raises(FormatError, match=r"not in the file.*4x4x4x8 with N = 3"):
            reader(path)
    assert "--dims" in inspect(path)["error"]
    for dims in [(4, 4, 4, 9), (4, 4, 4, 4), (8, 8, 8, 8), (1, 1, 1, 1)]:
        with pytest.raises(FormatError, match=r"4x4x4x8 with N = 3"):
            read(path, dims=dims)
    for dims in [(4, 4, 4), (0, 4, 4, 4), (-4, -4, 4, 8)]:
        with pytest.raises(FormatError, match="four positive"):
            read(path, dims=dims)


def test_counts_that_are_no_lattice(path):
    path.write_bytes(b"0.5\n" * 1001)
    with pytest.raises(FormatError, match="no lattice"):
        read(path)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"0.5 0.5",
        b"0.5.5",
        b"abc",
        b"nan",
        b"inf",
        b"1e999",
        b"1_0",
        b"--1",
        b"0,5",
        b"0x1p3",
        b"1e",
        b"\xff\xfe",
        b"\x00",
        b".",
        b"1" * 400,
        b"1" * 2000,
    ],
)
@pytest.mark.parametrize("where", [700, 3000, -1])
def test_damaged_lines(path, make_links, small_blocks, damage, where):
    lines = reference_file(make_links(DIMS)).split(b"\n")[:-1]
    index = where % len(lines)
    lines[index] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(FormatError) as caught:
        read(path, dims=DIMS)
    assert caught.value.offset == sum(len(line) + 1 for line in lines[:index])


def test_truncation(path, make_links):
    content = reference_file(make_links(DIMS))
    for cut in (0, 1, 30, 1000, len(content) // 2, len(content) - 60):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError):
            read(path, dims=DIMS)


def test_lost_and_added_lines(path, make_links):
    lines = reference_file(make_links(DIMS)).split(b"\n")[:-1]
    for changed in (lines[:500] + lines[501:], lines + lines[:1]):
        path.write_bytes(b"\n".join(changed) + b"\n")
        with pytest.raises(FormatError, match=f"{len(changed)} numbers are no lattice"):
            read(path, dims=DIMS)


@pytest.mark.parametrize(
    "content",
    [
        b"1.5\n" * 100,
        b"0.5 0.5\n" * 100,
        b"0.5\n" * 7,
        b"plaq\n" + b"0.5\n" * 100,
        b"0.5\n" * 50 + b"# end\n" + b"0.5\n" * 50,
        b"0.5\n" * 50 + b"\n" + b"0.5\n" * 50,
        b"0.5\n" * 50 + b"\xe9\n",
        b"nan\n" * 100,
        b"1_0\n" * 100,
        b"0" * 5000,
        b"\n" * 100,
        b" \n" * 100,
    ],
)
def test_other_texts(path, content):
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a known configuration file"):
        detect(path)


def test_writing_is_refused(path, make_links):
    assert formats()["bridge"].writable is False
    with pytest.raises(FormatError, match="read but not written: write nersc"):
        write(path, Configuration(make_links(DIMS)), "bridge")
    write(path, Configuration(make_links(DIMS)), "nersc")
    before = path.read_bytes()
    with pytest.raises(FormatError, match="read but not written: write nersc"):
        convert(path, path.with_name("copy"), "bridge")
    assert path.read_bytes() == before
    assert not path.with_name("copy").exists()


def test_conversion(path, make_links):
    links = make_links(DIMS)
    path.write_bytes(reference_file(links))
    convert(path, path.with_name("copy"), "nersc", dims=DIMS)
    assert read(path.with_name("copy")).links.tobytes() == links.tobytes()


@pytest.mark.parametrize("name", [NC2, NC4])
def test_links_of_real_files(real_file, path, name):
    links = read(real_file(name), dims=(4, 4, 4, 4)).links
    path.write_bytes(reference_file(links))
    assert read(path, dims=(4, 4, 4, 4)).links.tobytes() == links.tobytes()


def test_range_of_numbers(path):
    path.write_bytes(b"1.0\n0\n-1.\n.5\n1E-3\n+0.25\n-1e-300\n5e-324\n" * 4)
    found = read(path, dims=(1, 1, 1, 1))
    values = found.links.view(np.float64).reshape(4, 8)
    assert values.tolist() == [[1, 0, -1, 0.5, 1e-3, 0.25, -1e-300, 5e-324]] * 4
