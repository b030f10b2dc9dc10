r"""Vector fields on the fields of a theory, for derivatives with respect to couplings.

A vector field v moves every degree of freedom, :math:`U \to e^{\lambda v(U)} U` or
:math:`\phi \to \phi + \lambda v(\phi)`.  For any of them the derivative of an expectation value is

.. math:: \frac{d\langle O\rangle}{d\lambda} = \langle v \cdot \partial O \rangle
          + \mathrm{cov}\Big(O,\; -\frac{\partial S}{\partial\lambda} - v \cdot \partial S
          + \mathrm{div}\,v\Big),

with v = 0 for plain reweighting; the closer the bracket is to a constant, the smaller the noise
(see :mod:`flowmc.estimators.linear_response`).
"""

from flowmc.vector_fields.base import (
    VectorFields,
    check_divergence,
    combine,
    directional_derivative,
)
from flowmc.vector_fields.kernels import KernelFields
from flowmc.vector_fields.krylov import KrylovFields
from flowmc.vector_fields.loops import LoopFields

__all__ = [
    "KernelFields",
    "KrylovFields",
    "LoopFields",
    "VectorFields",
    "check_divergence",
    "combine",
    "directional_derivative",
]
