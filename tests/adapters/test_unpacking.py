"""Compressed files of every format, read from an unpacked copy; other containers are named."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
from flowmc_adapters import (
    Configuration,
    FieldConfiguration,
    FormatError,
    append_field,
    convert,
    field_numbers,
    inspect,
    parallel,
    read,
    read_field,
    unpacking,
    write,
)
from flowmc_adapters.cli import main

DIMS = (4, 2, 2, 6)
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture(params=list(PACKERS))
def pack(request):
    """Replaces a file by a compressed one."""

    def replace(path):
        packed = path.with_name(path.name + request.param)
        packed.write_bytes(PACKERS[request.param](path.read_bytes()))
        path.unlink()
        return packed

    return replace


def test_every_format(tmp_path, writable, equal_precision, make_links, pack):
    links = make_links(DIMS, precision=equal_precision(writable))
    path = tmp_path / "lat.12"
    write(path, Configuration(links), writable)
    packed = pack(path)
    found = read(packed)
    assert np.array_equal(found.links, links)
    assert any("compressed with" in warning for warning in found.warnings)
    report = inspect(packed)
    assert (report["path"], report["format"], report["error"]) == (str(packed), writable, None)
    convert(packed, tmp_path / "copy", "npy")
    assert np.array_equal(read(tmp_path / "copy").links, links)


def test_an_ensemble_on_the_command_line(tmp_path, make_links, pack, capsys):
    folder = tmp_path / "runs"
    folder.mkdir()
    fields = {}
    for number in (10, 20, 40):
        fields[number] = make_links(DIMS, seed=number)
        write(folder / f"lat.{number}", Configuration(fields[number]), "openqcd")
        pack(folder / f"lat.{number}")
    (folder / "log").write_text("plaquette\n" * 1000)
    pack(folder / "log")
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "3 files: 3 ok" in out and "missing numbers: 30" in out and "skipped" in out
    assert main(["convert", str(folder), str(tmp_path / "new"), "--format", "ildg"]) == 0
    for number, links in fields.items():
        found = read(tmp_path / "new" / f"lat.{number}.lime")
        assert np.array_equal(found.links, links) and found.number == number


def test_fields_and_selections(tmp_path, pack):
    values = [np.random.default_rng(i).normal(size=(4, 6)) for i in (1, 2)]
    for number, one in enumerate(values):
        append_field(tmp_path / "phi.h5", FieldConfiguration(one, "scalar"), number)
    packed = pack(tmp_path / "phi.h5")
    assert field_numbers(packed) == [0, 1]
    assert np.array_equal(read_field(packed, number=1).values, values[1])
    assert np.array_equal(read_field(f"{packed}#0").values, values[0])
    assert inspect(packed)["configurations"] == 2
    convert(packed, tmp_path / "one.npy", "npy", number=1)
    assert np.array_equal(np.load(tmp_path / "one.npy"), values[1])


def test_selected_links(tmp_path, make_links, pack):
    content = b""
    for seed in (1, 2):
        write(tmp_path / "one", Configuration(make_links(DIMS, seed=seed)), "ildg")
        content += (tmp_path / "one").read_bytes()
    (tmp_path / "all.lime").write_bytes(content)
    packed = pack(tmp_path / "all.lime")
    assert np.array_equal(read(f"{packed}#2").links, make_links(DIMS, seed=2))


def test_damage_is_reported_of_the_file_itself(tmp_path, make_links, pack, capsys):
    path = tmp_path / "lat.12"
    write(path, Configuration(make_links(DIMS)), "nersc")
    content = path.read_bytes()
    packed = pack(path)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="damaged or truncated") as caught:
        read(packed)
    assert caught.value.path == str(packed)
    assert main(["inspect", str(packed)]) == 2
    # A sound container around a damaged file
    packed.unlink()
    path.write_bytes(content[:-100])
    packed = pack(path)
    with pytest.raises(FormatError, match="truncated") as caught:
        read(packed)
    assert caught.value.path == str(packed) and "/proc" not in str(caught.value)


def test_flipped_bytes_are_never_worse_than_an_error(tmp_path, make_links, pack):
    path = tmp_path / "lat"
    write(path, Configuration(make_links((2, 2, 2, 2))), "nersc")
    packed = pack(path)
    whole = packed.read_bytes()
    rng = np.random.default_rng(5)
    for place in [*range(24), *rng.integers(len(whole), size=60)]:
        content = bytearray(whole)
        content[place] ^= 1 << rng.integers(8)
        packed.write_bytes(content)
        assert inspect(packed)["format"] in (None, "nersc")
        if inspect(packed)["error"] is None:
            # Dates, names and the like in the container's head
            assert np.array_equal(read(packed).links, make_links((2, 2, 2, 2)))


def test_nothing_stays_and_files_replaced_are_noticed(tmp_path, make_links, monkeypatch, pack):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "lat"
    for seed in (1, 2):
        links = make_links(DIMS, seed=seed)
        write(path, Configuration(links), "ildg")
        packed = pack(path)
        assert np.array_equal(read(packed).links, links)
    assert not list((tmp_path / "temporary").iterdir())


def test_an_absurd_size_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(unpacking, "_ALWAYS_ALLOWED", 2**22)
    path = tmp_path / "lat"
    path.write_bytes(b"BEGIN_HEADER\n" + bytes(2**26))
    packed = pack(path)
    tracemalloc.start()
    with pytest.raises(FormatError, match="unpack it yourself"):
        read(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25  # the dictionary of xz is 8 MiB


def test_other_containers_are_named_with_the_command(tmp_path, make_links, capsys):
    path = tmp_path / "lat.12"
    write(path, Configuration(make_links(DIMS)), "nersc")
    content = path.read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(path, "lat.12")
    tar = buffer.getvalue()
    for packed, command in (
        (b"\x28\xb5\x2f\xfd" + content, "zstd -d"),
        (tar, "tar -xf"),
        (gzip.compress(tar), "tar -xf"),
        (b"7z\xbc\xaf\x27\x1c" + content, "7z x"),
    ):
        path.write_bytes(packed)
        assert main(["inspect", str(path)]) == 2
        assert command in capsys.readouterr().out


def test_ranks_are_told_to_unpack_first(tmp_path, make_links, pack):
    class Alone:
        rank, size = 0, 1

        def allgather(self, item):
            return [item]

    path = tmp_path / "lat"
    write(path, Configuration(make_links(DIMS)), "nersc")
    packed = pack(path)
    with pytest.raises(FormatError, match=f"-k {os.fspath(packed)}"):
        parallel.verify(Alone(), packed)
