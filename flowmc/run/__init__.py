"""From a configuration file to a run directory.

``config`` reads and validates, ``assembly`` builds kernels and flows, ``start`` makes the first
fields, ``rehearsal`` finds out what will be reported, ``runner`` is the loop; ``measurements``,
``checkpoint``, ``ensemble``, ``directory`` and ``journal`` write what it leaves behind.  The other
modules are the sub-commands of :mod:`flowmc.cli`, one each.
"""
