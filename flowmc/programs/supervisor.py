"""A process that runs one command and ends it, with all that it has started, when told to.

Started as a program of its own by :mod:`flowmc.programs.running`, never imported: it needs nothing
but the standard library, and starts within tens of milliseconds.  Its standard input is a pipe from
the process that wants the command run.  When that pipe is closed, which also happens when the other
process is killed, the command is ended.  One line on standard output says how the command ended.

Usage: supervisor.py FOLDER OUT ERR WORD...
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

# Of <sys/prctl.h>.
_PDEATHSIG, _SUBREAPER = 1, 36
# Between the request to end and the end.
_GRACE = 2.0


def _prctl(option: int, value: int) -> None:
    """Call prctl, which only Linux has."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _start(folder: str, out: str, err: str, words: list[str]) -> int:
    """Start the command in a session of its own; return its process number.

    Raises:
        OSError: it cannot be started.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            # Should this process be killed, nobody else knows of the command.
            _prctl(_PDEATHSIG, signal.SIGKILL)
            for number, path, flags in (
                (0, os.devnull, os.O_RDONLY),
                (1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                (2, err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            ):
                os.dup2(os.open(path, flags, 0o666), number)
            os.chdir(folder)
            os.execvp(words[0], words)
        except OSError as error:
            os.write(writer, str(error.errno).encode())
        os._exit(127)
    os.close(writer)
    failure = os.read(reader, 16)
    os.close(reader)
    if failure:
        os.waitpid(pid, 0)
        raise OSError(int(failure), os.strerror(int(failure)))
    return pid


def _reaped(pid: int) -> int | None:
    """Take leave of processes that have ended; return the status of the command if it has."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            one, status = os.waitpid(-1, os.WNOHANG)
            if one == 0:
                break
            if one == pid:
                found = status
    return found


def _below(pid: int) -> list[int]:
    """Return all processes that descend from one, as far as /proc tells."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
            for child in children:
                found += [child, *_below(child)]
    return found


def _kill_rest(pid: int) -> None:
    """Kill what is left of the command's group, and whatever descends from this process."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    # What has left the group descends from this process all the same.
    for _ in range(100):
        left = _below(os.getpid())
        for one in left:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        if not left:
            return
        _reaped(-1)
        time.sleep(0.002)


def _end(pid: int) -> int:
    """Ask the command to end, then make it; return its status."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGTERM)
    until = time.monotonic() + _GRACE
    status = None
    while status is None and time.monotonic() < until:
        status = _reaped(pid)
        if status is None:
            time.sleep(0.005)
    if status is None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return status


def main() -> None:
    """Run the command of the command line."""
    folder, out, err, *words = sys.argv[1:]
    # A batch system may send its signals to every process of a job; whether the command ends is
    # for the command, and for who wants it run.  Handlers, because what is ignored stays ignored
    # in the command.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    _prctl(_SUBREAPER, 1)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        pid = _start(folder, out, err, words)
    except OSError as error:
        os.write(1, f"not started: {error.strerror}".encode())
        return
    status = None
    while status is None:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(awake, 4096)
        status = _reaped(pid)
        if status is None and 0 in ready and not os.read(0, 1):
            status = _end(pid)
    _kill_rest(pid)
    # Nobody reads it if the other process is gone.
    with contextlib.suppress(OSError):
        os.write(1, str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    main()
