"""ln Z of a theory, by every estimator, from objects; ``flowmc free-energy`` is a layer above.

:func:`from_flow` takes a model and samples of the target, :func:`along_line` ensembles along a line
of couplings, :func:`by_process` annealing and stochastic flows; fields are on the CPU.  ``measure``
makes these objects of a configuration (``config``); what has been measured is kept in ``rows``, and
by ``progress`` in a file.
"""

from flowmc.free_energy.driven import by_process
from flowmc.free_energy.flow import from_flow
from flowmc.free_energy.line import along_line
from flowmc.free_energy.outcome import Outcome
from flowmc.free_energy.sources import Chains

__all__ = ["Chains", "Outcome", "along_line", "by_process", "from_flow"]
