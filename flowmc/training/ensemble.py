"""Configurations to train on: a batch of HMC chains that walk on while the flow learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.kernels import HMC, Info
from flowmc.parallel import Communicator
from flowmc.parallel.distribution import shares
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["ENSEMBLE_KEYS", "Ensemble"]

# Chains that are updated as one batch, with random streams of their own: enough for the work to
# outweigh the calls, in groups that are few however many chains there are.
_SMALLEST_GROUP, _MOST_GROUPS = 64, 16


class Ensemble:
    """Chains of one theory, thermalised at the start and refreshed during the training.

    The number of integrator steps is adapted during thermalisation and frozen after it.  Every
    refresh draws from the stream of its own index, so the ensemble continues bit for bit from
    :meth:`state_dict`.

    Chains come in fixed groups, which are what :meth:`distribute` deals to ranks: the same chains
    come out, bit for bit, for any number of ranks.  Methods that are called collective below must
    then be called on all of them.

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
            raise ConfigError(
                "an ensemble needs chains >= 1, thermalization >= 0 and refresh_every >= 1, got "
                f"{chains}, {thermalization} and {refresh_every}"
            )
        if start not in ("hot", "cold"):
            raise ConfigError(f"start = {start!r}: an ensemble starts 'hot' or 'cold'")
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
        size = max(_SMALLEST_GROUP, math.ceil(chains / _MOST_GROUPS))
        self._sizes = [min(size, chains - first) for first in range(0, chains, size)]
        self._field: Tensor | None = None
        self.distribute(Communicator())

    @property
    def groups(self) -> int:
        """How many groups of chains there are; more ranks than that have nothing to update."""
        return len(self._sizes)

    def distribute(self, communicator: Communicator) -> None:
        """Keep and update only this rank's share of the chains from now on."""
        whole = None if self._field is None else self.field
        self.communicator = communicator
        owners = shares(self.groups, communicator.size)
        self._own = [g for g, owner in enumerate(owners) if owner == communicator.rank]
        first = sum(
            size
            for size, owner in zip(self._sizes, owners, strict=True)
            if owner < communicator.rank
        )
        self._range = slice(first, first + sum(self._sizes[g] for g in self._own))
        self._field = None if whole is None else whole[self._range]

    @property
    def own_field(self) -> Tensor:
        """This rank's chains, ``(own chains, ...)``; thermalised at the first use (collective)."""
        if self._field is None:
            self._field = self._joined([self._started(group) for group in self._own])
            self.advance(self.thermalization, adapt=True)
        return self._field

    @property
    def field(self) -> Tensor:
        """All chains, ``(chains, ...)``; collective."""
        own = self.own_field
        if self.communicator.size == 1:
            return own
        return torch.cat(self.communicator.allgather(own.cpu())).to(self.device)

    def advance(self, trajectories: int, *, adapt: bool = False) -> None:
        """Run ``trajectories`` more trajectories of every chain; collective."""
        parts = self.own_field.split([self._sizes[group] for group in self._own])
        states = [self.kernel.init(part) for part in parts] if self._own else []
        for _ in range(trajectories):
            infos = []
            for index, group in enumerate(self._own):
                rng = self._stream(self.updates, self.purpose, group)
                states[index], info = self.kernel.step(states[index], rng)
                infos.append(info)
            if adapt:
                self.kernel.adapt(self._of_all_chains(infos), self.updates)
            self.updates += 1
        self._field = self._joined([state.field for state in states])

    def _stream(self, index: int, purpose: str, group: int) -> torch.Generator:
        own = f"{purpose} group {group}" if group else purpose
        return stream(self.seed, index, own, self.device)

    def _started(self, group: int) -> Tensor:
        if self.start == "cold":
            return self.action.cold(self._sizes[group], self.dtype, self.device)
        rng = self._stream(0, f"{self.purpose} start", group)
        return self.action.hot(self._sizes[group], rng, self.dtype)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else self.action.cold(0, self.dtype, self.device)

    def _of_all_chains(self, infos: list[Info]) -> Info:
        """Return what the adaptation looks at, for the chains of all ranks in their order."""
        name = "acceptance_probability"
        own = [info.values[name].cpu() for info in infos]
        joined = torch.cat(own) if own else torch.empty(0, dtype=torch.float64)
        whole = torch.cat(self.communicator.allgather(joined))
        return Info(torch.empty(0, 0, dtype=torch.bool), {name: whole})

    def draw(self, n: int) -> Tensor:
        """Return ``n`` configurations of distinct chains (of repeated ones if n > chains).

        Collective; every rank gets all of them.
        """
        own, rows = self.draw_share(n)
        if self.communicator.size == 1:
            return own
        parts = self.communicator.allgather((own.cpu(), rows.cpu()))
        batch = torch.cat([fields for fields, _ in parts])
        order = torch.cat([rows for _, rows in parts])
        return batch[order.argsort()].to(self.device)

    def draw_share(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the configurations of a batch of ``n`` whose chains live on this rank.

        Collective.  Also returned are their places in the batch, ``(own,)`` int64; on one rank
        these are all places in order.
        """
        if self.draws and self.draws % self.refresh_every == 0:
            self.advance(1)
        rng = stream(self.seed, self.draws, f"{self.purpose} batch", self.device)
        rounds = -(-n // self.chains)
        order = torch.cat(
            [torch.randperm(self.chains, generator=rng, device=self.device) for _ in range(rounds)]
        )
        self.draws += 1
        own = self.own_field
        chain = order[:n] - self._range.start
        rows = ((chain >= 0) & (chain < len(own))).nonzero().squeeze(1)
        return own[chain[rows]], rows

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that :meth:`load_state_dict` needs to continue, as tensors.

        Collective; rank 0 gets the chains of all ranks, the others nothing.
        """
        tuning = self.kernel.tuning()
        own = self.own_field
        parts = [own] if self.communicator.size == 1 else self.communicator.gather(own.cpu())
        if parts is None:
            return {}
        field = self._joined(parts)
        return {
            # safetensors knows no complex128.
            "field": torch.view_as_real(field) if field.is_complex() else field,
            "counters": torch.tensor([self.updates, self.draws]),
            "tuning": torch.tensor([tuning[key] for key in sorted(tuning)], dtype=torch.float64),
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict` of any number of ranks."""
        field = tensors["field"][self._range].to(self.device)
        is_complex = bool(self.action.group.element_shape)
        self._field = torch.view_as_complex(field) if is_complex else field
        self.updates, self.draws = (int(value) for value in tensors["counters"])
        keys = sorted(self.kernel.tuning())
        values = [float(value) for value in tensors["tuning"]]
        self.kernel.set_tuning(dict(zip(keys, values, strict=True)))


# Keys of [exchange] that describe the HMC chains behind the configurations.
ENSEMBLE_KEYS = (
    "chains",
    "thermalization",
    "trajectory",
    "steps",
    "integrator",
    "target_acceptance",
    "start",
)
