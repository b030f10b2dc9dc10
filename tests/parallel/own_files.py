"""``flowmc run`` in which every rank has a file of its own under one name: FOLDER OUTPUT."""

import os
import sys
from pathlib import Path

from flowmc.cli import main
from flowmc.parallel import world

if __name__ == "__main__":
    folder, output = sys.argv[1:]
    os.chdir(Path(folder) / str(world().rank))
    sys.exit(main(["run", "a.toml", "--output", output]))
