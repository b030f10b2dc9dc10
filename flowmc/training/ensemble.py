"""Configurations to train on: a batch of HMC chains that walk on while the flow learns."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.kernels import HMC
from flowmc.random import stream

__all__ = ["Ensemble"]


class Ensemble:
    """Chains of one theory, thermalised at the start and refreshed during the training.

    The number of integrator steps is adapted during thermalisation and frozen after it.  Every
    refresh draws from the stream of its own index, so the ensemble continues bit for bit from
    :meth:`state_dict`.

    Args:
        action: the theory.
        purpose: distinguishes the random streams of several ensembles, e.g. "from".
        seed: of the whole training.
        chains: number of chains, all of them refreshed together.
        thermalization: trajectories before the first batch.
        refresh_every: batches drawn between two trajectories of all chains.
        trajectory, steps, integrator: of the HMC; ``steps`` is the start value of the adaptation.
        target_acceptance: of the adaptation.
        start: "hot" or "cold".
        dtype: of the real components of the field.
        device: where the chains live.
    """

    def __init__(
        self,
        action: Action,
        purpose: str,
        seed: int,
        *,
        chains: int = 256,
        thermalization: int = 200,
        refresh_every: int = 1,
        trajectory: float = 1.0,
        steps: int = 10,
        integrator: str = "omelyan2",
        target_acceptance: float = 0.9,
        start: str = "hot",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if chains < 1 or thermalization < 0 or refresh_every < 1:
            raise ValueError(
                "an ensemble needs chains >= 1, thermalization >= 0 and refresh_every >= 1, got "
                f"{chains}, {thermalization} and {refresh_every}"
            )
        if start not in ("hot", "cold"):
            raise ValueError(f"start = {start!r}: an ensemble starts 'hot' or 'cold'")
        self.action = action
        self.purpose, self.seed = f"ensemble {purpose}", seed
        self.chains, self.thermalization = chains, thermalization
        self.refresh_every = refresh_every
        self.start, self.dtype, self.device = start, dtype, device
        self.kernel = HMC(
            action,
            trajectory=trajectory,
            steps=steps,
            integrator=integrator,
            # Modes whose period is twice the trajectory are only reflected; wide jitter frees them.
            jitter=0.3,
            target_acceptance=target_acceptance,
            check_reversibility=0.0,
        )
        self.updates = 0
        self.draws = 0
        self._field: Tensor | None = None

    @property
    def field(self) -> Tensor:
        """All chains, ``(chains, ...)``; thermalised at the first use."""
        if self._field is None:
            rng = stream(self.seed, 0, f"{self.purpose} start", self.device)
            if self.start == "hot":
                self._field = self.action.hot(self.chains, rng, self.dtype)
            else:
                self._field = self.action.cold(self.chains, self.dtype, self.device)
            self.advance(self.thermalization, adapt=True)
        return self._field

    def advance(self, trajectories: int, *, adapt: bool = False) -> None:
        """Run ``trajectories`` more trajectories of every chain."""
        state = self.kernel.init(self.field)
        for _ in range(trajectories):
            rng = stream(self.seed, self.updates, self.purpose, self.device)
            state, info = self.kernel.step(state, rng)
            if adapt:
                self.kernel.adapt(info, self.updates)
            self.updates += 1
        self._field = state.field

    def draw(self, n: int) -> Tensor:
        """Return ``n`` configurations of distinct chains (of repeated ones if n > chains)."""
        if self.draws and self.draws % self.refresh_every == 0:
            self.advance(1)
        rng = stream(self.seed, self.draws, f"{self.purpose} batch", self.device)
        rounds = -(-n // self.chains)
        order = torch.cat(
            [torch.randperm(self.chains, generator=rng, device=self.device) for _ in range(rounds)]
        )
        self.draws += 1
        return self.field[order[:n]]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that :meth:`load_state_dict` needs to continue, as tensors."""
        tuning = self.kernel.tuning()
        field = self.field
        return {
            # safetensors knows no complex128.
            "field": torch.view_as_real(field) if field.is_complex() else field,
            "counters": torch.tensor([self.updates, self.draws]),
            "tuning": torch.tensor([tuning[key] for key in sorted(tuning)], dtype=torch.float64),
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`."""
        field = tensors["field"].to(self.device)
        is_complex = bool(self.action.group.element_shape)
        self._field = torch.view_as_complex(field) if is_complex else field
        self.updates, self.draws = (int(value) for value in tensors["counters"])
        keys = sorted(self.kernel.tuning())
        values = [float(value) for value in tensors["tuning"]]
        self.kernel.set_tuning(dict(zip(keys, values, strict=True)))
