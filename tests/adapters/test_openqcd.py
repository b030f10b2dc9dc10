"""openQCD's exported files, against a file made link by link."""

import contextlib
import math
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
    inspect,
    plaquettes,
    read,
    slab_sums,
    transfer,
    write,
)

REAL = "openqcd/openQCD_qcd1_pb_L8T8_b6.0_c1.234_k0.13_r0_id4n1"
TWIN = "hirep/HiRep_qcd1_pb_L8T8_b6.0_c1.234_k0.13_r0_id4n1"
DIMS = (4, 2, 6, 8)
OTHERS = [DIMS, (2, 4, 8, 6), (6, 2, 4, 2), (2, 2, 2, 2)]


def reference_links(links):
    """The bytes of the links, by loops over sites in the words of the format's definition."""
    lt, lz, ly, lx = links.shape[:4]
    content = bytearray()
    for t in range(lt):
        for x in range(lx):
            for y in range(ly):
                for z in range(lz):
                    if (t + x + y + z) % 2 == 0:
                        continue
                    for mu, (dt, dx, dy, dz) in zip(
                        (3, 0, 1, 2), np.eye(4, dtype=int), strict=True
                    ):
                        forward = links[t, z, y, x, mu]
                        back = links[(t - dt) % lt, (z - dz) % lz, (y - dy) % ly, (x - dx) % lx, mu]
                        for link in (forward, back):
                            for number in link.ravel().tolist():  # row by row
                                content += struct.pack("<2d", number.real, number.imag)
    return bytes(content)


def reference_plaquette(links):
    """Mean of Re tr P over 6V plaquettes, by matrix products."""
    axis = {0: 3, 1: 2, 2: 1, 3: 0}
    total = []
    for mu in range(4):
        for nu in range(mu):
            u, v = links[..., mu, :, :], links[..., nu, :, :]
            product = u @ np.roll(v, -1, axis[mu])
            product = product @ np.roll(u, -1, axis[nu]).conj().swapaxes(-1, -2)
            product = product @ v.conj().swapaxes(-1, -2)
            total.append(math.fsum(np.trace(product, axis1=-2, axis2=-1).real.ravel()))
    return math.fsum(total) / (6 * math.prod(links.shape[:4]))


def reference_file(links):
    lt, lz, ly, lx = links.shape[:4]
    header = struct.pack("<4id", lt, lx, ly, lz, reference_plaquette(links))
    return header + reference_links(links)


