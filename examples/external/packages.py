"""Updates by functions of other Python packages, in the two shapes that their fields have.

GPT keeps one lattice per direction, whose numbers ``U[mu][:]`` are an array (sites, row, column)
with x fastest and t slowest.  PyQUDA keeps one field, whose numbers in this order are an array (mu,
t, z, y, x, row, column).  Where the packages are not, the program hmc.py stands for them.
"""

import hmc
import numpy as np

from flowmc.kernels import NumpyKernel, Reported


def one_trajectory(links, beta, seed):
    """Return links (mu, t, z, y, x, row, column) after a trajectory, dH, and whether it is taken.

    With a package this is a program of its own, say of dynamical fermions.
    """
    theory, rng = hmc.Theory(links, beta, 1.0, None), np.random.default_rng(seed)
    momentum = theory.momentum(links.shape, rng)
    before = theory.kinetic(momentum) + theory.action(links)
    end, last = hmc.trajectory(theory, links, momentum, length=1.0, steps=12)
    change = theory.kinetic(last) + theory.action(end) - before
    accepted = rng.random() < np.exp(min(0.0, -change))
    return (end if accepted else links), change, accepted


class Gpt(NumpyKernel):
    """A trajectory in GPT.

    Args:
        action: the theory.
        beta: of the program.
    """

    name = "gpt"
    title = "trajectory in GPT"
    reports = (Reported("energy_error", "ΔH"),)

    def __init__(self, action, *, beta: float):
        super().__init__(action)
        self.beta = beta

    def update(self, field, request):
        *sites, directions, rows, columns = field.shape
        arrays = [field[..., mu, :, :].reshape(-1, rows, columns) for mu in range(directions)]
        # With GPT: U = g.qcd.gauge.unit(grid), and U[mu][:] = arrays[mu] before the trajectory,
        # arrays[mu] = U[mu][:] after it; request.seed goes into g.random.
        links = np.stack([array.reshape(*sites, rows, columns) for array in arrays])
        links, change, accepted = one_trajectory(links, self.beta, request.seed)
        arrays = [links[mu].reshape(-1, rows, columns) for mu in range(directions)]
        lattices = [array.reshape(*sites, rows, columns) for array in arrays]
        result = np.stack(lattices, axis=len(sites))
        return result, {"energy_error": change, "accepted": accepted}


class PyQuda(NumpyKernel):
    """A trajectory in PyQUDA.

    Args:
        action: the theory.
        beta: of the program.
    """

    name = "pyquda"
    title = "trajectory in PyQUDA"
    reports = (Reported("energy_error", "ΔH"),)

    def __init__(self, action, *, beta: float):
        super().__init__(action)
        self.beta = beta

    def update(self, field, request):
        dimensions = field.ndim - 3
        array = np.ascontiguousarray(np.moveaxis(field, dimensions, 0))
        # With PyQUDA: gauge = LatticeGauge(latt_info, evenodd(array, [1, 2, 3, 4])) before the
        # trajectory, array = gauge.lexico() after it.
        array, change, accepted = one_trajectory(array, self.beta, request.seed)
        result = np.ascontiguousarray(np.moveaxis(array, 0, dimensions))
        return result, {"energy_error": change, "accepted": accepted}
