"""Training flows: objectives, the loop and its schedules."""

from flowmc.training.ensemble import Ensemble
from flowmc.training.loop import Progress, Settings, Trainer, TrainingError
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
    "Progress",
    "Reinforce",
    "ReverseKL",
    "SamplerObjective",
    "Settings",
    "Trainer",
    "TrainingError",
]
