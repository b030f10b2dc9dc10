"""Actions in the variables of a flow, and kernels of these applied to the field."""

import pytest
import torch
from torch import Tensor

from flowmc.actions import Phi4, Wilson, check_force
from flowmc.flows import Flow, ResidualFlow
from flowmc.flows.base import Identity
from flowmc.kernels import HMC, InVariables
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.testing import ContractError, check_kernel


class Sinh(Flow):
    """phi = sinh z on every site, d phi / dz = cosh z; ``share`` of the Jacobian is counted."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        return x.sinh(), log_density - self.share * x.cosh().log().flatten(1).sum(1).double()

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        x = y.asinh()
        return x, log_density + self.share * x.cosh().log().flatten(1).sum(1).double()


class Lossy(Sinh):
    """Comes back from positive means only."""

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        x, log_density = super().inverse(y, log_density)
        lost = y.flatten(1).mean(1) < 0
        return x, torch.where(lost, torch.nan, log_density)


PHI4 = Phi4([2, 2], m2=-1.0, lam=1.0)


def kernel(flow):
    return InVariables(HMC(PHI4.transformed(flow), trajectory=1.0, steps=3))


def test_hmc_in_other_variables_leaves_the_density_invariant():
    check_kernel(lambda: kernel(Sinh()), PHI4)
    with pytest.raises(ContractError, match="invariant"):
        check_kernel(lambda: kernel(Sinh(0.5)), PHI4)


@pytest.mark.parametrize("group", ["U(1)", "SU(2)"])
def test_forces(group):
    rng = stream(1, 0, "test")
    action = Wilson(group, [4, 4], beta=2.0)
    flow = ResidualFlow(action, sweeps=1, initial_coefficient=0.1).requires_grad_(False)
    for theory, f in ((PHI4, Sinh()), (action, flow)):
        z = theory.hot(2, rng)
        transformed = theory.transformed(f)
        assert check_force(transformed, z, rng) < 1e-6
        assert not torch.allclose(transformed(z), theory(z))
        same = theory.transformed(Identity())
        assert torch.allclose(same(z), theory(z), rtol=1e-12)
        assert (same.force(z) - theory.force(z)).abs().max() < 1e-12
    assert transformed.at(beta=1.0).action.beta == 1.0


def test_a_chain_stays_where_the_flow_has_no_inverse():
    lossy = kernel(Lossy())
    field = PHI4.hot(64, stream(2, 0, "test"))
    rng = stream(3, 0, "test")
    state = lossy.init(field)
    for _ in range(5):
        state, info = lossy.step(state, rng)
    lost = field.flatten(1).mean(1) < 0
    moved = (state.field != field).flatten(1).any(1)
    assert torch.equal(state.field[lost], field[lost]) and bool(moved[~lost].any())
    assert not bool((state.field[moved].flatten(1).mean(1) < 0).any())
    assert not bool(info.is_accepted[lost].any())


def test_what_cannot_be_transformed():
    flow = Sinh()
    flow.log_density_is_exact = False
    with pytest.raises(ValueError, match="no exact Jacobian"):
        PHI4.transformed(flow)
    with pytest.raises(ConfigError, match="nothing to map back"):
        InVariables(HMC(PHI4))