@pytest.fixture
def few_sites(monkeypatch):
    """Several slabs per time slice, on several threads, and few slices kept."""
    monkeypatch.setattr(slab_sums, "_SITES", 16)
    monkeypatch.setattr(transfer, "_SERIAL_VOLUME", 1)
    monkeypatch.setattr("flowmc_adapters.openqcd.time_slices._KEPT_BYTES", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runn1"


@pytest.mark.parametrize("dims", OTHERS)
def test_reading(path, dims, make_links):
    links = make_links(dims)
    path.write_bytes(reference_file(links))
    found = read(path)
    assert found.format == "openqcd"
    assert found.dims == dims
    assert found.links.tobytes() == links.tobytes()
    assert found.stored_plaquette == pytest.approx(plaquettes(links).mean, abs=1e-15)
    assert found.warnings == ["no checksum in this file: damage would go unnoticed"]
    assert (found.checksum, found.number, found.metadata) == (None, None, {})


@pytest.mark.parametrize("dims", OTHERS)
def test_writing(path, dims, make_links):
    links = make_links(dims)
    assert write(path, Configuration(links), "openqcd") == []
    content, expected = path.read_bytes(), reference_file(links)
    assert content[:16] == expected[:16]
    assert content[24:] == expected[24:]
    stored, wanted = (struct.unpack_from("<d", file, 16)[0] for file in (content, expected))
    assert stored == pytest.approx(wanted, abs=5e-17)


@pytest.mark.parametrize("repetition", range(3))
def test_slabs_and_threads(few_sites, path, repetition, make_links):
    dims = (4, 2, 8, 10)
    links = make_links(dims, seed=repetition)
    content = reference_file(links)
    path.write_bytes(content)
    assert read(path).links.tobytes() == links.tobytes()
    copy = path.with_name("copy")
    convert(path, copy, "openqcd")
    assert copy.read_bytes()[24:] == content[24:]
    convert(path, copy, "nersc")
    convert(copy, path, "openqcd")
    assert path.read_bytes()[24:] == content[24:]


def test_open_boundaries(path, make_links):
    links = make_links(DIMS)
    links[-1, ..., 3, :, :] = 0
    path.write_bytes(reference_file(links))
    found = read(path)
    assert found.links.tobytes() == links.tobytes()
    assert any("open boundary" in warning for warning in found.warnings)
    copy = path.with_name("copy")
    write(copy, found, "openqcd")
    assert copy.read_bytes()[24:] == reference_links(links)
    assert struct.unpack_from("<d", copy.read_bytes(), 16)[0] == pytest.approx(
        reference_plaquette(links), abs=5e-17
    )
    assert inspect(copy)["error"] is None


def test_schroedinger_functional(path, make_links):
    links = make_links(DIMS)
    for mu in range(3):
        angles = np.array([0.1, 0.2, -0.3]) * (mu + 1)
        links[0, ..., mu, :, :] = np.diag(np.exp(1j * angles))
    content = bytearray(reference_file(links))
    # The plaquettes at the upper boundary, which is not in the file
    struct.pack_into("<d", content, 16, reference_plaquette(links) + 1.5 / 8)
    path.write_bytes(content)
    found = read(path)
    assert found.links.tobytes() == links.tobytes()
    assert found.stored_plaquette is None
    assert any("Schroedinger" in warning for warning in found.warnings)
    copy = path.with_name("copy")
    assert any("Schroedinger" in warning for warning in write(copy, found, "openqcd"))
    assert copy.read_bytes()[24:] == content[24:]


def test_cold_fields_are_no_schroedinger_functional(path):
    links = np.tile(np.eye(3, dtype=complex), (8, 6, 2, 4, 4, 1, 1))
    assert write(path, Configuration(links), "openqcd") == []
    assert path.read_bytes() == reference_file(links)
    assert read(path).stored_plaquette == 1


def test_block_export(path, make_links):
    links = make_links(DIMS)
    export = reference_file(links)
    lattice, plaquette = export[:16], export[16:24]
    whole = lattice + lattice + struct.pack("<4i", 0, 0, 0, 0) + plaquette + export[24:]
    path.write_bytes(whole)
    found = read(path)
    assert found.format == "openqcd"
    assert found.links.tobytes() == links.tobytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="truncated"):
        read(path)
    path.write_bytes(
        lattice
        + struct.pack("<8i", 4, 4, 2, 6, 4, 0, 0, 0)
        + plaquette
        + export[24 : 24 + 576 * 4 * 4 * 2 * 6]
    )
    with pytest.raises(FormatError, match=r"block file with 4x4x2x6 of 8x4x2x6.*type e"):
        read(path)
    assert "type e" in inspect(path)["error"]


def test_wrong_plaquette(path, make_links):
    content = bytearray(reference_file(make_links(DIMS)))
    (plaquette,) = struct.unpack_from("<d", content, 16)
    for wrong in (plaquette + 4e-5, plaquette / 3 + 0.1, math.nan, math.inf):
        struct.pack_into("<d", content, 16, wrong)
        path.write_bytes(content)
        with pytest.raises(CheckError, match="plaquette"):
            read(path)
        assert list(read(path, check_checksum=False).failed_checks) == ["plaquette"]
    struct.pack_into("<d", content, 16, plaquette + 1e-6)
    path.write_bytes(content)
    read(path)


def test_swapped_links_show_in_the_plaquette(path, make_links):
    content = bytearray(reference_file(make_links(DIMS)))
    content[24 : 24 + 288] = content[24 + 144 : 24 + 288] + content[24 : 24 + 144]
    path.write_bytes(content)
    with pytest.raises(CheckError, match="plaquette"):
        read(path)


