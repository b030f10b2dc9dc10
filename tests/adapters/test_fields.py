"""Scalar and U(1) fields: three formats, ensembles in one file, appends that are interrupted."""

import errno
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
    FieldConfiguration,
    FormatError,
    append_field,
    examine,
    field_numbers,
    inspect,
    read,
    read_field,
    write_field,
)
from flowmc_adapters.cli import main
from flowmc_adapters.field_configuration import compact_plaquette, site_checksum
from flowmc_adapters.hdf5 import append as hdf5_append

METADATA = {
    "ACTION": '{"name": "phi4", "lam": 0.1}',
    "SEQUENCE_NUMBER": "12",
    "CHAIN": "3",
    "RANDOM_STATE": "seed 1, chain 3, update 12",
    "ENSEMBLE_ID": "ä\n\ud800",
}
DIMS = (2, 4, 6, 8)


def make_field(kind="scalar", dims=DIMS, dtype=np.float64, seed=1, **metadata):
    shape = (*reversed(dims), *((len(dims),) if kind == "u1" else ()))
    values = np.random.default_rng(seed).uniform(-3, 3, size=shape).astype(dtype)
    return FieldConfiguration(values, kind, {**METADATA, **metadata})


def checksum_by_hand(values, dims, order):
    """SciDAC sums, site by site."""
    sums = [0, 0]
    sites = values.reshape(int(np.prod(dims)), -1).astype(f"{order}f{values.dtype.itemsize}")
    for rank, site in enumerate(sites):
        code = zlib.crc32(site.tobytes())
        for i, modulus in enumerate((29, 31)):
            by = rank % modulus
            sums[i] ^= ((code << by) | (code >> (32 - by))) & 0xFFFFFFFF
    return f"{sums[0]:x} {sums[1]:x}"


