"""Training over ranks: the same losses, weights and chains as on one, to rounding."""

import functools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.flows.cards.files import read_card, read_tensors
from flowmc.kernels import Info
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training import Ensemble, Objective, Settings, Trainer
from tests.mpi import launch, needs_mpi
from tests.training.train_on_ranks import CASES, HALF, STEPS, exchange, sampler, train_all

PROGRAM = Path(__file__).with_name("train_on_ranks.py")
COMMAND = Path(__file__).with_name("train_with_fault.py")


def on_ranks(count, folder, *what):
    folder.mkdir(exist_ok=True)
    finished = launch(count, PROGRAM, folder, *what)
    assert finished.returncode == 0, finished.stderr
    return dict(np.load(folder / f"losses{count}.npz"))


def largest_difference(one, other):
    assert one.keys() == other.keys()
    worst = {}
    for key in one:
        assert one[key].shape == other[key].shape, key
        if one[key].size:
            scale = np.abs(one[key]).max()
            worst[key] = float(np.abs(one[key] - other[key]).max() / scale)
    return worst


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Return the first half of all trainings on so many ranks, and the folder it has left."""

    @functools.cache
    def half(count):
        folder = tmp_path_factory.mktemp(f"ranks{count}")
        if count == 1:
            return folder, train_all(folder, Communicator())
        return folder, on_ranks(count, folder)

    return half


@needs_mpi
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_ranks_takes_the_same_steps(halves, count):
    (alone, expected), (folder, found) = halves(1), halves(count)
    assert len(expected["sampler: losses"]) == HALF
    for key, difference in largest_difference(expected, found).items():
        # The chains themselves are the same bit for bit.
        assert difference <= (0 if key.endswith("fields") else 1e-10), key
    for number in range(len(CASES)):
        one, _ = read_tensors(alone / f"{number}.safetensors")
        other, _ = read_tensors(folder / f"{number}.safetensors")
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert tensor.shape == other[key].shape and tensor.dtype == other[key].dtype, key
            if key.startswith("objective/"):
                assert torch.equal(tensor, other[key]), key


@needs_mpi
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_training_goes_on_with_another_number_of_ranks(halves, count, tmp_path):
    alone, here = tmp_path / "alone", tmp_path / "here"
    shutil.copytree(halves(1)[0], alone)
    shutil.copytree(halves(3)[0], here)
    expected = train_all(alone, Communicator(), resume=True)
    if count == 1:
        found = train_all(here, Communicator(), resume=True)
    else:
        found = on_ranks(count, here, "resume")
    assert len(expected["sampler: losses"]) == STEPS - HALF
    for key, difference in largest_difference(expected, found).items():
        assert difference <= (0 if key.endswith("fields") else 1e-10), key


@needs_mpi
def test_a_wrong_division_is_seen(halves, tmp_path):
    expected = halves(1)[1]
    found = on_ranks(3, tmp_path, "wrong")
    for case in CASES:
        if "fewer groups" not in case:  # all samples on one rank: its share is the batch
            # Clipping and Adam hide a common factor from the weights, not from the norm.
            ratio = found[f"{case}: losses"][0, 2] / expected[f"{case}: losses"][0, 2]
            assert abs(ratio - 1) > 0.1, case


CONFIG = {
    "sampler": """
[theory]
action = "phi4"
lattice = [4, 4]
m2 = -0.5
lambda = 1.0
[prior]
name = "gaussian"
[flow]
name = "affine_coupling"
layers = 2
hidden = [4]
[training]
steps = 12
batch = 16
evaluate_samples = 3000
""",
    "exchange": """
