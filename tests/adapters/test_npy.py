"""numpy files: gauge fields, plain arrays, and what must be refused."""

import io
import pickle

import numpy as np
import pytest
from flowmc_adapters import (
    CheckError,
    FormatError,
    inspect,
    read,
    read_array,
    slab_sums,
    write,
    write_array,
)
from flowmc_adapters import transfer as transfer_module


def test_gauge_field_is_the_plain_array(tmp_path, make_configuration):
    configuration = make_configuration()
    write(tmp_path / "u.npy", configuration, "npy")
    stored = np.load(tmp_path / "u.npy", allow_pickle=False)
    assert stored.shape == (5, 4, 3, 2, 4, 3, 3)
    assert stored.tobytes() == configuration.links.tobytes()


@pytest.mark.parametrize("dtype", ["<c16", ">c16", "<c8", ">c8"])
@pytest.mark.parametrize("order", "CF")
def test_byte_and_axis_order_of_the_file_do_not_matter(tmp_path, make_links, dtype, order):
    links = make_links(precision=32 if "c8" in dtype else 64)
    np.save(tmp_path / "u.npy", np.asarray(links.astype(dtype), order=order))
    configuration = read(tmp_path / "u.npy")
    assert configuration.links.flags.c_contiguous
    assert configuration.links.tobytes() == links.tobytes()


@pytest.mark.parametrize("dims", [(4, 6), (2, 3, 4)])
def test_other_dimensions(tmp_path, make_configuration, dims):
    configuration = make_configuration(dims, nc=2)
    write(tmp_path / "u.npy", configuration, "npy")
    assert read(tmp_path / "u.npy").dims == dims


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        np.array(3),
        np.zeros((0, 4)),
    ],
)
def test_any_array_of_numbers(tmp_path, array):
    write_array(tmp_path / "phi.npy", array)
    again = read_array(tmp_path / "phi.npy")
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)
    assert again.shape == array.shape
    report = inspect(tmp_path / "phi.npy")
    assert report["error"] is None
    assert "no gauge field" in report["warnings"][0]
    if array.size:
        with pytest.raises(FormatError, match="read_array"):
            read(tmp_path / "phi.npy")


def test_objects_are_neither_read_nor_written(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="never objects"):
        read_array(tmp_path / "bomb.npy")
    (tmp_path / "pickle").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(FormatError, match="not a known configuration file"):
        read(tmp_path / "pickle")
    with pytest.raises(ValueError, match="numbers only"):
        write_array(tmp_path / "x.npy", np.array([None]))


def test_nan_is_named(tmp_path):
    array = np.ones((2, 3))
    array[1, 2] = np.nan
    write_array(tmp_path / "phi.npy", array)
    with pytest.raises(CheckError, match=r"\[1, 2\]"):
        read_array(tmp_path / "phi.npy")


@pytest.fixture
def many_slabs(monkeypatch):
    monkeypatch.setattr(slab_sums, "_SITES", 16)
    monkeypatch.setattr(transfer_module, "_SERIAL_VOLUME", 1)


@pytest.mark.parametrize("dtype", ["<c16", ">c16", "<c8"])
@pytest.mark.parametrize("order", "CF")
def test_directions_first_as_pyquda_has_them(tmp_path, make_links, many_slabs, dtype, order):
    links = make_links((2, 4, 6, 8), precision=32 if dtype == "<c8" else 64)
    array = np.moveaxis(links, 4, 0).astype(dtype)
    np.save(tmp_path / "u.npy", np.asarray(array, order=order))
    again = read(tmp_path / "u.npy")
    assert again.links.tobytes() == links.tobytes()
    assert again.warnings == []
    assert inspect(tmp_path / "u.npy")["writer"] == "PyQUDA"


