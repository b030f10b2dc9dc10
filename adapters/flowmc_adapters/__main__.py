"""`python -m flowmc_adapters inspect FILE...` and `convert SRC DST --format F`."""

import sys

from .cli import main

sys.exit(main())
