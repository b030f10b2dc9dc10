"""A kernel of somebody else's that owns tensors of every chain; the chain depends on them."""

import os

import torch

from flowmc.kernels import Info, Kernel, Reported, State


class Tally(Kernel):
    """Counts its steps, and flips the sign of the field at every third; remembers a sum of sites.

    Carries ``tally.steps``, which stays, and ``tally.sum``, which is of this field only.
    """

    name = "tally"
    reports = (Reported("known", "sum known"), Reported("steps", "steps", reduce="last"))

    def __init__(self, action) -> None:
        self.action = action

    def init(self, field):
        steps = torch.zeros(field.shape[0], dtype=torch.int64)
        return State(field).with_carried("tally.steps", steps, stays=True)

    def step(self, state, rng):
        steps = state.carried["tally.steps"].value + 1
        if int(steps[0]) == int(os.environ.get("FLOWMC_TEST_STOP", 0)):
            raise KeyboardInterrupt
        true, known = state.field.flatten(1).sum(1), "tally.sum" in state.carried
        assert not known or torch.equal(state.carried["tally.sum"].value, true)
        sign = torch.where(steps % 3 == 0, -1.0, 1.0).to(state.field).reshape(-1, 1, 1)
        moved = state.moved(sign * state.field, state.action)
        moved = moved.with_carried("tally.steps", steps, stays=True)
        moved = moved.with_carried("tally.sum", sign[:, 0, 0] * true)
        accepted = torch.ones(len(steps), 1, dtype=torch.bool)
        return moved, Info(
            accepted, {"known": torch.full_like(true, known), "steps": steps.double()}
        )
