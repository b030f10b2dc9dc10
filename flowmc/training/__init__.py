"""Training flows: objectives, the loop and its schedules."""

from flowmc.training.ensemble import Ensemble
from flowmc.training.loop import Settings, Trainer, TrainingError, TrainingStep
from flowmc.training.objectives import (
    AlphaTwo,
    Batch,
    ExchangeKL,
    ForwardKL,
    LocalKL,
    LogVariance,
    Objective,
    Reinforce,
    ReverseKL,
    SamplerObjective,
)

__all__ = [
    "AlphaTwo",
    "Batch",
    "Ensemble",
    "ExchangeKL",
    "ForwardKL",
    "LocalKL",
    "LogVariance",
    "Objective",
    "Reinforce",
    "ReverseKL",
    "SamplerObjective",
    "Settings",
    "Trainer",
    "TrainingError",
    "TrainingStep",
]
