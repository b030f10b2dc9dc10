"""A write that fails leaves what was there before, and nothing beside it."""

import builtins
import contextlib
import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import flowmc_adapters
import pytest
from flowmc_adapters import Configuration, atomic_write, read, write
from flowmc_adapters.atomic import atomic_path
from flowmc_adapters.cli import main
from flowmc_adapters.nersc.archive import NerscFormat


class FailingDisk:
    """Writing stops for good after so many calls; the last one that is made fails half way."""

    def __init__(self, monkeypatch, calls):
        self.rest = calls
        self._pwrite = os.pwrite
        opened = open

        def wrapped(file, mode="r", *args, **kwargs):
            found = opened(file, mode, *args, **kwargs)
            return _FailingFile(found, self) if set(mode) & set("wa+x") else found

        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(builtins, "open", wrapped)

    def take(self, data, put):
        self.rest -= 1
        if self.rest < 0:
            with contextlib.suppress(IndexError):
                put(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(data)

    def pwrite(self, descriptor, data, offset):
        return self.take(data, lambda part: self._pwrite(descriptor, part, offset))


class _FailingFile:
    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def write(self, data):
        return self._disk.take(data, self._file.write)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._file.close()


@contextlib.contextmanager
def largest_file(size):
    """The system refuses to let any file grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def old_and_new(make_configuration, equal_precision):
    def make(format):
        old = make_configuration((2, 4, 2, 6), precision=equal_precision(format))
        return old, Configuration(old.links.conj())

    return make


@pytest.mark.parametrize("exists", [True, False])
def test_disk_that_fails_at_any_call(tmp_path, monkeypatch, old_and_new, writable, exists):
    old, new = old_and_new(writable)
    if exists:
        write(tmp_path / "conf", old, writable)
    before = content(tmp_path)
    for calls in range(1000):
        with monkeypatch.context() as patch:
            FailingDisk(patch, calls)
            try:
                write(tmp_path / "conf", new, writable)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                break
        assert content(tmp_path) == before
    assert calls > 1
    assert read(tmp_path / "conf").links.tobytes() == new.links.tobytes()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("exists", [True, False])
def test_system_that_refuses_to_store_more(tmp_path, old_and_new, writable, share, exists):
    old, new = old_and_new(writable)
    write(tmp_path / "conf", old, writable)
    size = (tmp_path / "conf").stat().st_size
    if not exists:
        for path in tmp_path.iterdir():
            path.unlink()
    before = content(tmp_path)
    with largest_file(int(share * size)), pytest.raises(OSError, match=r"conf|large|write"):
        write(tmp_path / "conf", new, writable)
    assert content(tmp_path) == before


class _WithCompanion(NerscFormat):
    name = "with_companion"

    def frame(self, path, field, options):
        made = super().frame(path, field, options)
        made.companions = lambda written: {".info": b"of the new file"}
        return made


def test_companions_that_cannot_be_written_leave_both_files_alone(
    tmp_path, monkeypatch, make_configuration
):
    (tmp_path / "conf").write_bytes(b"old")
    (tmp_path / "conf.info").write_bytes(b"of the old file")
    before = content(tmp_path)
    for calls in range(1000):
        with monkeypatch.context() as patch:
            FailingDisk(patch, calls)
            try:
                _WithCompanion().write(tmp_path / "conf", make_configuration())
            except OSError:
                assert content(tmp_path) == before
            else:
                break
    assert (tmp_path / "conf.info").read_bytes() == b"of the new file"
    assert read(tmp_path / "conf").format == "nersc"


_KILLED = """
import os, signal, sys
import numpy as np
from flowmc_adapters import Configuration, write

path, format, precision, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
links = np.zeros((6, 2, 4, 2, 4, 3, 3), np.complex64 if precision == 32 else np.complex128)
links[...] = np.diag([1j, 1j, -1])
rest = calls

def counted(real):
    def call(*args):
        global rest
        rest -= 1
        if rest < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    return call

os.pwrite, os.fsync, os.replace = map(counted, (os.pwrite, os.fsync, os.replace))
write(path, Configuration(links), format)
"""


@pytest.mark.parametrize("calls", [0, 1, 3, -1])
def test_a_kill_leaves_the_old_file(tmp_path, old_and_new, calls):
    """-1: at the rename itself."""
    old, _ = old_and_new("ildg")
    write(tmp_path / "conf", old, "ildg")
    before = (tmp_path / "conf").read_bytes()
    slabs = old.links.shape[0]  # then one flush, then the rename
    command = [sys.executable, "-c", _KILLED, tmp_path / "conf", "ildg", "64"]
    environment = os.environ | {"PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1])}
    count = str(calls if calls >= 0 else slabs + 1)
    done = subprocess.run([*map(str, command), count], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "conf").read_bytes() == before
    assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
    done = subprocess.run([*map(str, command), "1000"], env=environment)
    assert done.returncode == 0
    assert read(tmp_path / "conf").links[0, 0, 0, 0, 0, 0, 0] == 1j


@pytest.mark.usefixtures("_at_a_terminal")
@pytest.mark.parametrize(
    ("number", "calls"),
    [
        (signal.SIGTERM, ["close"]),  # right after the file was made
        (signal.SIGTERM, ["fsync", "unlink"]),  # twice: the second one when it is being removed
        (signal.SIGHUP, ["fsync"]),
        (signal.SIGXCPU, ["fsync"]),
    ],
)
def test_a_signal_leaves_nothing_behind(tmp_path, make_configuration, number, calls):
    write(tmp_path / "conf", make_configuration((2, 2, 2, 2)), "npy")
    program = f"""
import os, sys
from flowmc_adapters.cli import main

def signalled(call):
    def function(*arguments, **options):
        done = call(*arguments, **options) if call is not unlink else None
        if any(".partial" in name for name in os.listdir(sys.argv[1])):
            os.kill(os.getpid(), {int(number)})
        return call(*arguments, **options) if call is unlink else done
    return function

unlink = os.unlink
for name in {calls}:
    setattr(os, name, signalled(getattr(os, name)))
sys.exit(main(sys.argv[2:]))
"""
    source, target = str(tmp_path / "conf"), str(tmp_path / "new")
    arguments = [str(tmp_path), "convert", source, target, "--format", "nersc"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1])},
    )
    assert done.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


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


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe", "loop"])
def test_what_is_no_file_is_not_replaced(tmp_path, make_configuration, writable, kind):
    """As root even /dev/null would become a file; here a device of the same kind, where allowed."""
    place = path = tmp_path / "there"
    if kind == "socket":
        if len(str(path)) > 100:
            pytest.skip("too long a name for a socket")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "loop":
        path.symlink_to("there")
    else:
        place = tmp_path / "pipe"
        os.mkfifo(place)
        if kind == "pipe":
            path = place
        else:
            path.symlink_to(place)
    write(tmp_path / "source", make_configuration((2, 2, 2, 2)), "npy")
    names, mode = sorted(tmp_path.iterdir()), place.lstat().st_mode
    convert = ["convert", str(tmp_path / "source"), str(path), "--format", writable]
    assert main([*convert, "--precision", "32" if writable == "milc" else "64"]) == 2
    with pytest.raises(OSError, match=r"there|pipe"), atomic_write(path):
        pass
    assert sorted(tmp_path.iterdir()) == names
    assert place.lstat().st_mode == mode


def test_a_pipe_behind_standard_output_is_not_replaced(tmp_path):
    """`/dev/stdout` leads to a name that does not exist."""
    program = "from flowmc_adapters import atomic_write\nwith atomic_write('/dev/stdout'): pass"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "/dev/stdout: a pipe, which would be replaced" in done.stderr


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    before = os.umask(0o022)
    try:
        with atomic_path(path) as temporary:
            assert temporary.stat().st_mode & 0o777 & ~mode & 0o077 == 0  # not even meanwhile
            temporary.write_bytes(b"new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_bytes() == b"new"


def test_a_file_that_is_replaced_keeps_its_owner_or_loses_the_rights_of_a_group(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o664)
    try:
        os.chown(path, 1234, 5678)
    except PermissionError:
        pytest.skip("only root gives files away")
    with atomic_write(path):
        pass
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 5678, 0o664)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "fchown", refuse)
    with atomic_write(path):
        pass
    found = path.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.getuid(), 0o644)


LONG_NAMES = {
    "two bytes": "ä" * 120,
    "three bytes": "格" * 80,
    "one byte": "x" * 250,
    "no UTF-8": os.fsdecode(b"\xff\xfe" * 100),
}


@pytest.mark.parametrize("name", LONG_NAMES.values(), ids=LONG_NAMES)
def test_names_of_many_bytes(tmp_path, name):
    """All of them are allowed: at most 255 bytes."""
    with atomic_write(tmp_path / name) as file:
        file.write(b"new")
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [os.fsencode(name)]


def test_directories_are_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path):
        pass
