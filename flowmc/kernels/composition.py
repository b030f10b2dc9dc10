"""Kernels made of kernels that leave the same density invariant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from flowmc.kernels.base import Info, Kernel, apply, begin, report_of
from flowmc.kernels.reporting import KernelReport
from flowmc.random import Randomness, shared_stream
from flowmc.registry import ConfigError

__all__ = ["Cycle", "Mixture", "Repeat", "concatenate"]


class _Composed(Kernel):
    """Shared by cycles and mixtures: unique names, adaptation and tuning of the parts."""

    takes_streams = True

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        if not kernels:
            raise ValueError(f"a {self.name} needs at least one kernel")
        self.parts: dict[str, Kernel] = {}
        for kernel in kernels:
            name, count = kernel.name, 1
            while name in self.parts:
                count += 1
                name = f"{kernel.name}_{count}"
            self.parts[name] = kernel

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        found: list[tuple[str, KernelReport]] = []
        for name, kernel in self.parts.items():
            found += kernel.reports_of_parts() or [(name, report_of(kernel))]
        return found

    def init(self, field: Any) -> Any:
        first, *others = [begin(kernel, field) for kernel in self.parts.values()]
        for other in others:
            if type(other) is not type(first):
                raise ConfigError(
                    f"the kernels of a {self.name} share one state, but one begins with a "
                    f"{type(first).__name__}, another with a {type(other).__name__}"
                )
            if hasattr(first, "united"):
                first = first.united(other)
        return first

    @property
    def adapts(self):
        return any(kernel.adapts for kernel in self.parts.values())

    def adapt(self, info, update):
        for name, part in info.parts.items():
            self.parts[name].adapt(part, update)

    def tuning(self):
        return {
            f"{name}/{key}": value
            for name, kernel in self.parts.items()
            for key, value in kernel.tuning().items()
        }

    def set_tuning(self, values):
        for name, kernel in self.parts.items():
            prefix = f"{name}/"
            own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            if own:
                kernel.set_tuning(own)


class Cycle(_Composed):
    """Apply all kernels in order; invariant if each is, though not reversible."""

    name = "cycle"

    def step(self, state: Any, rng: Randomness) -> tuple[Any, Info]:
        parts = {}
        for name, kernel in self.parts.items():
            state, parts[name] = apply(kernel, state, rng)
        return state, Info(torch.empty(0, 0, dtype=torch.bool), parts=parts)


class Mixture(_Composed):
    """Apply one kernel drawn with fixed probabilities; reversible if each kernel is.

    Args:
        kernels: the components.
        weights: positive, normalised here; equal by default.

    The draw is one per step for the whole batch and does not look at the state.  ``info`` has the
    part of the kernel that was applied.
    """

    name = "mixture"

    def __init__(self, kernels: Sequence[Kernel], weights: Sequence[float] | None = None) -> None:
        super().__init__(kernels)
        weights = [1.0] * len(kernels) if weights is None else list(weights)
        total = sum(weights)
        if len(weights) != len(kernels) or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"a mixture needs one positive weight per kernel, got {weights}")
        if not math.isfinite(total):
            raise ValueError(f"the weights of a mixture have no finite sum: {weights}")
        self.weights = [weight / total for weight in weights]

    def choose(self, rng: Randomness) -> str:
        """Draw the name of the kernel that is applied next."""
        common = shared_stream(rng, "schedule")
        draw = float(torch.rand((), dtype=torch.float64, device=common.device, generator=common))
        names = list(self.parts)
        for name, weight in zip(names, self.weights, strict=True):
            if draw < weight:
                return name
            draw -= weight
        return names[-1]

    def step(self, state: Any, rng: Randomness) -> tuple[Any, Info]:
        name = self.choose(rng)
        state, info = apply(self.parts[name], state, rng)
        return state, Info(torch.empty(0, 0, dtype=torch.bool), parts={name: info})


class Repeat(Kernel):
    """Apply one kernel ``times`` times; the infos are joined along the proposal axis."""

    takes_streams = True

    def __init__(self, kernel: Kernel, times: int) -> None:
        if times < 1:
            raise ValueError(f"repeat needs at least 1, got {times}")
        self.kernel, self.times = kernel, times
        self.name, self.title, self.spreads = kernel.name, kernel.title, kernel.spreads
        self.reports = [value.repeated(times) for value in kernel.reports]

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        inside = self.kernel.reports_of_parts()
        return [(name, report.repeated(self.times)) for name, report in inside]

    def init(self, field: Any) -> Any:
        return begin(self.kernel, field)

    def step(self, state: Any, rng: Randomness) -> tuple[Any, Info]:
        infos = []
        for _ in range(self.times):
            state, info = apply(self.kernel, state, rng)
            infos.append(info)
        return state, concatenate(infos, axis=1)

    @property
    def adapts(self):
        return self.kernel.adapts

    def adapt(self, info, update):
        self.kernel.adapt(info, update)

    def tuning(self):
        return self.kernel.tuning()

    def set_tuning(self, values):
        self.kernel.set_tuning(values)


def concatenate(infos: Sequence[Info], axis: int) -> Info:
    """Join infos of the same kernel: ``axis`` 0 for blocks of chains, 1 for repetitions."""
    if len(infos) == 1:
        return infos[0]
    first = infos[0]

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        if axis == 1 and tensors[0].dim() == 1:
            return torch.stack(tensors, 1)
        return torch.cat(tensors, axis)

    names = [name for info in infos for name in info.parts]
    return Info(
        join([info.is_accepted for info in infos]),
        {key: join([info.values[key] for info in infos]) for key in first.values},
        {
            name: concatenate([info.parts[name] for info in infos if name in info.parts], axis)
            for name in dict.fromkeys(names)
        },
    )
