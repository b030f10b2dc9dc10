"""HDF5 files of gauge fields, built here with h5py as other codes do, and the ones we write."""

import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    convert,
    inspect,
    plaquettes,
    read,
    read_header,
    slab_sums,
    write,
)
from flowmc_adapters import transfer as transfer_module
from flowmc_adapters.hdf5 import source as hdf5_source
from flowmc_adapters.hdf5.checksum import PyQudaChecksum

DIMS = (2, 4, 6, 8)
PACKAGE = str(Path(hdf5_source.__file__).parents[1])
STYLES = ("flowmc", "pyquda", "qdp++")


@pytest.fixture(params=[True, False], ids=["many slabs", "one thread"])
def slabs(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(slab_sums, "_SITES", 16)
        monkeypatch.setattr(transfer_module, "_SERIAL_VOLUME", 1)
        monkeypatch.setattr(hdf5_source, "_BLOCK_BYTES", 3 * 2 * 4 * 6 * 576)


def rotated(word, by):
    return ((word << by) | (word >> (32 - by))) & 0xFFFFFFFF if by else word


def scidac_sums(links, order="<"):
    """SciDAC checksum, site by site."""
    suma = sumb = 0
    sites = links.reshape(-1, *links.shape[-3:]).astype(f"{order}c{links.dtype.itemsize}")
    for rank, site in enumerate(sites):
        code = zlib.crc32(site.tobytes())
        suma, sumb = suma ^ rotated(code, rank % 29), sumb ^ rotated(code, rank % 31)
    return f"{suma:x}", f"{sumb:x}"


def pyquda_sums(links):
    """PyQUDA's sums of one direction `[t, z, y, x, row, col]`, site by site."""
    sum29 = sum31 = 0
    for rank, matrix in enumerate(links.reshape(-1, *links.shape[-2:])):
        word = 0
        for one in np.frombuffer(matrix.tobytes(), dtype="<u4"):
            word ^= int(one)
        sum29, sum31 = sum29 ^ rotated(word, rank % 29), sum31 ^ rotated(word, rank % 31)
    return f"{sum29:08x}", f"{sum31:08x}"


def write_pyquda(path, links, **options):
    with h5py.File(path, "w") as file:
        group = file.create_group("LatticeColorMatrix")
        group.attrs["Annotation"] = "test"
        group.attrs["Lattice"] = " ".join(map(str, links.shape[3::-1]))
        group.attrs["Color"] = "3"
        for mu, name in enumerate("XYZT"):
            part = np.ascontiguousarray(links[..., mu, :, :])
            dataset = group.create_dataset(name, data=part, **options)
            dataset.attrs["sum29"], dataset.attrs["sum31"] = pyquda_sums(part)


def matrix_dataset(group, name, array, order="<"):
    """A dataset of [3][3] matrices of compounds (r, i), as QDP++ and QLUA make them."""
    number = np.dtype([("r", f"{order}f8"), ("i", f"{order}f8")])
    element = h5py.h5t.array_create(h5py.h5t.py_create(number), array.shape[-2:])
    space = h5py.h5s.create_simple(array.shape[:-2])
    made = h5py.h5d.create(group.id, name.encode(), element, space)
    data = np.ascontiguousarray(array).astype(f"{order}c16").view(number)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, data, mtype=element)
    return h5py.Dataset(made)


def write_qlua(path, links, *, transposed=True, sha=True):
    with h5py.File(path, "w") as file:
        group = file.create_group("deep/gauge")
        for mu in range(4):
            part = links[..., mu, :, :]
            if transposed:
                part = part.transpose(3, 2, 1, 0, 4, 5)
            dataset = matrix_dataset(group, str(mu), part, ">")
            dataset.attrs[".kind"] = "LatticeColorMatrix"
            if sha:
                dataset.attrs[".sha256"] = np.arange(32, dtype=np.uint8)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("precision", [32, 64])