@pytest.mark.parametrize("cut", [1, 5, 12, 23, 24, 25, 24 + 576, -1, -144, -20000])
def test_truncation(path, cut, make_links):
    path.write_bytes(reference_file(make_links(DIMS))[:cut])
    with pytest.raises(FormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert cut in (1, 5, 12, 23) or "truncated" in str(caught.value)
    assert inspect(path)["error"]


def test_bytes_after_the_links(path, make_links):
    path.write_bytes(reference_file(make_links(DIMS)) + b"12345")
    with pytest.raises(CheckError, match="5 bytes follow"):
        read(path)
    assert any("5 bytes follow" in text for text in read(path, check_checksum=False).warnings)
    assert examine(path).status == 1
    path.write_bytes(path.read_bytes()[:-5] + b"\n")
    assert any("1 bytes follow" in warning for warning in read(path).warnings)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("extent", [0, -2, 3, 2**31 - 1, 2**20, 10])
def test_wrong_extents(path, position, extent, make_links):
    content = bytearray(reference_file(make_links(DIMS)))
    struct.pack_into("<i", content, 4 * position, extent)
    path.write_bytes(content)
    with pytest.raises(FormatError):
        read(path)


def test_odd_extents(path, make_links):
    content = struct.pack("<4id", 4, 2, 3, 2, 1.0) + bytes(576 * 48)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="must be even"):
        read(path)
    with pytest.raises(FormatError, match="must be even"):
        write(path, Configuration(make_links((2, 2, 3, 4))), "openqcd")
    assert path.read_bytes() == content


def test_what_cannot_be_written(path, make_links):
    with pytest.raises(FormatError, match=r"SU\(3\)"):
        write(path, Configuration(make_links(DIMS, nc=2)), "openqcd")
    with pytest.raises(FormatError, match="four-dimensional"):
        write(path, Configuration(make_links((2, 4, 6))), "openqcd")
    with pytest.raises(FormatError, match="64-bit"):
        write(path, Configuration(make_links(DIMS)), "openqcd", precision=32)
    single = Configuration(make_links(DIMS, precision=32), metadata={"SEQUENCE_NUMBER": "3"})
    warnings = write(path, single, "openqcd")
    assert any("widened" in warning for warning in warnings)
    assert any("SEQUENCE_NUMBER" in warning for warning in warnings)
    assert np.array_equal(read(path).links, single.links)


def test_numbers_that_are_not_finite(path, make_links):
    content = bytearray(reference_file(make_links(DIMS)))
    sound = bytes(content)
    for position in (24, 24 + 144, 24 + 576 * 12 + 152, len(content) - 8):
        struct.pack_into("<d", content, position, math.nan)
        path.write_bytes(content)
        with pytest.raises(CheckError, match=r"not a finite number in the links at site \["):
            read(path, check_checksum=False)
        content[:] = sound


def test_random_damage(path, make_links):
    sound = reference_file(make_links((2, 2, 4, 2)))
    rng = np.random.default_rng(5)
    for _ in range(300):
        content = bytearray(sound)
        position = int(rng.integers(64 if rng.random() < 0.6 else len(content)))
        kind = rng.integers(3)
        if kind == 0:
            content[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[position : position + 8] = rng.bytes(8)
        else:
            del content[position : position + int(rng.integers(1, 100))]
        path.write_bytes(content)
        with contextlib.suppress(FormatError):
            read(path)


def test_real_file(real_file, tmp_path):
    path = real_file(REAL)
    assert detect(path).name == "openqcd"
    found = read(path)
    assert found.dims == (8, 8, 8, 8)
    assert found.stored_plaquette == pytest.approx(0.005009043432310447 / 3, abs=1e-18)
    assert found.links.tobytes() == read(real_file(TWIN)).links.tobytes()
    report = inspect(path)
    assert report["unitarity_error"] < 1e-14
    assert report["plaquette"] == pytest.approx(0.005009043432310447 / 3, abs=1e-17)
    write(tmp_path / "copy", found, "openqcd")
    copy, original = (tmp_path / "copy").read_bytes(), path.read_bytes()
    assert copy[:16] == original[:16]
    assert copy[24:] == original[24:]
    stored, wanted = (struct.unpack_from("<d", file, 16)[0] for file in (copy, original))
    assert abs(stored - wanted) <= math.ulp(wanted)


def test_real_file_by_its_definition(real_file):
    path = real_file(REAL)
    assert reference_links(read(path).links) == path.read_bytes()[24:]
