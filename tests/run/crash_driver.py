"""Runs a command in forked children that die at a chosen instant; started by test_crash.py.

The modules are imported once, so that a child takes milliseconds to come to life.
"""

import functools
import importlib
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from flowmc.cli import main

MODULES = {"run": "flowmc.commands.run", "free-energy": "flowmc.commands.free_energy"}

# All ways in which flowmc touches the disk.
CALLS = ("pwrite", "replace", "fsync", "open", "mkdir", "truncate", "ftruncate", "utime")


def words(config, directory):
    return [command, str(config), "--output", str(directory)]


def fork(config, directory, before=lambda: None):
    """Begin or go on in a child; return its number."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            said = os.open(f"{directory}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 2)
            before()
            status = main([*words(config, directory), "--resume"])
        finally:
            os._exit(status)
    return child


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(instant, act):
    """Call ``act`` just before the n-th call that touches the disk."""
    seen = 0

    def counted(call):
        def wrapped(*arguments, **keywords):
            nonlocal seen
            seen += 1
            if seen == instant:
                act()
            return call(*arguments, **keywords)

        return wrapped

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: seen


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(instant):
    at_call(instant, die)


def die_half_written(instant):
    """Write half of the n-th row entry, then die: a torn write."""
    seen, pwrite = 0, os.pwrite

    def torn(descriptor, data, offset):
        nonlocal seen
        seen += 1
        if seen == instant:
            pwrite(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(descriptor, data, offset)

    os.pwrite = torn


def calls_of_a_run(config, work):
    """Count the calls that touch the disk in a whole run."""
    child = os.fork()
    if child == 0:
        seen = at_call(-1, die)
        status = main(words(config, work / "warm"))
        Path(work / "calls").write_text(str(seen()))
        os._exit(status)
    assert status_of(child) == 0
    return int(Path(work / "calls").read_text())


def instants(config, work, count, seed):
    """Die at ``count`` instants spread over the run, each in a fresh directory, and resume."""
    total = calls_of_a_run(config, work)
    chosen = random.Random(seed)
    deaths = 0
    for index in range(count):
        directory = work / f"instant{index}"
        begin, end = index * total // count, (index + 1) * total // count
        instant = chosen.randrange(begin, max(end, begin + 1)) + 1
        killer = die_half_written if index % 4 == 3 else die_at
        # Torn writes are counted among row entries only, of which a run has fewer.
        instant = max(1, instant // 3) if killer is die_half_written else instant
        child = fork(config, directory, functools.partial(killer, instant))
        deaths += status_of(child) == -signal.SIGKILL
        status = status_of(fork(config, directory))
        assert status == 0, Path(f"{directory}.stderr").read_text()
    return deaths


def again_and_again(config, work, seed, longest):
    """Kill one run at random times until it is through."""
    chosen = random.Random(seed)
    deaths = 0
    while True:
        child = fork(config, work / "again")
        time.sleep(chosen.random() * longest)
        os.kill(child, signal.SIGKILL)
        if status_of(child) == 0:
            return deaths
        deaths += 1
        longest *= 1.1  # a loaded machine may need longer than that to get anywhere


def full_disk(config, work, bytes_allowed, instant):
    """From some instant on let no file grow beyond a size, as a full disk or quota does."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))

    return status_of(fork(config, work / "full", lambda: at_call(instant, limit)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, mode, config, work, *rest = sys.argv[1:]
    importlib.import_module(MODULES[command])  # before the forks
    work = Path(work)
    if mode == "reference":
        print(status_of(fork(config, work / "reference")))
    elif mode == "instants":
        print(instants(config, work, int(rest[0]), int(rest[1])))
    elif mode == "again":
        print(again_and_again(config, work, int(rest[0]), float(rest[1])))
    elif mode == "full":
        print(full_disk(config, work, int(rest[0]), int(rest[1])))