def test_every_style_comes_back(tmp_path, make_configuration, slabs, style, precision):
    configuration = make_configuration(
        DIMS, precision=precision, metadata={"SEQUENCE_NUMBER": "17", "ENSEMBLE_ID": "a < b & c"}
    )
    path = tmp_path / "u.h5"
    assert write(path, configuration, "hdf5", style=style) == []
    again = read(path)
    assert again.links.tobytes() == configuration.links.tobytes()
    assert again.number == 17
    assert again.metadata["ENSEMBLE_ID"] == "a < b & c"
    assert again.warnings == []
    if style != "qdp++":
        assert again.checksum.ok
    if style != "pyquda":
        assert again.stored_plaquette == pytest.approx(plaquettes(again.links).mean, abs=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_equal_input_gives_equal_bytes(tmp_path, make_configuration, style):
    configuration = make_configuration(DIMS, metadata={"SEQUENCE_NUMBER": "17"})
    write(tmp_path / "a.h5", configuration, "hdf5", style=style)
    time.sleep(1.1)
    convert(tmp_path / "a.h5", tmp_path / "b.h5", "hdf5", options={"style": style})
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_our_layout_says_what_it_is(tmp_path, make_configuration, slabs):
    metadata = {"SEQUENCE_NUMBER": "3", "xlf-info": "ä\0\n" * 50000}
    configuration = make_configuration(DIMS, metadata=metadata)
    write(tmp_path / "u.h5", configuration, "hdf5")
    with h5py.File(tmp_path / "u.h5") as file:
        group = file["gauge"]
        assert group["links"].shape == (8, 6, 4, 2, 4, 3, 3)
        assert group["links"].dtype == np.complex128
        assert group["links"][...].tobytes() == configuration.links.tobytes()
        assert group.attrs["format"] == b"flowmc gauge field"
        assert group.attrs["axes"] == b"t z y x mu row column"
        assert group.attrs["dims"].tolist() == [2, 4, 6, 8]
        assert group.attrs["nc"] == 3
        assert json.loads(group.attrs["metadata"]) == metadata
        assert group.attrs["plaquette"] == plaquettes(configuration.links).mean
        assert group.attrs["plaquette_space"] == plaquettes(configuration.links).space
        sums = scidac_sums(configuration.links)
        assert (group.attrs["suma"].decode(), group.attrs["sumb"].decode()) == sums
    assert read(tmp_path / "u.h5").metadata == metadata


@pytest.mark.parametrize(("dims", "nc"), [((3, 5), 2), ((2, 3, 4), 3), ((2, 3, 2, 1, 4), 2)])
def test_any_dimension_and_group(tmp_path, make_configuration, dims, nc):
    configuration = make_configuration(dims, nc=nc)
    write(tmp_path / "u.h5", configuration, "hdf5")
    again = read(tmp_path / "u.h5")
    assert (again.dims, again.nc) == (dims, nc)
    assert again.links.tobytes() == configuration.links.tobytes()
    for style in ("pyquda", "qdp++"):
        with pytest.raises(FormatError, match="four-dimensional"):
            write(tmp_path / "v.h5", configuration, "hdf5", style=style)


@pytest.mark.parametrize("options", [{}, {"chunks": (3, 2, 3, 1, 3, 3), "compression": "gzip"}])
@pytest.mark.parametrize("precision", [32, 64])
def test_pyquda_files(tmp_path, make_links, slabs, options, precision):
    links = make_links(DIMS, precision=precision)
    write_pyquda(tmp_path / "u.h5", links, **options)
    again = read(tmp_path / "u.h5")
    assert again.links.tobytes() == links.tobytes()
    assert again.checksum.kind == "pyquda" and again.checksum.ok
    assert again.metadata == {"Annotation": "test"}
    assert inspect(tmp_path / "u.h5")["writer"] == "PyQUDA"
    with h5py.File(tmp_path / "u.h5", "r+") as file:
        file["LatticeColorMatrix/Z"].attrs["sum31"] = "00000000"
    with pytest.raises(CheckError, match="checksum does not match"):
        read(tmp_path / "u.h5")


def test_pyquda_style_has_their_attributes(tmp_path, make_configuration):
    configuration = make_configuration(DIMS, metadata={"Annotation": "run 7"})
    write(tmp_path / "u.h5", configuration, "hdf5", style="pyquda")
    with h5py.File(tmp_path / "u.h5") as file:
        group = file["LatticeColorMatrix"]
        assert dict(group.attrs) == {"Annotation": "run 7", "Lattice": "2 4 6 8", "Color": "3"}
        for mu, name in enumerate("XYZT"):
            part = configuration.links[..., mu, :, :]
            np.testing.assert_array_equal(group[name][...], part)
            found = (group[name].attrs["sum29"], group[name].attrs["sum31"])
            assert found == pyquda_sums(part)


@pytest.mark.parametrize("order", "<>")
def test_qdp_files(tmp_path, make_links, slabs, order):
    links = make_links(DIMS)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        number = h5py.h5t.py_create(np.dtype("<c16"))
        number.commit(file.id, b".ComplexDouble")
        dataset = matrix_dataset(file.create_group("some/where"), "u", links, order)
        dataset.attrs["record_xml"] = (
            f"<usqcdInfo><plaq>{plaquettes(links).mean}</plaq><linktr>7</linktr></usqcdInfo>"
        )
    with pytest.raises(CheckError, match="link trace is 7"):
        read(tmp_path / "u.h5")
    again = read(tmp_path / "u.h5", check_checksum=False)
    assert again.links.tobytes() == links.tobytes()
    assert list(again.failed_checks) == ["link_trace"]
    assert "<plaq>" in again.metadata["scidac-record-xml"]


def test_qdp_style_is_their_dataset(tmp_path, make_configuration):
    configuration = make_configuration(DIMS)
    write(tmp_path / "u.h5", configuration, "hdf5", style="qdp++")
    with h5py.File(tmp_path / "u.h5") as file:
        assert file["gauge"].shape == (8, 6, 4, 2, 4)
        assert file["gauge"].dtype == np.dtype((np.dtype("<c16"), (3, 3)))
        np.testing.assert_array_equal(file["gauge"][...], configuration.links)
        number = file["gauge"].id.get_type().get_super()
        assert [number.get_member_name(i) for i in (0, 1)] == [b"r", b"i"]


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (2, 2, 2, 2, 4, 3, 3)}, {"compression": "gzip", "shuffle": True},
     {"fletcher32": True}, {"maxshape": (None,) * 7}],
)  # fmt: skip
def test_plain_arrays_anywhere(tmp_path, make_links, slabs, options):
    links = make_links(DIMS)
    with h5py.File(tmp_path / "u.h5", "w", userblock_size=1024) as file:
        dataset = file.create_dataset("a/b/conf", data=links, **options)
        dataset.attrs["_offset"] = 7
        dataset.attrs["comment"] = "from lyncs"
    again = read(tmp_path / "u.h5")
    assert again.links.tobytes() == links.tobytes()
    assert again.metadata == {"_offset": "7", "comment": "from lyncs"}


