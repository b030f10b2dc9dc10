"""``flowmc run`` in which something goes wrong on one rank: FAULT RANK UPDATE CONFIG OUTPUT."""

import errno
import os
import signal
import sys
import time

import torch

from flowmc.chains.runner import Runner
from flowmc.cli import main
from flowmc.parallel import agreement, world


def fail(fault, runner):
    if fault == "raise":
        raise RuntimeError("planted")
    if fault == "nan":
        for state in runner.states.values():
            state.field.fill_(torch.nan)
    elif fault == "undeclared":
        for values in runner.diagnostics._declared.values():
            values.clear()
    elif fault == "hang":
        time.sleep(600)
    elif fault == "full":
        pwrite = os.pwrite

        def failing(descriptor, data, offset):
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint.h5")

        os.pwrite = failing
        assert pwrite is not failing
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "term":
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    # So short runs would be over before the ranks look up more than twice.
    agreement._MOST_UPDATES = 2
    fault, rank, update, config, output = sys.argv[1:]
    advance = Runner._advance

    def planted(self):
        if world().rank == int(rank) and self.update + 1 == int(update):
            fail(fault, self)
        advance(self)

    Runner._advance = planted
    sys.exit(main(["run", config, "--output", output, "--resume"]))
