"""The ``flowmc`` command in which something happens to one rank in a training.

FAULT RANK STEP, then the command line.
"""

import os
import signal
import sys

from flowmc.cli import main
from flowmc.parallel import world
from flowmc.training import Trainer

if __name__ == "__main__":
    fault, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    advance = Trainer.advance

    def faulty(trainer):
        if world().rank == rank and trainer.step == step:
            if fault == "raise":
                raise RuntimeError("planted")
            if fault == "term":
                os.kill(os.getpid(), signal.SIGTERM)
        return advance(trainer)

    Trainer.advance = faulty
    sys.exit(main(sys.argv[4:]))