def test_our_file_repacked_keeps_its_checksum(tmp_path, make_configuration, slabs):
    configuration = make_configuration(DIMS)
    write(tmp_path / "u.h5", configuration, "hdf5")
    for dtype in ("<c16", ">c16"):
        with h5py.File(tmp_path / "u.h5") as old, h5py.File(tmp_path / "v.h5", "w") as new:
            group = new.create_group("x")
            for name, value in old["gauge"].attrs.items():
                group.attrs[name] = value
            options = {"compression": "gzip"} if dtype == "<c16" else {}
            group.create_dataset("links", data=old["gauge/links"][...].astype(dtype), **options)
        again = read(tmp_path / "v.h5")
        assert again.checksum.ok
        assert again.links.tobytes() == configuration.links.tobytes()
        with h5py.File(tmp_path / "v.h5", "r+") as file:
            file["x/links"][3, 2, 1, 0, 2, 1, 1] *= 1 + 1e-15
        with pytest.raises(CheckError, match="checksum does not match"):
            read(tmp_path / "v.h5")


def test_qlua_files(tmp_path, make_links, slabs):
    links = make_links(DIMS)
    path = tmp_path / "u.h5"
    write_qlua(path, links)
    again = read(path)
    assert again.links.tobytes() == links.tobytes()
    assert any("not verified" in warning for warning in again.warnings)
    assert inspect(path)["writer"] == "QLUA"
    # As QDP++ writes them: time slowest, nothing of .sha256
    write_qlua(path, links, transposed=False, sha=False)
    again = read(path)
    assert again.links.tobytes() == links.tobytes()
    assert any("layout='qlua'" in warning for warning in again.warnings)
    assert read(path, dims=DIMS).links.tobytes() == links.tobytes()
    # Without the hint it takes the extents, or the name of the layout
    write_qlua(path, links, sha=False)
    assert read(path).dims == (8, 6, 4, 2)
    assert read(path, dims=DIMS).links.tobytes() == links.tobytes()
    assert read(path, layout="qlua").links.tobytes() == links.tobytes()