[theory]
action = "wilson"
group = "U(1)"
lattice = [4, 4]
beta = 1.0
[flow]
name = "residual"
[exchange]
from = {beta = 1.0}
to = {beta = 1.3}
chains = 140
thermalization = 10
[training]
steps = 12
batch = 16
evaluate_samples = 300
""",
}


def flow_train(count, folder, *arguments, fault="none", rank=0, step=0):
    return launch(
        count,
        COMMAND,
        *(fault, rank, step, "train", folder / "c.toml", "--output", folder / "f.safetensors"),
        *arguments,
    )


def write(folder, kind):
    folder.mkdir(exist_ok=True)
    (folder / "c.toml").write_text(CONFIG[kind])
    return folder


def result(folder):
    tensors, _ = read_tensors(folder / "f.safetensors")
    card = read_card(folder / "f.safetensors")
    assert card["training"]["steps"] == 12
    return tensors, card["measured"]


def assert_same_flow(one, other):
    (tensors, measured), (others, others_measured) = result(one), result(other)
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[key], rtol=1e-9, atol=1e-12)
    assert measured.pop("warnings") == others_measured.pop("warnings")
    assert measured == pytest.approx(others_measured, rel=1e-6, abs=1e-9)


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIG)
def test_command(kind, tmp_path):
    one, three = write(tmp_path / "one", kind), write(tmp_path / "three", kind)
    finished = flow_train(1, one)
    assert finished.returncode == 0, finished.stderr
    finished = flow_train(3, three)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("3 ranks on 1 node") == 1
    assert finished.stderr.count("step 12/12") == 1
    assert_same_flow(one, three)
    lines = [json.loads(line) for line in (three / "f.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10]
    again = flow_train(3, three)
    assert again.returncode == 2
    assert again.stderr.count("exists: use --resume") == 1


@needs_mpi
@pytest.mark.parametrize("kind", ["sampler", pytest.param("exchange", marks=pytest.mark.slow)])
def test_a_signal_on_one_rank_stops_all_with_a_checkpoint(kind, tmp_path):
    whole, stopped = write(tmp_path / "whole", kind), write(tmp_path / "stopped", kind)
    assert flow_train(1, whole).returncode == 0
    finished = flow_train(3, stopped, fault="term", rank=1, step=4)
    assert finished.returncode == 128 + signal.SIGTERM
    assert finished.stderr.count("stopped with a checkpoint") == 1
    _, card = read_tensors(stopped / "f.checkpoint.safetensors")
    assert card["checkpoint"]["step"] == 5
    finished = flow_train(2, stopped, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert_same_flow(whole, stopped)


@needs_mpi
def test_an_error_on_one_rank_ends_all(tmp_path):
    folder = write(tmp_path / "failed", "sampler")
    finished = flow_train(3, folder, fault="raise", rank=2, step=4)
    assert finished.returncode != 0
    assert "on rank 2 of 3: planted" in finished.stderr
    assert not (folder / "f.safetensors").exists()
    (folder / "c.toml").write_text(CONFIG["sampler"] + "batches = 3\n")
    finished = flow_train(3, folder)
    assert finished.returncode == 2
    assert finished.stderr.count("unknown key 'batches'") == 1


@needs_mpi
def test_too_many_ranks_are_told(tmp_path):
    folder = write(tmp_path / "idle", "sampler")
    text = CONFIG["sampler"].replace("batch = 16", "batch = 2")
    (folder / "c.toml").write_text(text.replace("steps = 12", "steps = 2"))
    finished = flow_train(3, folder)
    assert finished.returncode == 0, finished.stderr
    assert "1 of 3 ranks have no sample" in finished.stderr


class Two(Communicator):
    """Looks like two ranks, of which only this one exists."""

    size = 2


def test_an_objective_that_cannot_be_shared_is_refused():
    class Own(Objective):
        module = property(lambda self: sampler().module)

        def evaluate(self, n, rng):
            raise AssertionError

        def density_error(self, n, rng):
            raise AssertionError

    with pytest.raises(ConfigError, match="Own does not say how to share its batches among 2"):
        Trainer(Own(), Settings(steps=1, batch=2), communicator=Two())
    Trainer(Own(), Settings(steps=1, batch=2))


@pytest.mark.parametrize(("chains", "sizes"), [(5, [5]), (64, [64]), (150, [64, 64, 22])])
def test_groups_of_chains(chains, sizes):
    ensemble = Ensemble(sampler().action, "x", 1, chains=chains)
    assert ensemble._sizes == sizes and ensemble.groups == len(sizes)
    assert Ensemble(sampler().action, "x", 1, chains=64 * 100).groups <= 16


def test_groups_have_random_numbers_of_their_own():
    ensemble = exchange().ensembles["from"]
    first, second, _ = ensemble.field.split([64, 64, 22])
    assert not bool((first == second).flatten(1).any(1).any())


def test_adaptation_looks_at_all_chains():
    ensemble = exchange().ensembles["from"]
    seen = []
    ensemble.kernel.adapt = lambda info, update: seen.append(info)
    ensemble.advance(1, adapt=True)
    assert isinstance(seen[-1], Info)
    assert seen[-1].values["acceptance_probability"].shape == (150,)
