"""The contracts of parts as checks that run on any of them, yours or ours.

One function for each kind of part.  It returns nothing, or raises a :class:`ContractError` that
names the part and what of its contract does not hold::

    from flowmc.testing import check_action, check_kernel

    def test_my_action():
        check_action(MyAction([4, 6], coupling=0.3))

The checks draw a few small fields with fixed random numbers and compare in double precision: give
small lattices with extents that all differ.  Flows have more of them (:func:`flowmc.flows
.check_equivariance` for symmetries of your own), and ``flowmc`` runs
:func:`flowmc.flows.verification.verify` on your flows by itself.
"""

from flowmc.testing.actions import check_action, check_theory_table
from flowmc.testing.base import ContractError, gauge_transformation, translation
from flowmc.testing.exact import p_value_of_change, statistics_of
from flowmc.testing.kernels import check_kernel, check_steps
from flowmc.testing.models import check_flow, check_model
from flowmc.testing.objectives import check_objective
from flowmc.testing.observables import check_observable
from flowmc.testing.vector_fields import check_vector_fields

__all__ = [
    "ContractError",
    "check_action",
    "check_flow",
    "check_kernel",
    "check_model",
    "check_objective",
    "check_observable",
    "check_steps",
    "check_theory_table",
    "check_vector_fields",
    "gauge_transformation",
    "p_value_of_change",
    "statistics_of",
    "translation",
]
