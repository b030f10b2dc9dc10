"""Flow files of others: whatever they say, one sentence, and nothing is imported for it."""

import json
import random
import struct
import sys

import pytest
import torch

from flowmc import registry, zoo
from flowmc.cli import main
from flowmc.flows.cards.files import load_flow, load_local_flow, read_card, save_flow
from flowmc.registry import ConfigError
from tests.run.config_mutations import mutated
from tests.run.small_runs import config, write


def some_flows():
    """Return flow files of every kind in the zoo, the smallest of each."""
    smallest = {}
    for name, card in zoo.zoo_list().items():
        path = zoo.path(f"zoo:{name}")
        key = card["kind"], card["flow"]["name"], card.get("prior", {}).get("name")
        if key not in smallest or path.stat().st_size < smallest[key].stat().st_size:
            smallest[key] = path
    return sorted(smallest.values())


FLOWS = some_flows()


def load(path):
    kind = read_card(path).get("kind")
    return load_local_flow(path) if kind == "local" else load_flow(path)


def with_card(data, card):
    """Return the bytes of a flow file with another card."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["flowmc"] = json.dumps(card, default=str)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damaged(data, draw):
    """Return a flow file with changed bytes, mostly of its header, or of another length."""
    (length,) = struct.unpack("<Q", data[:8])
    changed = bytearray(data)
    kind = draw.random()
    if kind < 0.2:
        del changed[draw.randrange(len(changed)) :]
    elif kind < 0.3:
        changed[:8] = struct.pack("<Q", draw.choice([0, 1, length - 1, length + 8, 10**8, 2**63]))
    else:
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(8, 8 + length)] = draw.choice(b'"{}[]:,0129eE.-ntx\\ \xff\0')
    return bytes(changed)


def failures_of(source, target, numbers):
    data, found = source.read_bytes(), []
    card = read_card(source)
    for number in numbers:
        draw = random.Random(f"{source.name} {number}")
        if number % 2:
            said, content = "bytes", damaged(data, draw)
        else:
            other, said = mutated(card, draw)
            content = with_card(data, other)
        target.write_bytes(content)
        try:
            load(target)
        except ConfigError as error:
            text = str(error)
            if len(text) > 3000 or "\n" in text:
                found.append(f"{source.name} {number} {said}: message {text[:300]!r}")
        except Exception as error:
            found.append(f"{source.name} {number} {said}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("source", FLOWS, ids=lambda path: path.stem)
def test_mutated_flow_files(source, tmp_path):
    assert not failures_of(source, tmp_path / "f.safetensors", range(20))


@pytest.mark.slow
@pytest.mark.parametrize("source", FLOWS, ids=lambda path: path.stem)
def test_many_mutated_flow_files(source, tmp_path, share):
    assert not failures_of(source, tmp_path / "f.safetensors", range(20, 1500 // share))


@pytest.mark.slow
@pytest.mark.parametrize("source", FLOWS, ids=lambda path: path.stem)
def test_mutated_cards_are_evaluated_or_refused(source, tmp_path, capsys):
    """Through the command, with all that it reads of a card."""
    data, card, target = source.read_bytes(), read_card(source), tmp_path / "f.safetensors"
    for number in range(60):
        other, said = mutated(card, random.Random(f"evaluate {source.name} {number}"))
        target.write_bytes(with_card(data, other))
        status = main(["evaluate", str(target), "--samples", "4", "--batch", "4", "--json"])
        assert status in (0, 1, 2), said
        printed = capsys.readouterr()
        if status:
            assert printed.out == "" and printed.err.count("\n") == 1, said


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = FLOWS[0]
    loaded = load(source)
    module = loaded.model if loaded.model is not None else loaded.flow
    with torch.no_grad():
        next(iter(module.parameters())).view(-1)[0] = float("nan")
    save_flow(tmp_path / "f.safetensors", module, loaded.card)
    with pytest.raises(ConfigError, match="is not finite"):
        load(tmp_path / "f.safetensors")


PLANTED = """
from pathlib import Path
Path({proof!r}).write_text("imported")
from flowmc.actions import Phi4
from flowmc.flows import AffineCouplingFlow, GaussianPrior
class Action(Phi4):
    name = "planted"
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module in the path that leaves a proof of being imported."""
    proof = tmp_path / "proof"
    (tmp_path / "planted_module.py").write_text(PLANTED.format(proof=str(proof)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_TRUSTED", {"flowmc"})
    yield proof
    sys.modules.pop("planted_module", None)


def sampler_of_phi4():
    for name, card in zoo.zoo_list().items():
        names = [card[key].get("name") for key in ("flow", "prior") if key in card]
        if names == ["affine_coupling", "gaussian"] and card["theory"]["action"] == "phi4":
            return zoo.path(f"zoo:{name}")
    return None


def planted_cards(card):
    """Return cards that name the module at every place where a card names a component."""
    name = "planted_module:AffineCouplingFlow"
    return {
        "flow": {**card, "flow": {**card["flow"], "name": name}},
        "prior": {**card, "prior": {**card["prior"], "name": "planted_module:GaussianPrior"}},
        "action": {**card, "theory": {**card["theory"], "action": "planted_module:Action"}},
        "base": {
            **card,
            "prior": {
                "name": "super_resolution",
                "parameters": {
                    "m2": 1.0,
                    "base": {
                        "prior": {"name": "planted_module:GaussianPrior", "parameters": {}},
                        "flow": {"name": "identity", "parameters": {}},
                    },
                },
            },
        },
    }


@pytest.mark.parametrize("where", ["flow", "prior", "action", "base"])
def test_no_module_is_imported_because_a_card_names_it(where, planted, tmp_path, capsys):
    source = sampler_of_phi4()
    if source is None:
        pytest.skip("the zoo has no such flow")
    card = read_card(source)
    theory = card["theory"]
    target = tmp_path / "f.safetensors"
    target.write_bytes(with_card(source.read_bytes(), planted_cards(card)[where]))
    tables = config(
        theory={"action": "phi4", "lattice": theory["lattice"], **theory["couplings"]},
        run={"updates": 2, "thermalization": 0, "report": False},
    )
    tables["update"] = [{"kernel": "independence", "flow": str(target)}]
    written = write(tmp_path / "a.toml", tables)
    free = {
        "theory": tables["theory"],
        "free_energy": {"method": "q", "seed": 1, "samples": 4},
        "flow": {"file": str(target)},
    }
    training = {
        "theory": tables["theory"],
        "flow": {"name": "affine_coupling", **card["flow"]["parameters"]},
        "prior": {"name": "gaussian"},
        "training": {"steps": 1, "batch": 2, "start_from": str(target)},
    }
    for words in (
        ["evaluate", str(target), "--samples", "4"],
        ["run", written, "--output", str(tmp_path / "out")],
        ["free-energy", write(tmp_path / "f.toml", free), "--output", str(tmp_path / "free")],
        ["train", write(tmp_path / "t.toml", training), "--output", str(tmp_path / "t")],
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert "importing it would run the code of 'planted_module'" in said, words
        assert said.count("\n") == 1 and "--trust planted_module" in said
        assert not planted.exists(), words
    if where != "base":
        trusted = ["evaluate", str(target), "--samples", "4", "--trust", "planted_module"]
        assert main(trusted) == 0
        assert planted.exists()


def test_what_the_own_configuration_names_may_be_named_by_a_card(planted, tmp_path, capsys):
    source = sampler_of_phi4()
    if source is None:
        pytest.skip("the zoo has no such flow")
    card = read_card(source)
    target = tmp_path / "f.safetensors"
    target.write_bytes(with_card(source.read_bytes(), planted_cards(card)["action"]))
    theory = {"action": "planted_module:Action", "lattice": card["theory"]["lattice"]}
    own = write(tmp_path / "c.toml", {"theory": theory | card["theory"]["couplings"]})
    assert main(["evaluate", str(target), "--samples", "4", "--config", own]) == 0
    assert planted.exists()


def test_a_run_directory_of_others_imports_nothing(planted, tmp_path, capsys):
    run = tmp_path / "run"
    tables = config(run={"save_every": 5})
    tables["ensemble"] = {"format": "hdf5"}
    assert main(["run", write(tmp_path / "a.toml", tables), "--output", str(run)]) == 0
    text = (run / "config.toml").read_text()
    for names in (f'"{tables["theory"]["action"]}"', '"hmc"'):
        assert names in text
        text = text.replace(names, '"planted_module:Action"')
    (run / "config.toml").write_text(text)
    capsys.readouterr()
    correlate = {"ensemble": {"run": str(run)}, "target": [{"kappa": 0.21}]}
    correlate["measure"] = {"observables": ["phi2"]}
    free = {
        "theory": config()["theory"],
        "free_energy": {"method": "p", "seed": 1},
        "flow": {"file": str(FLOWS[0])},
        "ensemble": {"run": str(run)},
    }
    for words in (
        ["report", str(run)],
        ["report", str(run), "--json"],
        ["zoo"],
        ["status", str(run)],
        ["correlate", write(tmp_path / "c.toml", correlate), "--output", str(tmp_path / "c")],
        ["free-energy", write(tmp_path / "f.toml", free), "--output", str(tmp_path / "f")],
    ):
        assert main(words) in (0, 1, 2), words
        assert not planted.exists(), words
    said = capsys.readouterr().err
    assert "Traceback" not in said and "--trust planted_module" in said
    resumed = ["run", str(tmp_path / "a.toml"), "--output", str(run), "--resume"]
    assert main(resumed) == 2
    assert not planted.exists()
