"""A user's flow or prior that is wrong is refused by every command, with what is wrong."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flowmc.actions import Phi4, Wilson
from flowmc.actions.theory import describe_theory
from flowmc.cli import main
from flowmc.flows import AffineCouplingFlow, BlockCouplingFlow, GaussianPrior, HaarPrior
from flowmc.flows.base import Chain, Flow
from flowmc.flows.cards.files import save_flow
from flowmc.flows.local.block_gaussian import BlockGaussian
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.models import FlowModel, Prior
from flowmc.flows.verification import JACOBIAN_SIZE, unverified, verify
from flowmc.registry import ConfigError
from tests.run.small_runs import PHI4, write

ACTION = Phi4([4, 4], m2=-1.0, lam=0.5)


class Bend(Flow):
    r"""y_x = a x + b sin(x) at every site, then plus c times a neighbour's, one after the other."""

    transfers_to_other_lattices = True

    def __init__(self, action, *, wrong: str = "", weight: float = 0.3):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.wrong = wrong

    def _log_det(self, x):
        return torch.log1p(self.weight * torch.cos(x.double())).flatten(1).sum(1)

    def forward(self, x, log_density):
        y = x + self.weight * torch.sin(x)
        change = self._log_det(x)
        if self.wrong == "jacobian":
            change = change - 0.15 * self.weight
        if self.wrong == "shape":
            return y.flatten(1), log_density - change
        if self.wrong == "nan":
            change = change * math.nan
        if self.wrong == "no gradient":
            y, change = y.detach(), change.detach() + 0.01
        if self.wrong == "inexact":
            change = change + 0.5
        return y, log_density - change

    def inverse(self, y, log_density):
        x = y.clone()
        for _ in range(60):
            x = y - self.weight * torch.sin(x)
        change = self._log_det(x)
        if self.wrong == "jacobian":
            change = change - 0.15 * self.weight
        if self.wrong == "inverse":
            x = x + 1e-4
        if self.wrong == "sign":
            change = -change
        if self.wrong == "no gradient":
            change = change + 0.01
        return x, log_density + change


class Continuous(Bend):
    log_density_is_exact = False

    def density_error(self, x):
        return torch.zeros(len(x), dtype=torch.float64)


class Detached(Bend):
    """Right, and not differentiable by torch."""

    def forward(self, x, log_density):
        with torch.no_grad():
            return super().forward(x, log_density)


class Wide(Prior):
    def __init__(self, action, *, wrong: bool):
        self.inner, self.wrong = GaussianPrior(action).double(), wrong

    def sample(self, n, rng):
        return self.inner.sample(n, rng)

    def log_prob(self, x):
        return self.inner.log_prob(x) + 0.1 * self.wrong


class Turn(Flow):
    """U(1) angles moved by a sine of their own; or links of SU(2) by a constant one."""

    def forward(self, x, log_density):
        if x.is_complex():
            return 1j * x @ torch.diag(torch.tensor([1.0, -1.0], dtype=x.dtype)), log_density
        y = x + 0.3 * torch.sin(x)
        return y, log_density - torch.log1p(0.3 * torch.cos(x)).flatten(1).sum(1)

    def inverse(self, y, log_density):
        if y.is_complex():
            return -1j * y @ torch.diag(torch.tensor([1.0, -1.0], dtype=y.dtype)), log_density
        x = y.clone()
        for _ in range(60):
            x = y - 0.3 * torch.sin(x)
        return x, log_density + torch.log1p(0.3 * torch.cos(x)).flatten(1).sum(1)


class Block2(BlockCouplingFlow):
    """A user's conditional flow."""

    factor = 1.0

    def forward(self, x, patch, log_density):
        y, moved = super().forward(x, patch, log_density)
        return y, log_density + self.factor * (moved - log_density)


class Block3(Block2):
    factor = 0.5


def local(kind):
    block = Block.of(ACTION, [2, 2])
    torch.manual_seed(2)
    flow = kind(block, layers=2, hidden=[4])
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)
    return LocalFlowModel(block, BlockGaussian(ACTION, block), flow)


def model(**options):
    return FlowModel(GaussianPrior(ACTION), Bend(ACTION, **options))


@pytest.mark.parametrize(
    "build",
    [
        model,
        lambda: Bend(ACTION),
        lambda: Chain([Bend(ACTION), Detached(ACTION)]),
        lambda: model().to(torch.float32),
        lambda: FlowModel(Wide(ACTION, wrong=False), Bend(ACTION)),
        lambda: local(Block2),
    ],
)
def test_right_ones_pass(build):
    verify(build(), ACTION, "here", untrained=True)