def test_pyquda_style_is_their_file(tmp_path, make_configuration, many_slabs):
    configuration = make_configuration((2, 4, 6, 8))
    write(tmp_path / "u.npy", configuration, "npy", style="pyquda")
    np.save(tmp_path / "v.npy", np.ascontiguousarray(np.moveaxis(configuration.links, 4, 0)))
    assert (tmp_path / "u.npy").read_bytes() == (tmp_path / "v.npy").read_bytes()
    with pytest.raises(FormatError, match="four-dimensional"):
        write(tmp_path / "w.npy", make_configuration((3, 5)), "npy", style="pyquda")


def test_shapes_with_two_meanings(tmp_path, make_links):
    links = make_links((4, 2, 6, 8))
    np.save(tmp_path / "u.npy", links)
    again = read(tmp_path / "u.npy")
    assert again.links.tobytes() == links.tobytes()
    assert again.warnings == []
    # (4, 8, 6, 2, 4, 3, 3): directions first with Lx = 4, or Lt = 4 with directions last
    np.save(tmp_path / "u.npy", np.moveaxis(links, 4, 0))
    assert any("layout='pyquda'" in warning for warning in read(tmp_path / "u.npy").warnings)
    asked = read(tmp_path / "u.npy", layout="pyquda")
    assert asked.links.tobytes() == links.tobytes()
    assert asked.warnings == []
    assert read(tmp_path / "u.npy", layout="flowmc").dims == (2, 6, 8, 4)
    np.save(tmp_path / "u.npy", make_links((2, 4, 6, 8)))
    with pytest.raises(FormatError, match="'flowmc' would fit"):
        read(tmp_path / "u.npy", layout="pyquda")


@pytest.fixture
def siblings(tmp_path, make_links):
    links = make_links((2, 4, 6, 8))
    for mu in range(4):
        part = links[..., mu, :, :].transpose(4, 5, 3, 2, 1, 0)  # row, column, x, y, z, t
        np.save(tmp_path / f"conf_u{mu}.npy", np.asfortranarray(part))
    return links


@pytest.mark.parametrize("mu", range(4))
def test_four_files_are_read_by_any_of_them(tmp_path, siblings, many_slabs, mu):
    assert read(tmp_path / f"conf_u{mu}.npy").links.tobytes() == siblings.tobytes()
    assert inspect(tmp_path / f"conf_u{mu}.npy")["writer"] == "latticeqcd-rs"


def test_four_files_in_c_order(tmp_path, siblings):
    part = np.load(tmp_path / "conf_u1.npy")
    np.save(tmp_path / "conf_u1.npy", np.ascontiguousarray(part))
    assert read(tmp_path / "conf_u0.npy").links.tobytes() == siblings.tobytes()


def test_four_files_that_are_not_four(tmp_path, siblings):
    part = np.load(tmp_path / "conf_u3.npy")
    (tmp_path / "conf_u3.npy").unlink()
    with pytest.raises(FormatError, match=r"conf_u3.npy, direction t, is missing"):
        read(tmp_path / "conf_u1.npy")
    np.save(tmp_path / "conf_u3.npy", part[..., :4])
    with pytest.raises(FormatError, match="not the directions of one field"):
        read(tmp_path / "conf_u1.npy")
    np.save(tmp_path / "v.npy", part)
    with pytest.raises(FormatError, match="does not tell which"):
        read(tmp_path / "v.npy")
    part = np.asfortranarray(part)
    part[1, 2, 1, 3, 5, 7] = np.inf
    np.save(tmp_path / "conf_u3.npy", part)
    with pytest.raises(CheckError, match=r"conf_u3.npy: byte .*site \[1,3,5,7\], mu = t"):
        read(tmp_path / "conf_u0.npy")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 9), }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 8), }\n",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (8,\n",
        b"((((((((((((((((((((\n",
        b"\xff\xff\n",
    ],
)
def test_damaged_headers(tmp_path, header):
    content = io.BytesIO()
    content.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    (tmp_path / "bad.npy").write_bytes(content.getvalue())
    with pytest.raises(FormatError):
        read_array(tmp_path / "bad.npy")