def test_several_fields(tmp_path, make_configuration):
    first, second = make_configuration(DIMS, seed=1), make_configuration(DIMS, seed=2)
    write(tmp_path / "u.h5", second, "hdf5")
    with h5py.File(tmp_path / "u.h5", "r+") as file:
        file["a"] = first.links
    again = read(tmp_path / "u.h5")
    assert again.links.tobytes() == second.links.tobytes()
    assert any("not /a" in warning for warning in again.warnings)
    assert read(tmp_path / "u.h5", layout="lyncs").links.tobytes() == first.links.tobytes()
    with pytest.raises(FormatError, match="in the layout of qlua"):
        read(tmp_path / "u.h5", layout="qlua")


def test_nothing_outside_the_file_is_opened(tmp_path, make_configuration):
    configuration = make_configuration(DIMS)
    write(tmp_path / "secret.h5", configuration, "hdf5")
    path = tmp_path / "u.h5"
    with h5py.File(path, "w") as file:
        file["links"] = h5py.ExternalLink("secret.h5", "/gauge/links")
        file["soft"] = h5py.SoftLink("/links")
    with pytest.raises(FormatError, match=r"not followed: /links, /soft"):
        read(path)
    raw = tmp_path / "raw"
    raw.write_bytes(configuration.links.tobytes())
    shape = configuration.links.shape
    with h5py.File(path, "w") as file:
        file.create_dataset("u", shape, "<c16", external=[(str(raw), 0, raw.stat().st_size)])
    with pytest.raises(FormatError, match="never opened"):
        read(path)
    virtual = h5py.VirtualLayout(shape, "<c16")
    virtual[...] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "/gauge/links", shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("u", virtual)
    with pytest.raises(FormatError, match="never opened"):
        read(path)


def test_claims_are_compared_with_the_file(tmp_path):
    shape = (64, 64, 64, 64, 4, 3, 3)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file.create_dataset("u", shape, "<c16", chunks=(1, 1, 64, 64, 4, 3, 3))
    with pytest.raises(FormatError, match="never written"):
        read(tmp_path / "u.h5")
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file.create_dataset("u", shape, "<c16")
    with pytest.raises(FormatError, match="never written"):
        read(tmp_path / "u.h5")


@pytest.mark.parametrize("style", STYLES)
def test_truncation_and_numbers_that_are_not_finite(tmp_path, make_configuration, style):
    configuration = make_configuration(DIMS)
    path = tmp_path / "u.h5"
    write(path, configuration, "hdf5", style=style)
    content = path.read_bytes()
    number = configuration.links[3, 2, 1, 0, 2, 1, 1].tobytes()
    assert content.count(number) == 1
    path.write_bytes(content.replace(number, np.complex128(np.nan).tobytes()))
    with pytest.raises(CheckError, match=r"site \[0,1,2,3\], mu = z"):
        read(path, check_checksum=False)
    for cut in (3, 20, 100, 3000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError):
            read(path)
        assert inspect(path)["error"]


@pytest.mark.parametrize("kind", [*STYLES, "chunked"])
def test_random_damage(tmp_path, make_configuration, kind):
    """Refused, or the very links; only files without a checksum may give others."""
    configuration = make_configuration((2, 1, 2, 3), metadata={"SEQUENCE_NUMBER": "1"})
    path = tmp_path / "u.h5"
    if kind == "chunked":
        with h5py.File(path, "w", libver="earliest") as file:
            options = {"chunks": (1, 2, 1, 2, 4, 3, 3), "compression": "gzip"}
            file.create_dataset("a/links", data=configuration.links, **options)
            file["a/links"].attrs["comment"] = "text"
    else:
        write(path, configuration, "hdf5", style=kind)
    content = path.read_bytes()
    rng = np.random.default_rng(20)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        reach = len(content) if rng.random() < 0.3 else 3000
        place = int(rng.integers(reach))
        blow = rng.integers(4)
        if blow == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif blow == 1:
            damaged[place : place + 8] = rng.bytes(8)
        elif blow == 2:
            del damaged[place : place + int(rng.integers(1, 200))]
        else:
            damaged[place:place] = rng.bytes(int(rng.integers(1, 200)))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except FormatError:
            refused += 1
            continue
        if found.checksum is not None:
            assert np.array_equal(found.links, configuration.links)
    assert refused > 56


