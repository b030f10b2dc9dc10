"""Runs several configurations one after the other in the same ranks: FOLDER CONFIG...

Starting ranks takes longer than these runs.  With FLOWMC_PLANT random streams depend on the rank.
"""

import os
import sys
from pathlib import Path

from flowmc.chains import opening
from flowmc.cli import main
from flowmc.parallel import agreement, world

if __name__ == "__main__":
    if "FLOWMC_PLANT" in os.environ:
        opening.purpose_of = lambda purpose, replica: f"{purpose} {world().rank}"
    # So short runs would be over before the ranks look up more than twice.
    agreement._MOST_UPDATES = 2
    folder, *configs = sys.argv[1:]
    for config in configs:
        output = Path(folder) / Path(config).stem
        status = main(["run", config, "--output", str(output), "--resume"])
        if status:
            sys.exit(status)
