"""Flow files: round trip, the card without torch, and every error."""

import json
import os
import subprocess
import sys

import pytest
import torch

from flowmc import zoo
from flowmc.actions import Phi4, Wilson
from flowmc.flows import AffineCouplingFlow, FlowModel, FreeFieldPrior, GaussianPrior
from flowmc.flows.base import Inverse
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.files import (
    FlowFileError,
    atomic_save,
    load_flow,
    load_local_flow,
    read_card,
    save_flow,
)
from flowmc.flows.cards.matching import check_flow_fits, orient
from flowmc.random import stream
from flowmc.registry import ConfigError

THEORY = {
    "action": "phi4",
    "group": "R",
    "lattice": [4, 4],
    "couplings": {"m2": -0.5, "lambda": 1.0},
}
FLOW = {"name": "affine_coupling", "parameters": {"layers": 2, "hidden": [2]}}


def phi4(**couplings):
    return Phi4(couplings.pop("lattice", [4, 4]), **{"lam": 1.0, "m2": -0.5, **couplings})


def coupling_flow():
    torch.manual_seed(5)
    return AffineCouplingFlow(phi4(), layers=2, hidden=[2]).to(torch.float64)


@pytest.fixture
def sampler(tmp_path):
    path = tmp_path / "sampler.safetensors"
    model = FlowModel(FreeFieldPrior(phi4(), m2=0.3), coupling_flow()).to(torch.float64)
    prior = {"name": "free_field", "parameters": {"m2": 0.3}}
    save_flow(path, model, {"flow": FLOW, "prior": prior, "theory": THEORY})
    return path, model


@pytest.fixture
def exchange(tmp_path):
    path = tmp_path / "exchange.safetensors"
    card = {
        "flow": FLOW,
        "theory": THEORY,
        "from": {"m2": -0.5, "lambda": 1.0},
        "to": {"m2": 0.5, "lambda": 1.0},
    }
    save_flow(path, coupling_flow(), card)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(dtype, tmp_path):
    path = tmp_path / "f.safetensors"
    model = FlowModel(GaussianPrior(phi4(), scale=0.5), coupling_flow()).to(dtype)
    prior = {"name": "gaussian", "parameters": {"scale": 0.5}}
    save_flow(path, model, {"flow": FLOW, "prior": prior, "theory": THEORY})
    loaded = load_flow(path)
    assert loaded.model.fingerprint() == model.fingerprint()
    x, log_q = loaded.model.sample(3, stream(1, 0, "x"))
    expected, expected_log_q = model.sample(3, stream(1, 0, "x"))
    assert x.dtype == dtype
    assert torch.equal(x, expected) and torch.equal(log_q, expected_log_q)
    assert loaded.card["precision"] == (64 if dtype == torch.float64 else 32)
    assert loaded.card["parameters"] == sum(p.numel() for p in model.parameters())


def test_equal_flows_make_equal_files(sampler, tmp_path):
    path, model = sampler
    other = tmp_path / "again.safetensors"
    save_flow(other, model, read_card(path))
    assert other.read_bytes() == path.read_bytes()


