"""Work over MPI ranks: who owns which chains and replicas, and how they talk.

Everything runs on one rank through the same code; MPI is touched only in processes that a launcher
(``mpirun``, ``srun``) has started.
"""

from flowmc.parallel.communicator import CollectiveError, Communicator, Pending
from flowmc.parallel.world import world

__all__ = ["CollectiveError", "Communicator", "Pending", "world"]
