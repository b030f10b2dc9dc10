"""Chains, from a configuration to a run directory.

``config`` reads and validates, ``assembly`` builds kernels and flows, ``start`` makes the first
fields, ``rehearsal`` finds out what will be reported, ``opening`` starts or continues a directory,
``runner`` is the loop; :mod:`~flowmc.chains.storage` writes what it leaves behind.
"""