def test_a_heap_of_texts_that_never_ends(tmp_path, make_links):
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["u"] = make_links(DIMS)
        file["u"].attrs["comment"] = "text of variable length"
    content = bytearray((tmp_path / "u.h5").read_bytes())
    heap = content.index(b"GCOL")
    first = int.from_bytes(content[heap + 24 : heap + 32], "little")
    free = heap + 32 + first + -first % 8
    assert content[free : free + 2] == b"\0\0"
    content[free + 8 : free + 16] = bytes(8)  # free space of no bytes
    (tmp_path / "u.h5").write_bytes(content)
    with pytest.raises(FormatError, match="heap of texts"):
        read(tmp_path / "u.h5")


def test_damaged_indices_do_not_crash_the_library(tmp_path, make_links):
    """In another process: the library once did not raise, but crashed."""
    with h5py.File(tmp_path / "u.h5", "w", libver="latest") as file:
        options = {"chunks": (1, 1, 1, 2, 4, 3, 3), "maxshape": (None,) * 7}
        file.create_dataset("a/u", data=make_links((2, 2, 2, 2)), **options)
        for i in range(20):
            file["a/u"].attrs[f"n{i}"] = f"text {i}"
            file.create_group(f"g{i}")
    content = (tmp_path / "u.h5").read_bytes()
    places = [i for i in range(len(content)) if content[i : i + 4] in (b"BTHD", b"FRHP", b"OHDR")]
    assert len(places) > 20
    for i, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place + 24 : place + 32] = b"damaged!"
        (tmp_path / f"{i}.h5").write_bytes(damaged)
    program = (
        "import sys\nfrom flowmc_adapters import FormatError, inspect, read\n"
        "for path in sys.argv[1:]:\n"
        "    inspect(path)\n"
        "    try: read(path)\n"
        "    except FormatError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(tmp_path / f"{i}.h5") for i in range(len(places)))],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.count(b"refused") > 1


def test_links_in_circles(tmp_path, make_links):
    links = make_links(DIMS)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        group = file.create_group("a/b")
        group["up"], group["root"], group["same"] = file["a"], file["/"], group
        group["u"] = links
    again = read(tmp_path / "u.h5")
    assert again.links.tobytes() == links.tobytes()
    assert again.warnings == []


def test_checksum_of_pieces_in_any_order_and_of_several_ranks(make_links):
    links = make_links(DIMS)
    parts = np.ascontiguousarray(np.moveaxis(links, 4, 0)).reshape(4, -1, 9)
    one, other = PyQudaChecksum(4, 144), PyQudaChecksum(4, 144)
    for sum_, begin, end in ((one, 300, 384), (other, 0, 7), (one, 7, 300)):
        piece = np.ascontiguousarray(parts[:, begin:end])
        sum_.update(begin, piece.reshape(-1).view(np.uint8))
    one.absorb(other)
    expected = [pyquda_sums(links[..., mu, :, :]) for mu in range(4)]
    assert [(f"{a:08x}", f"{b:08x}") for a, b in one.sums] == expected


def test_header_alone_and_lost_metadata(tmp_path, make_configuration):
    configuration = make_configuration(DIMS, metadata={"my own": "x"})
    write(tmp_path / "u.h5", configuration, "hdf5")
    header = read_header(tmp_path / "u.h5")
    assert header.layout is not None and header.metadata == {"my own": "x"}
    (warning,) = write(tmp_path / "v.h5", configuration, "hdf5", style="qdp++")
    assert "my own" in warning
    with pytest.raises(ValueError, match="style must be one of"):
        write(tmp_path / "v.h5", configuration, "hdf5", style="grid")


def test_h5py_is_imported_for_hdf5_files_only(tmp_path, make_configuration):
    write(tmp_path / "lat", make_configuration(), "nersc")
    program = (
        "import sys, flowmc_adapters as f; f.inspect(sys.argv[1]); f.read(sys.argv[1]); "
        "sys.exit('h5py' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "lat")],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        check=False,
    )
    assert done.returncode == 0


def test_files_that_hold_something_else(tmp_path):
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file["numbers"] = np.arange(10.0)
        file["texts"] = ["a", "b"]
        file.create_dataset("empty", data=h5py.Empty("f8"))
        file["group/propagator"] = np.zeros((2, 2, 2, 2, 4, 4, 3, 3), complex)
    with pytest.raises(FormatError, match=r"no gauge field among .*numbers"):
        read(tmp_path / "u.h5")
