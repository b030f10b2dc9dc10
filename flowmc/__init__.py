"""Normalizing flows as exact Markov kernels for lattice field theory.

Importing :mod:`flowmc` is cheap: nothing here imports torch, so that the file tools of the
command line (``flowmc inspect``, ``flowmc convert``) start at once on a login node.  Import the
rooms you need::

    from flowmc.actions import Phi4, Wilson
    from flowmc.kernels import HMC, Independence, Exchange, Cycle
"""

__version__ = "0.1.0"