@pytest.mark.parametrize("format", ["hdf5", "ildg", "lime"])
@pytest.mark.parametrize("kind", ["scalar", "u1"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dims", [DIMS, (3, 5), (7, 2, 3)])
def test_fields_come_back(tmp_path, format, kind, dtype, dims):
    field = make_field(kind, dims, dtype)
    path = tmp_path / "conf"
    assert write_field(path, field, format) == []
    again = read_field(path)
    assert again.values.tobytes() == field.values.tobytes()
    assert again.values.dtype == dtype
    assert (again.kind, again.dims, again.number) == (kind, dims, 12)
    assert again.metadata == METADATA
    assert again.warnings == []
    order = "<" if format == "hdf5" else ">"
    assert again.checksum.stored == checksum_by_hand(field.values, dims, order)
    assert again.checksum.ok


@pytest.mark.parametrize("format", ["hdf5", "ildg", "npy"])
def test_equal_input_gives_equal_bytes(tmp_path, format):
    write_field(tmp_path / "a", make_field(), format)
    time.sleep(1.1)
    write_field(tmp_path / "b", make_field(), format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_hdf5_says_what_it_holds(tmp_path):
    field = make_field("u1")
    write_field(tmp_path / "u.h5", field, "hdf5")
    with h5py.File(tmp_path / "u.h5") as file:
        group = file["configurations/00000012"]
        assert group["field"].dtype == np.dtype("<f8")
        np.testing.assert_array_equal(group["field"][...], field.values)
        assert group.attrs["format"] == b"flowmc field"
        assert group.attrs["kind"] == b"u1"
        assert group.attrs["axes"] == b"t z y x mu"
        assert group.attrs["dims"].tolist() == list(DIMS)
        assert json.loads(group.attrs["metadata"]) == METADATA
    field.metadata = {}
    write_field(tmp_path / "u.h5", field, "hdf5")
    with h5py.File(tmp_path / "u.h5") as file:
        assert list(file) == ["configuration"]
    assert read_field(tmp_path / "u.h5").number is None
    assert field_numbers(tmp_path / "u.h5") == []


def test_lime_records_mislead_no_reader_of_gauge_fields(tmp_path):
    field = make_field()
    write_field(tmp_path / "u.lime", field, "ildg")
    content = (tmp_path / "u.lime").read_bytes()
    place, kinds, data = 0, [], {}
    while place < len(content):
        length = int.from_bytes(content[place + 8 : place + 16], "big")
        kinds.append(content[place + 16 : place + 144].rstrip(b"\0").decode())
        data[kinds[-1]] = content[place + 144 : place + 144 + length]
        place += 144 + length + -length % 8
    assert kinds == ["flowmc-field", "flowmc-metadata", "flowmc-field-data", "scidac-checksum"]
    assert data["flowmc-field-data"] == field.values.astype(">f8").tobytes()
    assert json.loads(data["flowmc-field"])["dims"] == list(DIMS)
    with pytest.raises(FormatError, match="no 'ildg-binary-data'"):
        read(tmp_path / "u.lime")


def test_npy_fields(tmp_path):
    field = make_field("u1", (3, 5))
    (warning,) = write_field(tmp_path / "u.npy", field, "npy")
    assert "no place for" in warning
    np.testing.assert_array_equal(np.load(tmp_path / "u.npy"), field.values)
    assert read_field(tmp_path / "u.npy", kind="u1").warnings == []
    again = read_field(tmp_path / "u.npy")
    assert again.kind == "u1"
    assert "kind='scalar'" in again.warnings[0]
    assert read_field(tmp_path / "u.npy", kind="scalar").dims == (2, 3, 5)
    np.save(tmp_path / "v.npy", np.zeros((3, 5)))
    assert read_field(tmp_path / "v.npy").warnings == []
    with pytest.raises(FormatError, match="no u1 field"):
        read_field(tmp_path / "v.npy", kind="u1")


@pytest.mark.parametrize("format", ["hdf5", "ildg"])
def test_damage_is_seen(tmp_path, format):
    field = make_field()
    path = tmp_path / "conf"
    write_field(path, field, format)
    content = path.read_bytes()
    stored = field.values.astype("<f8" if format == "hdf5" else ">f8")
    place = content.index(stored.tobytes())
    damaged = bytearray(content)
    damaged[place + 8 * 100 + 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckError, match="checksum does not match"):
        read_field(path)
    again = read_field(path, check_checksum=False)
    assert list(again.failed_checks) == ["checksum"]
    assert examine(path).status == 1
    assert examine(path, ignore_checksum=True).status == 0
    number = stored[3, 2, 1, :1].tobytes()
    for value in (np.nan, np.inf):
        assert content.count(number) == 1
        path.write_bytes(content.replace(number, np.array(value, stored.dtype).tobytes()))
        with pytest.raises(CheckError, match=r"\[3, 2, 1, 0\] is not a finite"):
            read_field(path, check_checksum=False)


@pytest.mark.parametrize("format", ["hdf5", "ildg"])
def test_random_damage(tmp_path, format):
    path = tmp_path / "conf"
    field = make_field(dims=(2, 3, 2))
    write_field(path, field, format)
    if format == "hdf5":
        append_field(path, make_field(dims=(2, 3, 2), seed=2), 13)
    content = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        place, blow = int(rng.integers(len(content))), rng.integers(4)
        if blow == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif blow == 1:
            damaged[place : place + 8] = rng.bytes(8)
        elif blow == 2:
            del damaged[place : place + int(rng.integers(1, 200))]
        else:
            damaged[place:place] = rng.bytes(int(rng.integers(1, 200)))
        path.write_bytes(damaged)
        inspect(path)
        try:
            found = read_field(path, number=12 if format == "hdf5" else None)
        except FormatError:
            refused += 1
            continue
        assert found.checksum is None or np.array_equal(found.values, field.values)
    assert refused > 37


@pytest.mark.parametrize(
    ("dims", "precision"), [([2, 4, 6, 10**9], 64), ([2, 4, 6, 8], 32), ([2, 4, 6, 8], "64"),
                            ([], 64), ([2, -4, -6, 8], 64), ("2468", 64), ([True, 4, 6, 8], 64)]
)  # fmt: skip
def test_lime_claims(tmp_path, dims, precision):
    path = tmp_path / "u.lime"
    write_field(path, make_field(), "ildg")
    content = path.read_bytes()
    length = int.from_bytes(content[8:16], "big")
    text = json.dumps({"kind": "scalar", "dims": dims, "precision": precision}).encode()
    path.write_bytes(content[:144] + text.ljust(length) + content[144 + length :])
    with pytest.raises(FormatError):
        read_field(path)


def test_what_cannot_be_written(tmp_path):
    field = make_field()
    with pytest.raises(ValueError, match="written as hdf5, ildg, lime, npy"):
        write_field(tmp_path / "x", field, "nersc")
    with pytest.raises(ValueError, match="precision"):
        write_field(tmp_path / "x", field, "hdf5", precision=16)
    field.values[0, 1, 2, 1] = 1e300
    for format in ("hdf5", "ildg", "npy"):
        with pytest.raises(CheckError, match=r"not finite, at element \[0, 1, 2, 1\]"):
            write_field(tmp_path / "x", field, format, precision=32)
    assert list(tmp_path.iterdir()) == []
    for values, kind in ((np.zeros((3, 2), int), "scalar"), (np.zeros((3, 3)), "u1"),
                         (np.zeros((3, 0)), "scalar"), (np.zeros(3), "spinor")):  # fmt: skip
        with pytest.raises(ValueError):
            FieldConfiguration(values, kind)


def test_precision_on_request(tmp_path):
    field = make_field()
    (warning,) = write_field(tmp_path / "x", field, "hdf5", precision=32)
    assert "rounded" in warning
    np.testing.assert_array_equal(
        read_field(tmp_path / "x").values, field.values.astype(np.float32)
    )


def test_other_files_are_named(tmp_path, make_configuration):
    from flowmc_adapters import write

    for format in ("nersc", "ildg", "hdf5"):
        write(tmp_path / "u", make_configuration(), format)
        with pytest.raises(FormatError, match=r"SU\(N\) links|gauge fields are read with"):
            read_field(tmp_path / "u")
    with pytest.raises(FormatError, match="not a known"):
        (tmp_path / "u").write_bytes(b"some text")
        read_field(tmp_path / "u")


def test_many_configurations_in_one_file(tmp_path):
    path = tmp_path / "e.h5"
    for number in (20, 10, 40, 30):
        append_field(path, make_field(seed=number), number)
    assert field_numbers(path) == [10, 20, 30, 40]
    for number in (10, 20, 30, 40):
        again = read_field(path, number=number)
        assert again.values.tobytes() == make_field(seed=number).values.tobytes()
        assert again.number == number
    with pytest.raises(FormatError, match=r"4 configurations.*say which"):
        read_field(path)
    with pytest.raises(FormatError, match="no configuration 15"):
        read_field(path, number=15)
    before = path.read_bytes()
    with pytest.raises(FormatError, match="20 is in this file already"):
        append_field(path, make_field(), 20)
    with pytest.raises(CheckError, match="not finite"):
        append_field(path, FieldConfiguration(np.full((2, 2), np.nan)), 50)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="needs a number"):
        append_field(path, FieldConfiguration(np.zeros((2, 2))))
    assert [entry.name for entry in tmp_path.iterdir()] == ["e.h5"]
    report = inspect(path)
    assert (report["kind"], report["configurations"], report["number"]) == ("scalar", 4, None)
    means = [make_field(seed=number).values.mean() for number in (10, 20, 30, 40)]
    assert report["mean"] == pytest.approx(np.mean(means), abs=1e-14)
    assert report["checksum"]["ok"]
    damaged = bytearray(before)
    damaged[before.index(make_field(seed=30).values.tobytes()) + 11] ^= 1
    path.write_bytes(damaged)
    found = examine(path)
    assert found.status == 1
    assert "configuration 30: checksum" in found.reason
    assert found.report["checksum"]["ok"] is False


@pytest.mark.parametrize("act", ["append", "read"])
def test_what_appending_reads_does_not_grow_with_the_ensemble(tmp_path, monkeypatch, act):
    """Counted: reads of the file for one more configuration, or for one of those in it."""
    import h5py
    from flowmc_adapters.hdf5 import fields
    from flowmc_adapters.hdf5.append import Overlay

    def reads(count):
        path, numbers = tmp_path / f"{count}.h5", range(10, 10 * count + 10, 10)
        append_field(path, make_field(dims=(2, 2)), numbers[0])
        with h5py.File(path, "r+", libver=("v108", "v108")) as file:
            group = file["configurations"]
            for number in numbers[1:]:
                group.copy(f"{numbers[0]:08d}", f"{number:08d}")
        assert field_numbers(path) == list(numbers)
        sizes = []
        original = Overlay.readinto

        def counted(self, buffer):
            sizes.append(memoryview(buffer).nbytes)
            return original(self, buffer)

        with monkeypatch.context() as patch:
            patch.setattr(Overlay, "readinto", counted)
            if act == "append":
                append_field(path, make_field(dims=(2, 2)), 10 * count + 15)
            else:
                # Through the same counter
                patch.setattr(fields, "pending", lambda path: [(0, path.read_bytes()[:1])])
                assert read_field(path, number=numbers[-1]).number == numbers[0]
        assert max(sizes) <= 2**17  # a block of the table of names
        return len(sizes)

    few, many = reads(64), reads(2048)
    assert 0 < few < many < 1.5 * few


def test_appending_to_strangers(tmp_path, make_configuration):
    from flowmc_adapters import write

    for format in ("nersc", "hdf5"):
        write(tmp_path / "u", make_configuration(), format)
        before = (tmp_path / "u").read_bytes()
        with pytest.raises(FormatError):
            append_field(tmp_path / "u", make_field(), 1)
        assert (tmp_path / "u").read_bytes() == before


class Crash(Exception):
    """Thrown instead of a system call."""


class CrashAt:
    """Lets so many of the system calls that change files through, and no more."""

    def __init__(self, allowed):
        self.allowed, self.count = allowed, 0

    def through(self, call):
        def counted(*arguments, **options):
            self.count += 1
            if self.count > self.allowed:
                raise Crash
            return call(*arguments, **options)

        return counted


def append_and_crash(path, field, number, allowed):
    """Append with so many system calls; returns whether it got to the end."""
    crash = CrashAt(allowed)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pwrite", "fsync", "ftruncate", "replace"):
            patch.setattr(os, name, crash.through(getattr(os, name)))
        patch.setattr(Path, "unlink", crash.through(Path.unlink))
        try:
            append_field(path, field, number)
        except Exception:  # h5py makes its own of ours
            assert crash.count > allowed
            return False
    return True


def test_a_crash_loses_only_what_is_being_appended(tmp_path):
    """The append stops before each of its system calls in turn."""
    path = tmp_path / "e.h5"
    # Enough configurations for all kinds of tables that a group can have
    for number in range(12):
        append_field(path, make_field(dims=(2, 3), seed=number), number)
    before = path.read_bytes()
    outcomes = set()
    for allowed in range(1000):
        path.write_bytes(before)
        hdf5_append.journal_of(path).unlink(missing_ok=True)
        finished = append_and_crash(path, make_field(dims=(2, 3), seed=99), 99, allowed)
        found = field_numbers(path)
        assert found in (list(range(12)), [*range(12), 99])
        outcomes.add((finished, len(found), hdf5_append.journal_of(path).exists()))
        for number in found:
            field = make_field(dims=(2, 3), seed=number)
            assert np.array_equal(read_field(path, number=number).values, field.values)
        # And it goes on from there
        append_field(path, make_field(dims=(2, 3), seed=100), 100)
        assert field_numbers(path) == [*found, 100]
        assert not hdf5_append.journal_of(path).exists()
        with h5py.File(path) as file:
            assert len(file["configurations"]) == len(found) + 1
        if finished:
            break
    assert allowed > 8
    assert {(False, 12, False), (False, 13, True), (True, 13, False)} <= outcomes


def test_killed_appends(tmp_path):
    """Another process appends until it is killed; what is there before is there afterwards."""
    path = tmp_path / "e.h5"
    program = (
        "import sys, numpy as np\n"
        "from flowmc_adapters import FieldConfiguration, append_field\n"
        "for number in range(int(sys.argv[2]), 10**6):\n"
        "    field = FieldConfiguration(np.full((50, 40), 1.0 * number))\n"
        "    append_field(sys.argv[1], field, number)\n"
        "    print(number, flush=True)\n"
    )
    import flowmc_adapters

    where = os.path.dirname(os.path.dirname(flowmc_adapters.__file__))
    start = 0
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(start)],
            env={**os.environ, "PYTHONPATH": where},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        for _ in range(10 + attempt):
            last = int(process.stdout.readline())
        time.sleep(0.003 * attempt)
        process.kill()
        last = int((process.stdout.read().split() or [last])[-1])
        process.wait()
        numbers = field_numbers(path)
        assert numbers in (list(range(last + 1)), list(range(last + 2)))
        for number in numbers:
            assert (read_field(path, number=number).values == number).all()
        start = numbers[-1] + 1


def test_a_journal_of_another_file_is_not_used(tmp_path):
    path = tmp_path / "e.h5"
    append_field(path, make_field(), 1)
    first = path.read_bytes()
    hdf5_append.journal_of(path).write_bytes(b"flowmcJ1" + bytes(200))
    assert field_numbers(path) == [1]
    append_field(path, make_field(), 2)
    assert field_numbers(path) == [1, 2]
    assert not hdf5_append.journal_of(path).exists()
    assert len(first) < path.stat().st_size


def test_two_appends_at_a_time_are_refused(tmp_path):
    path = tmp_path / "e.h5"
    append_field(path, make_field(), 1)
    with hdf5_append.appending(path), pytest.raises(BlockingIOError, match="another process"):
        append_field(path, make_field(), 2)
    append_field(path, make_field(), 2)


def test_inspect_on_the_command_line(tmp_path, capsys):
    write_field(tmp_path / "u.h5", make_field("u1"), "hdf5")
    write_field(tmp_path / "s.lime", make_field(), "ildg")
    assert main(["inspect", str(tmp_path / "u.h5")]) == 0
    shown = capsys.readouterr().out
    assert "u1" in shown and "2 x 4 x 6 x 8" in shown and "ACTION" in shown
    assert main(["inspect", "--brief", str(tmp_path / "u.h5"), str(tmp_path / "s.lime")]) == 0
    shown = capsys.readouterr().out
    assert "2x4x6x8 u1 64 bit" in shown and "2x4x6x8 scalar 64 bit" in shown


def test_plaquette_of_angles_by_hand():
    angles = make_field("u1", (2, 3, 4)).values
    total, count = 0.0, 0
    lt, ly, lx, d = angles.shape
    for t in range(lt):
        for y in range(ly):
            for x in range(lx):
                for mu in range(d):
                    for nu in range(mu + 1, d):

                        def at(shift, direction, x=x, y=y, t=t):
                            place = [x, y, t]
                            if shift is not None:
                                place[shift] = (place[shift] + 1) % (lx, ly, lt)[shift]
                            return angles[place[2], place[1], place[0], direction]

                        total += np.cos(at(None, mu) + at(mu, nu) - at(nu, mu) - at(None, nu))
                        count += 1
    assert compact_plaquette(angles) == pytest.approx(total / count, abs=1e-14)


def test_checksum_needs_every_site():
    field = make_field("u1", (2, 3, 4))
    assert site_checksum(field.values, "u1", "<").text == checksum_by_hand(
        field.values, (2, 3, 4), "<"
    )


def test_appending_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(hdf5_append.fcntl, "flock", no_locks)
    for number in (1, 2):
        append_field(tmp_path / "ensemble.h5", make_field(seed=number), number)
    assert field_numbers(tmp_path / "ensemble.h5") == [1, 2]
