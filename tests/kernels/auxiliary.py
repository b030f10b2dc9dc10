r"""A toy of dynamical fermions: two sites, :math:`M = D D^T`, :math:`D = 1 + g \phi^2 - 2\kappa`.

.. math:: S(\phi, \chi) = \tfrac12 \sum_x \phi_x^2 + \tfrac12 |D(\phi)^{-1} \chi|^2

with a real pseudofermion chi: the density of phi is :math:`e^{-\phi^2/2}\, |\det D(\phi)|`.
"""

import torch

from flowmc.actions import Action


def matrix(field, action):
    diagonal = torch.diag_embed(1 + action.g * field.square())
    return diagonal - 2 * action.kappa * (1 - torch.eye(2, dtype=field.dtype))


class Toy(Action):
    name = "toy"

    def __init__(self, lattice, *, g: float = 1.0, kappa: float = 0.3):
        self.lattice, self.g, self.kappa = tuple(lattice), g, kappa
        self.parameters = {"g": g, "kappa": kappa}

    def refresh(self, state, rng):
        eta = torch.randn(state.field.shape, dtype=state.field.dtype, generator=rng)
        chi = (matrix(state.field, self) @ eta[..., None]).squeeze(-1)
        return state.with_carried("toy.chi", chi)

    def given(self, state):
        return AtChi(self, state.carried["toy.chi"].value)


class AtChi(Action):
    def __init__(self, toy, chi):
        self.toy, self.chi = toy, chi
        self.lattice, self.parameters = toy.lattice, toy.parameters

    def __call__(self, field):
        eta = torch.linalg.solve(matrix(field, self.toy), self.chi[..., None]).squeeze(-1)
        return 0.5 * (field.square() + eta.square()).sum(1).double()


class Marginal(Toy):
    """Where the determinant can be computed, all kernels take it."""

    def __call__(self, field):
        determinant = torch.linalg.det(matrix(field, self)).abs()
        return 0.5 * field.square().sum(1).double() - determinant.log().double()


class Stale(Toy):
    """Planted: noise of another matrix."""

    def refresh(self, state, rng):
        eta = torch.randn(state.field.shape, dtype=state.field.dtype, generator=rng)
        return state.with_carried("toy.chi", eta)


def square(field, action):
    return field.square().mean(1)
