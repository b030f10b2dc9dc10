"""Memory does not grow with the lattice: whole files pass through in a process of bounded size."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flowmc_adapters
import h5py
import numpy as np
import pytest

# Every process pays for Python, numpy, h5py, and, from a certain volume on, numba.
_MEASURE = """
import json, sys
import flowmc_adapters

what, source, target, format, options, cores = sys.argv[1:]
if int(cores):
    from flowmc_adapters import transfer

    transfer._cores = lambda: int(cores)
if what == "inspect":
    report = flowmc_adapters.inspect(source)
    found = [report["error"], report["dims"], report["plaquette"]]
else:
    options = json.loads(options)
    done = flowmc_adapters.convert(source, target, format, options=options, check_group=False)
    found = [None, done.source_format, done.format]
status = open("/proc/self/status").read()
# Not ru_maxrss, which begins with that of the process that started this one
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([peak, found]))
"""


def sparse_nersc(path, dims, precision):
    """A valid file whose links are all zero, which take no room on the disk."""
    lx, ly, lz, lt = dims
    size = lx * ly * lz * lt * 72 * precision // 8
    keys = {
        "DATATYPE": "4D_SU3_GAUGE_3x3",
        **{f"DIMENSION_{i}": extent for i, extent in enumerate(dims, 1)},
        "CHECKSUM": 0,
        "LINK_TRACE": 0.0,
        "PLAQUETTE": 0.0,
        "FLOATING_POINT": f"IEEE{precision}BIG",
    }
    lines = [f"{key} = {value}" for key, value in keys.items()]
    head = "\n".join(["BEGIN_HEADER", *lines, "END_HEADER", ""]).encode()
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    return len(head) + size


def measured(what, source, target="-", format="-", options=None, cores=0):
    """Peak memory in MiB and what was found, of a process of its own, as if on so many cores."""
    more = (json.dumps(options or {}), str(cores))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, what, source, target, format, *more],
        env=os.environ | {"PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def require_room(tmp_path):
    def require(size):
        if shutil.disk_usage(tmp_path).free < 2 * size:
            pytest.skip(f"needs {2 * size / 1e9:.1f} GB of disk")

    return require


def test_inspecting_200_megabytes(tmp_path):
    size = sparse_nersc(tmp_path / "conf", (16, 16, 40, 66), 32)
    assert size > 190e6
    peak, found = measured("inspect", tmp_path / "conf")
    assert found == [None, [16, 16, 40, 66], 0.0]
    assert peak < 150


def test_converting_200_megabytes(tmp_path, require_room):
    convert_200_megabytes(tmp_path, require_room, "ildg", 64)


@pytest.mark.slow
def test_converting_200_megabytes_to_any_format(tmp_path, require_room, writable_at):
    convert_200_megabytes(tmp_path, require_room, *writable_at)


def convert_200_megabytes(tmp_path, require_room, format, precision):
    # 40 planes: each time slice is a slab of 32 and one of 8
    dims = (16, 16, 40, 66 if precision == 32 else 34)
    size = sparse_nersc(tmp_path / "conf", dims, precision)
    require_room(size)
    target = tmp_path / "copy"
    try:
        peak, found = measured("convert", tmp_path / "conf", target, format)
        assert found == [None, "nersc", format]
        assert target.stat().st_size > 180e6
        assert peak < 150
        peak, found = measured("inspect", target)
        assert found[:2] == [None, list(dims)]
        assert peak < 150
    finally:
        target.unlink(missing_ok=True)


def save(path, links):
    """A compressed file, as far as the format compresses by itself."""
    if path.suffix == ".npz":
        np.savez_compressed(path, links=links)
        return
    with h5py.File(path, "w") as file:
        chunks = (1, *links.shape[1:])
        file.create_dataset("u", data=links, chunks=chunks, compression=1)


@pytest.mark.parametrize(
    ("suffix", "cores"),
    [
        *[(".npz", 4), (".h5", 1)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((".npz", 1), (".h5", 4))],
    ],
)
def test_compressed_links_are_unpacked_by_the_way(tmp_path, suffix, cores):
    """Two kilobytes for each of 151 megabytes of a cold field."""
    links = np.zeros((32, 16, 16, 32, 4, 3, 3), np.complex128)
    links[...] = np.eye(3)
    save(tmp_path / f"cold{suffix}", links)
    peak, found = measured("inspect", tmp_path / f"cold{suffix}", cores=cores)
    assert found == [None, [32, 16, 16, 32], 1.0]
    assert peak < 300  # some 200 of them by the threads; 500 with all links in memory


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_slices_that_are_nothing_but_a_bomb_are_refused(tmp_path, suffix):
    links = np.zeros((1, 32, 64, 64, 4, 3, 3), np.complex128)
    save(tmp_path / f"bomb{suffix}", links)
    assert (tmp_path / f"bomb{suffix}").stat().st_size < 400_000
    peak, found = measured("inspect", tmp_path / f"bomb{suffix}")
    assert "when it is unpacked" in found[0]
    assert peak < 100


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2, 8])
def test_both_formats_that_keep_time_slices(tmp_path, require_room, cores):
    """Slices of 64 MB on both sides; their number makes no difference."""
    dims = (48, 48, 48, 6)
    require_room(1.5 * sparse_nersc(tmp_path / "conf", dims, 64))
    previous = tmp_path / "conf"
    for target in ("openqcd", "hirep", "openqcd"):
        path = tmp_path / f"{target} from {previous.name}"
        peak, _ = measured("convert", previous, path, target, cores=cores)
        assert peak < 400
        previous.unlink()
        previous = path


@pytest.mark.slow
@pytest.mark.parametrize("format", ["ildg", "openqcd", "hdf5"])
def test_three_gigabytes(tmp_path, require_room, format):
    dims = (48, 48, 48, 48)
    size = sparse_nersc(tmp_path / "conf", dims, 64)
    require_room(size)
    target = tmp_path / "copy"
    try:
        peak, found = measured("convert", tmp_path / "conf", target, format)
        assert found == [None, "nersc", format]
        assert peak < 400
        peak, found = measured("inspect", target)
        assert found[:2] == [None, list(dims)]
        assert peak < 400
    finally:
        target.unlink(missing_ok=True)