def test_card_is_read_without_torch(sampler):
    path, _ = sampler
    script = (
        "import json, struct, sys\n"
        f"data = open({str(path)!r}, 'rb').read()\n"
        "(length,) = struct.unpack('<Q', data[:8])\n"
        "card = json.loads(json.loads(data[8:8 + length])['__metadata__']['flowmc'])\n"
        "from flowmc import zoo\n"
        "zoo.zoo_list()\n"
        "assert 'torch' not in sys.modules\n"
        "print(card['kind'], card['format'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert result.stdout == "sampler 1\n", result.stderr


def test_sampler_of_another_theory_is_refused(sampler):
    loaded = load_flow(sampler[0])
    card, flow = loaded.card, loaded.flow
    check_flow_fits(card, flow, phi4())
    check_flow_fits(card, flow, phi4(lattice=[8, 6]))
    check_flow_fits(card, flow, phi4(m2=0.0), same_couplings=False)
    for action in (phi4(m2=0.0), phi4(lattice=[4, 4, 4]), Wilson("U(1)", [4, 4], beta=1.0)):
        with pytest.raises(FlowFileError, match=r"a flow for phi4 on 4x4 .* but the theory is"):
            check_flow_fits(card, flow, action)
    with pytest.raises(FlowFileError, match=r"with m2 = -0.5, lambda = 1, but.*kappa"):
        check_flow_fits(card, flow, phi4(m2=None, kappa=0.2))


def test_flow_moves_to_other_lattices_if_it_can(sampler, monkeypatch):
    path, model = sampler
    loaded = load_flow(path, lattice=[6, 8])
    assert loaded.model.sample(2, stream(1, 0, "x"))[0].shape == (2, 6, 8)
    for mine, theirs in zip(model.flow.parameters(), loaded.flow.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(FlowFileError, match="trained on a 4x4 lattice and cannot be used on 4x4x4"):
        load_flow(path, lattice=[4, 4, 4])
    monkeypatch.setattr(AffineCouplingFlow, "transfers_to_other_lattices", False)
    with pytest.raises(FlowFileError, match="cannot be used on 6x8"):
        load_flow(path, lattice=[6, 8])
    with pytest.raises(FlowFileError, match="but the theory is phi4 on 6x8"):
        check_flow_fits(read_card(path), None, phi4(lattice=[6, 8]))


def test_exchange_flow_is_oriented(exchange):
    loaded = load_flow(exchange)
    low, high = loaded.ends
    assert (low.parameters["m2"], high.parameters["m2"]) == (-0.5, 0.5)
    assert orient(loaded.card, loaded.flow, low, high) is loaded.flow
    reversed_flow = orient(loaded.card, loaded.flow, high, low)
    assert isinstance(reversed_flow, Inverse) and reversed_flow.flow is loaded.flow
    with pytest.raises(
        FlowFileError, match=r"carries phi4 .*m2 = -0.5.* to phi4 .*m2 = 0.5.*, but .*m2 = 0.7"
    ):
        orient(loaded.card, loaded.flow, low, phi4(m2=0.7))


def test_kinds_are_not_mixed_up(sampler, exchange):
    with pytest.raises(FlowFileError, match="proposals need a sampler"):
        check_flow_fits(read_card(exchange), None, phi4())
    loaded = load_flow(sampler[0])
    with pytest.raises(FlowFileError, match="is a sampler"):
        orient(loaded.card, loaded.flow, phi4(), phi4(m2=0.5))
    with pytest.raises(FlowFileError, match="one theory, not two"):
        _ = loaded.ends
    with pytest.raises(ValueError, match="card says 'exchange'"):
        save_flow(sampler[0], sampler[1], {"kind": "exchange"})


def test_damaged_and_foreign_files_are_refused(sampler, tmp_path):
    path, _ = sampler
    with pytest.raises(FlowFileError, match="there is no flow file"):
        load_flow(tmp_path / "nowhere.safetensors")
    with pytest.raises(FlowFileError, match="cannot read"):
        load_flow(tmp_path)
    other = tmp_path / "other.safetensors"
    for content in (b"", b"text that is long enough for a header", path.read_bytes()[:300]):
        other.write_bytes(content)
        with pytest.raises(FlowFileError, match="not a flow file"):
            load_flow(other)
    other.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FlowFileError, match="damaged"):
        load_flow(other)
    atomic_save(other, {"a": torch.zeros(1)}, {"checkpoint": {}})
    with pytest.raises(FlowFileError, match="training checkpoint"):
        load_flow(other)
    card = read_card(path)
    for change, message in [
        ({"format": 99}, "format 99"),
        ({"prior": None}, "lacks prior"),
        ({"flow": {**FLOW, "parameters": {"layers": 3, "hidden": [2]}}}, "do not fit the flow"),
        ({"flow": {**FLOW, "parameters": {"layerz": 3}}}, "layerz"),
        ({"theory": {**THEORY, "action": "phi6"}}, "phi6"),
    ]:
        changed = {k: v for k, v in {**card, **change}.items() if v is not None}
        atomic_save(other, sampler[1].state_dict(), changed)
        with pytest.raises(ConfigError, match=message):
            load_flow(other)


def test_failed_write_keeps_the_old_file(sampler, monkeypatch):
    path, model = sampler
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_flow(path, model, read_card(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_zoo(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", tmp_path / "models")
    with pytest.raises(ConfigError, match="zoo of this installation is empty"):
        zoo.path("zoo:phi4_4x4")
    zoo.MODELS.mkdir()
    (zoo.MODELS / "phi4_4x4.safetensors").write_bytes(sampler[0].read_bytes())
    (zoo.MODELS / "phi4_4x4.json").write_text(json.dumps(read_card(sampler[0])))
    assert list(zoo.zoo_list()) == ["phi4_4x4"]
    assert zoo.card("zoo:phi4_4x4")["kind"] == "sampler"
    assert load_flow("zoo:phi4_4x4").model.fingerprint() == sampler[1].fingerprint()
    with pytest.raises(ConfigError, match="did you mean 'phi4_4x4'"):
        load_flow("zoo:phi4_4x5")


@pytest.mark.parametrize("name", sorted(zoo.zoo_list()))
def test_every_flow_of_the_zoo_loads(name):
    load = load_local_flow if zoo.card(name)["kind"] == "local" else load_flow
    assert load(f"zoo:{name}").card == zoo.card(name)


def needs_more(lattice, extra):
    return extra


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "missing key 'name'"),
        ({"name": "affine"}, r"\[flow\]: unknown flow 'affine'; did you mean 'affine_coupling'"),
        ({"name": "affine_coupling", "layer": 3}, "unknown key 'layer'; did you mean 'layers'"),
        ({"name": "affine_coupling", "layers": "many"}, "layers = 'many'"),
        ({"name": "affine_coupling", "layers": 0}, r"^\[flow\]: .*layers"),
        ({"name": "pathlib:Path"}, "gives no Flow"),
        ({"name": f"{__name__}:needs_more"}, "takes 'extra' by position|cannot load"),
    ],
)
def test_flow_tables_are_validated(table, message):
    with pytest.raises(ConfigError, match=message):
        build_flow(table, phi4())


def test_prior_of_another_group_is_refused():
    with pytest.raises(ConfigError, match=r"^\[prior\]: "):
        build_prior({"name": "haar"}, phi4())
