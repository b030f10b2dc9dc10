"""The training loop: an optimiser on an objective, with checkpoints that continue bit for bit.

Every step draws from the stream of its own index and the learning rate is a function of the step,
so weights, optimiser moments and the objective's ensembles are the whole state of a training.

Over ranks, each evaluates its share of every batch, and the gradients are added up once per step;
all ranks get the same sum and take the same step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.durations import seconds_of
from flowmc.estimators.weights import effective_sample_size, max_weight_share
from flowmc.flows.cards.files import FlowFileError, atomic_save, read_tensors
from flowmc.parallel import Communicator
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.adjoint import PushedForce
from flowmc.training.objectives.base import Batch, Objective
from flowmc.training.optimisers import (
    OptimiserName,
    load_state_tensors,
    make_optimiser,
    state_tensors,
)
from flowmc.training.schedules import learning_rate_factor

__all__ = ["Settings", "Trainer", "TrainingError", "TrainingStep"]

# A batch with a non-finite gradient is skipped; this many in a row mean that the flow is lost.
SKIPS_IN_A_ROW = 10
# Far above what any memory holds.
_LARGEST_BATCH = 100_000_000

# Density errors of continuous flows: how often they are measured, on how many samples, and after
# how many bad measurements in a row the training stops (see Trainer.check_density).
DENSITY_CHECK_EVERY = 25
DENSITY_CHECK_SAMPLES = 16
DENSITY_CHECKS_IN_A_ROW = 3

# Steps at which the direct ways to forces are compared with their equation, beside the powers of
# two: it costs a backward pass.
FORCE_CHECK_EVERY = 128
# Checkpoints of before 2 have no checksums.
LAYOUT = 2


class TrainingError(RuntimeError):
    """The training cannot go on; the last checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long and how fast to train.

    Attributes:
        steps: number of steps.
        batch: samples per step.
        optimiser: "adam" or "soap" (:func:`~flowmc.training.optimisers.make_optimiser`).
        learning_rate: at its peak.
        schedule: "constant", "cosine" or "exponential" (:mod:`flowmc.training.schedules`).
        warmup: steps of the linear rise of the learning rate.
        final_fraction: factor on the learning rate at the end of a decaying schedule.
        beta1, beta2: the optimiser's decay rates of the first and second moment.
        gradient_clip: largest norm of the gradient; 0 leaves gradients alone.  An untrained flow
            has a few samples of huge action, whose gradients would fill Adam's second moment and
            slow it down for thousands of steps.
        checkpoint_every: steps between checkpoints, or a time such as "10m"; the last step always
            writes one.
        seed: of all random streams.
    """

    steps: int
    batch: int
    optimiser: OptimiserName = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "exponential"] = "cosine"
    warmup: int = 0
    final_fraction: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    gradient_clip: float = 10.0
    checkpoint_every: int | str = "5m"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "checkpoint_every"):
            value = getattr(self, key)
            if isinstance(value, str):
                seconds_of(value, key)
            elif value < 1:
                raise ConfigError(f"{key} = {value}: must be at least 1")
        if self.batch > _LARGEST_BATCH:
            raise ConfigError(f"batch = {self.batch}: must be at most {_LARGEST_BATCH}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate = {self.learning_rate}: must be a positive number")
        if not 0 <= self.warmup < self.steps:
            raise ConfigError(f"warmup = {self.warmup}: must be >= 0 and below steps")
        if not 0 < self.final_fraction <= 1:
            raise ConfigError(f"final_fraction = {self.final_fraction}: must be in (0, 1]")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key} = {getattr(self, key)}: must be in [0, 1)")
        if not 0 <= self.gradient_clip < math.inf:
            raise ConfigError(
                f"gradient_clip = {self.gradient_clip}: must be >= 0 (0: no clipping)"
            )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: must be >= 0")


@dataclass(frozen=True)
class TrainingStep:
    """What is known after a step.

    Attributes:
        step: number of steps done.
        loss: of this batch.
        ess: effective sample size of this batch, as a fraction (biased up for small batches).
        gradient_norm: before clipping; not finite if the step was skipped.
        learning_rate: of this step.
        seconds: of training so far, including what went before a resume.
        skipped: steps skipped so far for a non-finite loss or gradient.
        density_error: largest error of the log-density on a few samples, at its last measurement;
            0 for flows whose density is exact.
        max_weight_share: of the largest weight of this batch in all of them.
    """

    step: int
    loss: float
    ess: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    skipped: int
    density_error: float
    max_weight_share: float = math.nan


class Trainer:
    """Trains the module of an objective.

    Args:
        objective: the loss.
        settings: the schedule of the training.
        checkpoint: path of the checkpoint (safetensors, replaced atomically), or None.
        progress: called after every step.
        metadata: JSON-able data kept in the checkpoint; a resume returns it.
        communicator: of the ranks that train together, all with the same arguments; rank 0 alone
            writes and reads the checkpoint.

    Raises:
        ConfigError: if there is nothing to train, or the objective cannot be shared among ranks.
    """

    def __init__(
        self,
        objective: Objective,
        settings: Settings,
        *,
        checkpoint: str | None = None,
        progress: Callable[[TrainingStep], None] | None = None,
        metadata: dict[str, Any] | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        self.objective, self.settings = objective, settings
        self.communicator = communicator or Communicator()
        self.checkpoint, self.progress = checkpoint, progress
        self.metadata = metadata or {}
        self.module: nn.Module = objective.module
        self.weights = [p for p in self.module.parameters() if p.requires_grad]
        if not self.weights:
            raise ConfigError(
                f"{type(self.module).__name__} has no trainable weights: nothing to train"
            )
        if self.communicator.size > 1:
            objective.distribute(self.communicator)
        self.device = self.weights[0].device
        self.optimiser = make_optimiser(
            settings.optimiser,
            self.weights,
            settings.learning_rate,
            (settings.beta1, settings.beta2),
        )
        self.step = 0
        self.skipped = 0
        self.seconds = 0.0
        self._skips_in_a_row = 0
        self._density_error = 0.0
        self._bad_densities = 0

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Train to the last step; return whether it was reached.

        Args:
            stop: asked after every step; True on any rank ends the training there on all of them,
                with a checkpoint.

        Raises:
            TrainingError: after several non-finite losses in a row, or when the density of a
                continuous flow is no longer that of its discretised map.
        """
        started = time.perf_counter() - self.seconds
        every = self.settings.checkpoint_every
        seconds = seconds_of(every, "checkpoint_every") if isinstance(every, str) else math.inf
        saved = time.monotonic()
        self.module.train()
        while self.step < self.settings.steps:
            report = self.advance()
            self.seconds = time.perf_counter() - started
            if isinstance(every, int):
                due = self.step % every == 0
            else:
                due = time.monotonic() - saved >= seconds
            # All ranks save together, by the clock of rank 0.
            due = due and self.communicator.rank == 0
            flags = self.communicator.maximum(np.array([float(stop()), float(due)]))
            stopped, due = (bool(flag) for flag in flags)
            if stopped or due or self.step == self.settings.steps:
                self.save()
                saved = time.monotonic()
            if self.progress is not None:
                self.progress(dataclasses.replace(report, seconds=self.seconds))
            if stopped:
                break
        self.module.eval()
        return self.step >= self.settings.steps

    def advance(self) -> TrainingStep:
        """Do one step."""
        settings = self.settings
        rate = settings.learning_rate * learning_rate_factor(
            settings.schedule, self.step, settings.steps, settings.warmup, settings.final_fraction
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        rng = stream(settings.seed, self.step, "training batch", self.device)
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.begin(self.step)
        forces = PushedForce.all_of(self.objective) if _is_check_of_forces(self.step) else []
        for force in forces:
            force.check_again()
        batch = self.objective.evaluate(settings.batch, rng)
        for force in forces:
            # Whether it is due follows from the step alone: a resumed training checks the same.
            force.check_again(False)
        if self.communicator.size == 1:
            batch.surrogate.backward()
            loss, log_weights = float(batch.loss), batch.log_weights
        else:
            loss, log_weights = self._add_up(batch)
        # Without clipping the norm is still wanted: for the log, and to see a NaN.
        bound = settings.gradient_clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.weights, bound))
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimiser.step()
            self._skips_in_a_row = 0
        else:
            self._skip(loss, norm)
        log_weights = _centred(log_weights, batch.parts)
        ess = share = math.nan
        if math.isfinite(loss):
            ess = effective_sample_size(log_weights).value
            share = max_weight_share(log_weights)
        if self.step % DENSITY_CHECK_EVERY == 0:
            self.check_density(log_weights)
        self.step += 1
        return TrainingStep(
            self.step, loss, ess, norm, rate, self.seconds, self.skipped, self._density_error, share
        )

    def _add_up(self, batch: Batch) -> tuple[float, Tensor]:
        """Give the weights the gradient of the whole batch; return its loss and log-weights.

        One sum over ranks, in float64, of gradients, loss and log-weights at their places.
        """
        if batch.surrogate.requires_grad:
            batch.surrogate.backward()
        assert batch.rows is not None
        placed = np.zeros((2, self.settings.batch))
        # An objective need not have a weight at every place of its batch.
        placed[:, batch.rows.cpu().numpy()] = np.stack(
            [batch.log_weights.cpu().numpy(), np.ones(len(batch.rows))]
        )
        # A weight that no rank has used keeps the gradient None, as on one rank.
        used = [float(weight.grad is not None) for weight in self.weights]
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in self.weights
        ]
        flat = torch.cat([gradient.reshape(-1).to(torch.float64) for gradient in gradients])
        own = np.concatenate([flat.cpu().numpy(), used, [float(batch.loss)], *placed])
        total = torch.from_numpy(self.communicator.sum(own))
        sizes = [weight.numel() for weight in self.weights]
        places = [self.settings.batch] * 2
        *parts, counts, loss, log_weights, filled = total.split([*sizes, len(used), 1, *places])
        for weight, part, count in zip(self.weights, parts, counts, strict=True):
            weight.grad = part.to(weight).reshape(weight.shape) if count else None
        return float(loss), log_weights[filled > 0]

    def check_density(self, log_weights: Tensor) -> None:
        """Measure the density error of a continuous flow and stop if the optimiser exploits it.

        A loss that is low because the integrator is coarse looks like success, and gradients drive
        the flow there; an error above both 0.5 and half the spread of ln w means that the loss is
        no longer about the flow.
        """
        rng = stream(self.settings.seed, self.step, "density check", self.device)
        samples = min(DENSITY_CHECK_SAMPLES, self.settings.batch)
        errors = self.objective.density_error(samples, rng)
        # Ranks on different hardware may round differently, and must not disagree.
        self._density_error = self.communicator.broadcast(float(errors.max()))
        spread = float(log_weights.std()) if len(log_weights) > 1 else 0.0
        bad = not self._density_error <= max(0.5, 0.5 * spread)
        self._bad_densities = self._bad_densities + 1 if bad else 0
        if self._bad_densities >= DENSITY_CHECKS_IN_A_ROW:
            raise TrainingError(
                f"step {self.step}: the log-density of the flow is wrong by "
                f"{self._density_error:.2g} because its integrator is too coarse: the loss means "
                "nothing; use more integration steps or a smaller learning rate"
            )

    def _skip(self, loss: float, norm: float) -> None:
        self.skipped += 1
        self._skips_in_a_row += 1
        if self._skips_in_a_row >= SKIPS_IN_A_ROW:
            raise TrainingError(
                f"step {self.step}: {SKIPS_IN_A_ROW} batches in a row gave a non-finite loss or "
                f"gradient (loss {loss:g}, gradient norm {norm:g}); use a smaller learning rate, a "
                "gradient_clip or precision = 64, and resume from the last checkpoint"
            )

    def save(self) -> None:
        """Write the checkpoint, if there is a path for one; collective."""
        if self.checkpoint is None:
            return
        path, tensors = self.checkpoint, self._learned()
        tensors.update(
            {f"objective/{key}": value for key, value in self.objective.state_dict().items()}
        )
        counters = {
            "layout": LAYOUT,
            "step": self.step,
            "skipped": self.skipped,
            "skips_in_a_row": self._skips_in_a_row,
            "bad_densities": self._bad_densities,
            "density_error": self._density_error,
            "seconds": self.seconds,
            # Which way to a force a resumed training takes must not depend on what it sees first.
            "direct_ways": [one.direct_way_holds for one in PushedForce.all_of(self.objective)],
        }
        card: dict[str, Any] = {"checkpoint": counters, **self.metadata}
        card["checksums"] = _checksums(tensors, card)
        self.communicator.from_root(lambda: atomic_save(path, tensors, card))
        self._make_equal()

    def _learned(self) -> dict[str, Tensor]:
        """Return the weights and the moments of the optimiser."""
        tensors = {f"module/{key}": value for key, value in self.module.state_dict().items()}
        moments = state_tensors(self.optimiser)
        return tensors | {f"optimiser/{key}": value for key, value in moments.items()}

    def _set_learned(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimiser": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        self.module.load_state_dict(parts["module"])
        load_state_tensors(self.optimiser, parts["optimiser"])

    def _make_equal(self) -> None:
        """Give all ranks what rank 0 has written, should they differ.

        The sums are the same everywhere, but ranks on different processors may round the step of
        the optimiser differently.
        """
        if self.communicator.size == 1:
            return
        tensors = {key: value.cpu() for key, value in self._learned().items()}
        digest = hashlib.sha256()
        for value in tensors.values():
            digest.update(value.contiguous().numpy().tobytes())
        if len(set(self.communicator.allgather(digest.digest()))) > 1:
            self._set_learned(self.communicator.broadcast(tensors))

    def load(self, path: str) -> None:
        """Continue from a checkpoint of the same objective and settings; collective.

        The number of ranks that wrote it does not matter.

        Raises:
            FlowFileError: if the file is no checkpoint, not as it was written, or of another flow.
            CollectiveError: the same, on several ranks.
        """
        tensors, metadata = self.communicator.from_root(lambda: read_tensors(path))
        self.communicator.together(lambda: self._load(path, tensors, metadata))

    def _load(self, path: str, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
        counters = metadata.get("checkpoint")
        if not isinstance(counters, dict):
            raise FlowFileError(f"{path} is not a training checkpoint; remove it or name another")
        sums = metadata.pop("checksums", None)
        if sums is not None or "layout" in counters:
            _compare(path, sums, _checksums(tensors, metadata))
        try:
            self._set_learned(tensors)
        except (RuntimeError, ValueError) as error:
            raise FlowFileError(f"{path} is a checkpoint of another flow: {error}") from error
        prefix = "objective/"
        self.objective.load_state_dict(
            {
                key.removeprefix(prefix): tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
        )
        self.step, self.skipped = counters["step"], counters["skipped"]
        self._skips_in_a_row = counters["skips_in_a_row"]
        self._bad_densities = counters["bad_densities"]
        self._density_error = counters["density_error"]
        self.seconds = counters["seconds"]
        forces = PushedForce.all_of(self.objective)
        # Checkpoints of before know nothing of it.
        for force, holds in zip(forces, counters.get("direct_ways", []), strict=False):
            force.direct_way_holds = holds


def _is_check_of_forces(step: int) -> bool:
    return step % FORCE_CHECK_EVERY == 0 or step & (step - 1) == 0


def _checksums(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a CRC-32 of each tensor, by name, and one of all that stands beside them."""
    found = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        described = f"{plain.dtype} {tuple(plain.shape)}".encode()
        found[name] = zlib.crc32(plain.numpy().tobytes(), zlib.crc32(described))
    return {"tensors": found, "card": zlib.crc32(json.dumps(card, sort_keys=True).encode())}


def _compare(path: str, stored: Any, found: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that is not as it was written.

    Raises:
        FlowFileError: naming what has changed.
    """
    remedy = "restore it from a copy, or remove it to train again"
    tensors = stored.get("tensors") if isinstance(stored, dict) else None
    if not isinstance(tensors, dict) or tensors.keys() != found["tensors"].keys():
        raise FlowFileError(
            f"{path} is damaged: its checksums are not those of its tensors: {remedy}"
        )
    if stored.get("card") != found["card"]:
        raise FlowFileError(f"{path} is damaged: its counters or its card have changed: {remedy}")
    changed = sorted(name for name, value in found["tensors"].items() if tensors[name] != value)
    if changed:
        raise FlowFileError(
            f"{path} is damaged: the numbers of {changed[0]} have changed since they were written: "
            f"{remedy}"
        )


def _centred(log_weights: Tensor, parts: int) -> Tensor:
    """Return the log-weights with that constant of each part which gives it the mean weight 1."""
    if parts == 1:
        return log_weights
    rows = log_weights.reshape(parts, -1)
    mean = torch.logsumexp(rows, 1, keepdim=True) - math.log(rows.shape[1])
    return (rows - mean).flatten()
