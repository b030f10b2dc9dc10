"""Which signals ask to stop, and which end the process."""

import os
import signal
import subprocess
import sys

import pytest

from flowmc.jobs.interrupts import Interrupts

WARNINGS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU]


@pytest.mark.usefixtures("_at_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, *WARNINGS])
def test_each_asks_to_stop(number):
    with Interrupts() as asked:
        os.kill(os.getpid(), number)
        assert asked.number == number


SECOND = """
import os, signal, sys
from flowmc.jobs import interrupts
interrupts._SAME_REQUEST = 0.0
with interrupts.Interrupts() as asked:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    print(asked.number)
"""


@pytest.mark.parametrize(
    ("numbers", "ends"),
    [
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGINT, signal.SIGTERM], True),
        # A warning is no request, and no second one: what it announces comes with its own time.
        ([signal.SIGUSR1, signal.SIGTERM], False),
        ([signal.SIGXCPU] * 3, False),
        ([signal.SIGTERM, signal.SIGHUP, signal.SIGHUP], False),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], True),
    ],
)
def test_what_ends_the_process_at_once(numbers, ends):
    command = [sys.executable, "-c", SECOND, *(str(int(number)) for number in numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (-numbers[-1] if ends else 0), done.stderr
    assert ends or done.stdout == f"{int(numbers[0])}\n"


def test_what_nohup_ignores_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.number
    finally:
        signal.signal(signal.SIGHUP, old)


def test_within_a_second_it_is_one_request():
    with Interrupts() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.number == signal.SIGTERM