@pytest.mark.parametrize("group", ["U(1)", "SU(2)"])
def test_links(group):
    action = Wilson(group, [2, 4], beta=1.0)
    verify(Turn(), action, "here")
    verify(FlowModel(HaarPrior(action), Turn()), action, "here")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(model, wrong="jacobian"), r"Bend: the log-density of forward\(\) .* by 0\.045"),
        (partial(model, wrong="shape"), r"returns shapes \(3, 16\)"),
        (partial(model, wrong="nan"), "no finite log-density"),
        (partial(model, wrong="inverse"), r"inverse\(forward\(x\)\) differs from x by 0\.0001"),
        (partial(model, wrong="sign"), r"log-determinants of forward\(\) and inverse\(\) differ"),
        (partial(model, wrong="no gradient"), r"differs .* by 0\.01: "),
        (lambda: Chain([Bend(ACTION, wrong="inverse")]), "Bend: inverse"),
        (lambda: Continuous(ACTION, wrong="inexact"), r"differ by 0\.5"),
        (lambda: FlowModel(Wide(ACTION, wrong=True), Bend(ACTION)), r"Wide: .* differ by 0\.1$"),
        (lambda: local(Block3), "Block3"),
    ],
)
def test_wrong_ones_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        verify(build(), ACTION, "here")


def test_what_shows_only_beside_the_identity():
    flow = Bend(ACTION, wrong="jacobian", weight=0.0)
    verify(flow, ACTION, "here")
    with pytest.raises(ConfigError, match=r"moved by 0\.01: .*full Jacobian"):
        verify(flow, ACTION, "here", untrained=True)


def test_large_fields_are_held_to_their_inverse():
    large = Phi4([JACOBIAN_SIZE, 2], m2=-1.0, lam=0.5)
    verify(Bend(large, wrong="jacobian"), large, "here")
    with pytest.raises(ConfigError, match=r"inverse\(forward"):
        verify(Bend(large, wrong="inverse"), large, "here")
    assert "has 2048 degrees of freedom" in str(unverified(Bend(large), large))
    assert unverified(Bend(ACTION), ACTION) is None
    assert unverified(AffineCouplingFlow(large), large) is None


def test_what_is_not_compared_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    large = Phi4([JACOBIAN_SIZE, 2], m2=1.0, lam=0.5)
    card = {
        "flow": {"name": f"{__name__}:Bend", "parameters": {}},
        "prior": {"name": "gaussian", "parameters": {}},
        "theory": describe_theory(large),
    }
    path = str(tmp_path / "f.safetensors")
    save_flow(path, FlowModel(GaussianPrior(large), Bend(large)).double(), card)
    trust = ["--trust", __name__]
    assert main(["evaluate", path, "--samples", "8", *trust]) == 0
    assert "Bend was not compared with its log-density" in capsys.readouterr().err
    theory = {"action": "phi4", "lattice": list(large.lattice), "m2": 1.0, "lambda": 0.5}
    tables = {
        "theory": theory,
        "chains": {"count": 1, "seed": 7, "start": "flow"},
        "update": [{"kernel": "independence", "flow": path, "proposals": 1}],
        "run": {"updates": 1, "report": False},
    }
    config = write(tmp_path / "a.toml", tables)
    assert main(["run", config, "--output", str(tmp_path / "out"), *trust]) == 0
    assert "Bend was not compared with its log-density" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "step", "evaluate", "train"])
def test_every_command_refuses(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = f"{__name__}:Bend"
    flow, prior = {"name": name, "wrong": "jacobian"}, {"name": "gaussian"}
    card = {
        "flow": {"name": name, "parameters": {"wrong": "jacobian"}},
        "prior": {"name": "gaussian", "parameters": {}},
        "theory": describe_theory(ACTION),
    }
    path = str(tmp_path / "f.safetensors")
    save_flow(path, model(wrong="jacobian").double(), card)
    tables = {
        **PHI4,
        "chains": {"count": 1, "seed": 7},
        "update": [{"kernel": "independence", "flow": path}],
    }
    if command == "train":
        training = {"objective": "reverse_kl", "steps": 2, "batch": 4, "learning_rate": 0.01}
        tables = {"theory": PHI4["theory"], "flow": flow, "prior": prior, "training": training}
    config = write(tmp_path / "a.toml", tables)
    field = str(tmp_path / "in.npy")
    arguments = {
        "run": ["run", config, "--output", str(tmp_path / "o")],
        "step": ["step", field, str(tmp_path / "out.npy"), "--config", config],
        "evaluate": ["evaluate", path, "--samples", "16"],
        "train": ["train", config, "--output", str(tmp_path / "g.safetensors")],
    }[command]
    if command != "train":  # whose configuration names the module
        arguments += ["--trust", __name__]
    np.save(field, np.zeros((4, 4)))
    assert main(arguments) == 2
    assert "Bend: the log-density of forward() differs" in capsys.readouterr().err
