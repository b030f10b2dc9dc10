"""Chains, from objects and from configurations to run directories.

:func:`step` is one update of one field; nothing else needs to be known to update the fields of
another program.  :func:`sample` runs chains in memory.

For runs, ``config`` reads and validates, ``assembly`` builds kernels and flows, ``start`` makes the
first fields, ``diagnostics`` reduces what kernels report, ``opening`` starts or continues a
directory, ``runner`` is the loop; :mod:`~flowmc.chains.storage` writes what it leaves behind.
"""

from flowmc.chains.sampling import Samples, sample
from flowmc.chains.stepper import Stepped, step

__all__ = ["Samples", "Stepped", "sample", "step"]
