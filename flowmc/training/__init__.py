"""Training flows: objectives, the loop and its schedules."""

from flowmc.training.ensemble import Ensemble
from flowmc.training.loop import Progress, Settings, Trainer, TrainingError
from flowmc.training.objectives import Batch, ExchangeKL, Objective, ReverseKL

__all__ = [
    "Batch",
    "Ensemble",
    "ExchangeKL",
    "Objective",
    "Progress",
    "ReverseKL",
    "Settings",
    "Trainer",
    "TrainingError",
]
