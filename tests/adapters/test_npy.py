"""numpy files: gauge fields, plain arrays, and what must be refused."""

import io
import pickle

import numpy as np
import pytest
from flowmc_adapters import CheckError, FormatError, inspect, read, read_array, write, write_array


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


def test_pyquda_order_is_pointed_out(tmp_path, make_links):
    np.save(tmp_path / "u.npy", np.moveaxis(make_links(), 4, 0))
    with pytest.raises(FormatError, match="PyQUDA"):
        read(tmp_path / "u.npy")
    np.save(tmp_path / "u.npy", make_links((2, 2, 2, 4)))
    assert any("PyQUDA" in warning for warning in read(tmp_path / "u.npy").warnings)


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
