"""Trains small flows on however many ranks it is started on: FOLDER [resume | wrong].

Writes ``FOLDER/losses<ranks>.npz`` (by rank 0), and checkpoints after half of the steps, from which
``resume`` goes on.  ``wrong`` plants an error: each rank divides by the size of its own share.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from flowmc.actions import Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    Block,
    BlockCouplingFlow,
    BlockGaussian,
    FlowModel,
    GaussianPrior,
    LocalFlowModel,
    ResidualFlow,
    SignMixture,
)
from flowmc.parallel import Communicator, world
from flowmc.training import (
    AlphaTwo,
    Ensemble,
    ExchangeKL,
    ForwardKL,
    LocalKL,
    LogVariance,
    Reinforce,
    ReverseKL,
    Settings,
    Trainer,
)

HALF, STEPS = 5, 8


def sampler(gradient="reparametrised", precision=torch.float64):
    torch.manual_seed(1)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    flow = AffineCouplingFlow(action, layers=4, hidden=[4])
    model = FlowModel(GaussianPrior(action), flow).to(precision)
    return ReverseKL(model, action, gradient=gradient)


def exchange(direction="symmetric", chains=150):
    a, b = (Wilson("U(1)", [4, 4], beta=beta) for beta in (1.0, 1.4))
    flow = ResidualFlow(a, initial_coefficient=0.01)
    options = {"chains": chains, "thermalization": 12, "refresh_every": 2, "steps": 3}
    ends = [Ensemble(s, n, 4, **options) for s, n in ((a, "from"), (b, "to"))]
    return ExchangeKL(flow, *ends, direction=direction)


def with_configurations(make):
    model, action = sampler().model, sampler().action
    options = {"chains": 100, "thermalization": 12, "refresh_every": 2, "steps": 3}
    return make(model, action, Ensemble(action, "target", 4, **options))


def mixture():
    model = sampler().model
    return ReverseKL(SignMixture(model.prior, model.flow), sampler().action)


def annealed():
    return AlphaTwo(sampler().model, sampler().action, annealing_steps=2, leapfrog_steps=2)


def forward():
    return with_configurations(lambda model, action, ensemble: ForwardKL(model, ensemble))


def local():
    torch.manual_seed(1)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    block = Block.of(action, [2, 3])
    flow = BlockCouplingFlow(block, layers=2, hidden=[3])
    model = LocalFlowModel(block, BlockGaussian(action, block), flow).double()
    options = {"chains": 100, "thermalization": 12, "refresh_every": 2, "steps": 3}
    return LocalKL(model, Ensemble(action, "target", 4, **options))


CASES = {
    "sampler": (sampler, 32),
    "uneven": (sampler, 7),
    "fewer samples than ranks": (sampler, 2),
    "path": (lambda: sampler("path"), 8),
    "soap": (sampler, 32),
    "path, fewer samples than ranks": (lambda: sampler("path"), 2),
    # Batches, chains or groups that do not suffice for three ranks.
    "reinforce": (lambda: Reinforce(sampler().model, sampler().action), 2),
    "log variance": (lambda: with_configurations(LogVariance), 3),
    "alpha two": (annealed, 40),
    "mixture": (mixture, 2),
    "forward": (forward, 40),
    "local": (local, 40),
    "exchange": (exchange, 40),
    "exchange, fewer groups than ranks": (lambda: exchange(chains=50), 30),
    "exchange forward": (lambda: exchange("forward"), 9),
}


def assert_equal(ranks, values):
    digests = set(ranks.allgather(hashlib.sha256(values.tobytes()).hexdigest()))
    assert len(digests) == 1, "the ranks have different weights"


def train(case, ranks, checkpoint, *, resume=False, wrong=False):
    """Train to the middle, or from there to the end; return losses and weights."""
    make, batch = CASES[case]
    objective = make()
    settings = Settings(
        steps=STEPS,
        batch=batch,
        optimiser="soap" if case == "soap" else "adam",
        learning_rate=1e-2,
        seed=3,
        gradient_clip=2.0,
    )
    losses = []
    trainer = Trainer(
        objective,
        settings,
        checkpoint=str(checkpoint),
        progress=lambda event: losses.append((event.loss, event.ess, event.gradient_norm)),
        communicator=ranks,
    )
    if wrong:
        evaluate = objective.evaluate

        def divided_by_its_own(n, rng):
            found = evaluate(n, rng)
            factor = n / max(1, len(found.log_weights))
            return dataclasses.replace(found, surrogate=found.surrogate * factor)

        objective.evaluate = divided_by_its_own
    if resume:
        trainer.load(str(checkpoint))
    # Only one rank asks to stop, and all do.
    trainer.run(stop=lambda: ranks.rank == ranks.size - 1 and trainer.step == HALF)
    weights = np.concatenate([p.detach().double().numpy().ravel() for p in trainer.weights])
    assert_equal(ranks, weights)
    # Another processor may round a step differently; a checkpoint makes all ranks equal again.
    with torch.no_grad():
        trainer.weights[0].add_(1e-9 * ranks.rank)
    trainer.save()
    assert_equal(ranks, trainer.weights[0].detach().numpy())
    found = {"losses": np.array(losses), "weights": weights}
    if isinstance(objective, ExchangeKL):
        ensemble = objective.ensembles["to"]
    else:
        ensemble = getattr(objective, "ensemble", None)
    if ensemble is not None:
        found |= {"fields": ensemble.field.numpy(), "drawn fields": ensemble.draw(9).numpy()}
    return found


def train_all(folder, ranks, *, resume=False, wrong=False):
    """Return all numbers of all cases, by case and kind."""
    found = {}
    for number, case in enumerate(CASES):
        checkpoint = folder / f"{number}.safetensors"
        numbers = train(case, ranks, checkpoint, resume=resume, wrong=wrong)
        found |= {f"{case}: {kind}": values for kind, values in numbers.items()}
    return found


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2:]
    ranks = world()
    assert isinstance(ranks, Communicator)
    results = train_all(where, ranks, resume="resume" in what, wrong="wrong" in what)
    if ranks.rank == 0:
        np.savez(where / f"losses{ranks.size}.npz", **results)
