"""A write that fails leaves what was there before, and nothing beside it."""

import errno
import os

import pytest
from flowmc_adapters import Configuration, atomic_write, read, write

FORMATS = ["nersc", "ildg", "scidac", "npy"]


class FullDisk:
    """A file on a disk with room for so many bytes only."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._file.close()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("room", [0, 100, 20_000])
@pytest.mark.parametrize("exists", [True, False])
def test_full_disk(tmp_path, monkeypatch, make_configuration, format, room, exists):
    path = tmp_path / "conf"
    old = make_configuration()
    if exists:
        write(path, old, format)
    new = Configuration(old.links.conj())
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args: FullDisk(real(*args), room))
    with pytest.raises(OSError, match="No space left"):
        write(path, new, format)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["conf"] if exists else [])
    if exists:
        assert read(path).links.tobytes() == old.links.tobytes()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_at_the_last_moment(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_interruption(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_new_content_appears_only_at_the_end(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_umask_is_respected(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_links_are_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_directories_are_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pass
