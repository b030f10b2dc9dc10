"""One process at a time in a run directory, and what a kill has left there."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from flowmc.chains.storage.directory import RunDirectory
from flowmc.jobs.lock import Lock
from flowmc.registry import ConfigError

HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_keeps_out_until_it_ends(tmp_path):
    """By POSIX locks, the kind that network file systems pass on."""
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        lock = Lock(path)
        with pytest.raises(ConfigError, match="busy"):
            lock.acquire("busy")
        other.kill()
    lock.acquire("busy")
    assert lock.works
    with pytest.raises(ConfigError, match="busy"):
        Lock(path).acquire("busy")
    # The attempt must not have cost the lock.
    probe = "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], 2), fcntl.LOCK_EX | 4)"
    done = subprocess.run([sys.executable, "-c", probe, str(path)], capture_output=True)
    assert done.returncode == 1 and b"BlockingIOError" in done.stderr
    lock.release()
    Lock(path).acquire("busy")


def test_a_removed_lock_file_is_noticed(tmp_path):
    lock = Lock(tmp_path / ".lock")
    lock.acquire("busy")
    assert lock.is_in_place
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").touch()
    assert not lock.is_in_place
    lock.release()


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        Lock(tmp_path / ".lock").acquire("busy")
    assert (tmp_path / "precious").read_text() == "text"


def without_locks(monkeypatch, error=errno.ENOLCK):
    def refuse(*arguments):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_only_old_leftovers_are_removed_where_nothing_keeps_others_out(tmp_path, monkeypatch):
    def leave(name, age):
        path = tmp_path / "out" / f".{name}.{age}.partial"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    new, old = leave("checkpoint.h5", 60), leave("checkpoint.h5", 7200)
    page, old_page = leave("report.html", 60), leave("report.html", 7200)
    with monkeypatch.context() as patch:
        without_locks(patch)
        directory = RunDirectory(tmp_path / "out")
        directory.claim()
        assert not directory.lock_works
        directory.release()
    assert new.exists() and page.exists()
    assert not old.exists() and not old_page.exists()
    # With a lock nobody else writes the checkpoint, but a report may be under way.
    directory = RunDirectory(tmp_path / "out")
    directory.claim()
    assert directory.lock_works
    directory.release()
    assert not new.exists() and page.exists()


def test_what_was_made_for_nothing_is_removed(tmp_path):
    directory = RunDirectory(tmp_path / "runs" / "a")
    directory.claim()
    directory.release()
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    directory = RunDirectory(tmp_path / "mine")
    directory.claim()
    directory.release()
    assert not list((tmp_path / "mine").iterdir())
