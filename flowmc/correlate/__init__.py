"""What an ensemble says about theories nearby, from objects; ``flowmc correlate`` is a layer above.

:func:`correlate` passes the fields of an ensemble to measurements (``measurement``: what they have
in common; ``targets``, ``difference``, ``linear``: what they are), :func:`combine` joins several
ensembles (``combined``).  For the command ``config`` reads the file, ``session`` passes the
configurations on disk (``stream``) and keeps their series (``store``); several ensembles have a
reader and a session of their own (``combine_...``).
"""

from flowmc.correlate.difference import Difference
from flowmc.correlate.in_memory import Correlated, combine, correlate
from flowmc.correlate.linear import Linear
from flowmc.correlate.measurement import Context
from flowmc.correlate.targets import Target

__all__ = ["Context", "Correlated", "Difference", "Linear", "Target", "combine", "correlate"]
