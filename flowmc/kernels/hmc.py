"""Hybrid Monte Carlo on any group.

S. Duane, A.D. Kennedy, B.J. Pendleton, D. Roweth, Phys. Lett. B195 (1987) 216.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NotRequired

import torch
from torch import Tensor

# pydantic validates those of typing from Python 3.12 on.
from typing_extensions import TypedDict

from flowmc.actions.base import Action, SumAction
from flowmc.kernels.base import Info, Kernel, State, action_of, value_in_torch
from flowmc.kernels.integrators import nested_trajectory, trajectory
from flowmc.kernels.reporting import Reported
from flowmc.registry import ConfigError, nearest
from flowmc.splitting import INTEGRATORS, Integrator

__all__ = ["HMC", "InnerLevel"]


class InnerLevel(TypedDict):
    """A level of an integrator inside the outermost one; see :class:`HMC`."""

    __pydantic_config__ = {"extra": "forbid"}  # type: ignore[misc]  # noqa: RUF012

    terms: list[str]
    steps: NotRequired[int]
    integrator: NotRequired[str]


class HMC(Kernel):
    r"""HMC with Metropolis test: accept with probability :math:`\min(1, e^{-\Delta H})`.

    Momenta are drawn afresh, :math:`p_a \sim N(0, 1)`, and :math:`H = K + S` is accumulated in
    float64.  A non-finite :math:`\Delta H` is a rejection, counted in ``non_finite``.

    Of an action with auxiliary fields these are refreshed first, and H is that at the fields drawn
    (:meth:`~flowmc.actions.Action.refresh`): both leave their joint density invariant, hence that
    of the field.

    Args:
        action: the target.
        trajectory: molecular-dynamics time :math:`\tau` of a trajectory.
        steps: integrator steps per trajectory; the start value if the step size is adapted.
        integrator: "leapfrog", "omelyan2", "omelyan4" or "force_gradient".
        inner: levels with smaller time steps, from coarse to fine, each a table
            ``{terms = ["plaquettes"], steps = 2, integrator = "omelyan2"}``: the parts of the
            action that it integrates (:meth:`~flowmc.actions.Action.parts`), its steps per drift of
            the level before (1 by default) and its scheme (by default that of the trajectory).
            ``steps`` and ``integrator`` are of all other parts, and only ``steps`` is adapted
            (J.C. Sexton and D.H. Weingarten, Nucl. Phys. B380 (1992) 665).
        jitter: each chain's step size is multiplied by 1 + jitter * u with u uniform in [-1, 1],
            drawn afresh per trajectory; it breaks the periodic orbits of harmonic modes
            (P.B. Mackenzie, Phys. Lett. B226 (1989) 369).
        target_acceptance: adapt the number of steps to this mean acceptance in thermalisation, at
            fixed trajectory length; None keeps ``steps``.
        check_reversibility: the share of trajectories that are also integrated backwards; their
            largest distance from the start is reported as ``reversibility_violation``.

    ``info.values`` holds per chain ``energy_error`` (:math:`\Delta H`), ``exp_minus_energy_error``
    (whose mean is 1), ``acceptance_probability``, ``non_finite`` and
    ``reversibility_violation`` (NaN where it was not checked).

    Raises:
        ConfigError: for values out of range and unknown integrators.
    """

    name = "hmc"
    title = "HMC"
    reports = (
        Reported("energy_error", "ΔH", in_report=False),
        Reported("exp_minus_energy_error", "⟨exp(−ΔH)⟩"),
        Reported("acceptance_probability", "acceptance probability", in_report=False),
        Reported("non_finite", "proposals not finite", reduce="sum", in_report=False),
        Reported("reversibility_violation", "reversibility violation", reduce="max"),
    )

    def __init__(
        self,
        action: Action,
        *,
        trajectory: float = 1.0,
        steps: int = 10,
        integrator: str = "omelyan2",
        inner: list[InnerLevel] | None = None,
        jitter: float = 0.1,
        target_acceptance: float | None = None,
        check_reversibility: float = 0.01,
    ) -> None:
        if integrator not in INTEGRATORS:
            raise ConfigError(
                f"unknown integrator {integrator!r}{nearest(integrator, INTEGRATORS)}"
            )
        if not (trajectory > 0 and math.isfinite(trajectory)):
            raise ConfigError(f"hmc needs trajectory > 0, got {trajectory}")
        if steps < 1:
            raise ConfigError(f"hmc needs steps >= 1, got {steps}")
        if not 0 <= jitter < 1:
            raise ConfigError(f"hmc needs 0 <= jitter < 1, got {jitter}")
        if target_acceptance is not None and not 0 < target_acceptance < 1:
            raise ConfigError(f"hmc needs 0 < target_acceptance < 1, got {target_acceptance}")
        if not 0 <= check_reversibility <= 1:
            raise ConfigError(f"hmc needs 0 <= check_reversibility <= 1, got {check_reversibility}")
        self.action = action
        self.trajectory = float(trajectory)
        self.integrator = INTEGRATORS[integrator]
        self.jitter = float(jitter)
        self.target_acceptance = target_acceptance
        self.check_reversibility = float(check_reversibility)
        self._log_step_size = math.log(self.trajectory / steps)
        self.inner = _inner_levels(action, inner or [], integrator)

    @property
    def steps(self) -> int:
        """Integrator steps per trajectory."""
        # Rounded before the ceiling: log and exp must not turn 10 steps into 11.
        return max(1, math.ceil(round(self.trajectory / math.exp(self._log_step_size), 9)))

    @property
    def step_size(self) -> float:
        """Mean step size: trajectory length over number of steps."""
        return self.trajectory / self.steps

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        if not self.action.is_known:
            self.action.require_given()
            return State(field)
        return State(field, value_in_torch(self.action, field))

    @torch.no_grad()
    def step(self, state: State, rng: torch.Generator) -> tuple[State, Info]:
        before = state
        state = self.action.refresh(before, rng)
        action, group, field = self.action, self.action.group, state.field
        if action.has_auxiliaries:
            # What states cache is S of the field alone.
            action = action.given(state)
            start_action = action_of(action, State(field))
        else:
            start_action = action_of(action, state)
        momentum = group.draw_algebra(field, rng)
        uniform = torch.rand(
            (3, state.chains), dtype=torch.float64, device=field.device, generator=rng
        )
        step_size = self.step_size * (1 + self.jitter * (2 * uniform[0] - 1))

        move = self._trajectory(action, state)
        end, end_momentum = move(field, momentum, step_size)
        proposal = action.project(end)
        end_action = action(proposal)
        energy_error = (end_action + group.kinetic_energy(end_momentum)) - (
            start_action + group.kinetic_energy(momentum)
        )
        finite = torch.isfinite(energy_error)
        is_accepted = finite & (uniform[1].log() < -energy_error)

        violation = torch.full_like(energy_error, math.nan)
        # One decision for the batch: the backward trajectory is as parallel as the forward one.
        if float(uniform[2, 0]) < self.check_reversibility:
            back, _ = move(end, -end_momentum, step_size)
            violation = group.distance(back, field)

        if bool(is_accepted.any()):
            chosen = is_accepted.reshape(-1, *[1] * (field.dim() - 1))
            end = torch.where(chosen, proposal, field)
            if self.action.has_auxiliaries:
                state = _moved_with_auxiliaries(before, state, end)
            else:
                state = state.moved(end, torch.where(is_accepted, end_action, start_action))
        probability = torch.where(finite, (-energy_error).clamp(max=0).exp(), 0.0)
        return state, Info(
            is_accepted[:, None],
            {
                "energy_error": energy_error,
                "exp_minus_energy_error": torch.where(finite, (-energy_error).exp(), 0.0),
                "acceptance_probability": probability,
                "non_finite": ~finite,
                "reversibility_violation": violation,
            },
        )

    def _trajectory(
        self, action: Action, state: State
    ) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return ``(field, momentum, step_size) -> (field, momentum)``.

        Args:
            action: at the auxiliary fields that the state carries.
            state: with them.
        """
        group, integrator, steps = action.group, self.integrator, self.steps
        if not self.inner:
            return lambda field, momentum, step_size: trajectory(
                action, group, field, momentum, integrator, step_size, steps
            )
        parts = self.action.parts(state)
        inner = [
            (_sum([parts.pop(name) for name in names]), scheme, count)
            for names, scheme, count in self.inner
        ]
        levels = [(_sum(list(parts.values())), integrator, steps), *inner]
        return lambda field, momentum, step_size: nested_trajectory(
            levels, group, field, momentum, step_size
        )

    @property
    def adapts(self) -> bool:
        return self.target_acceptance is not None

    def adapt(self, info: Info, update: int) -> None:
        """Move ln(step size) towards the target by a Robbins-Monro step with gain (n + 1)^-0.6."""
        if self.target_acceptance is None:
            return
        acceptance = float(info.values["acceptance_probability"].mean())
        gain = (update + 1) ** -0.6
        self._log_step_size += gain * (acceptance - self.target_acceptance)
        # A step longer than the trajectory has no meaning; keep the memory of the walk bounded.
        self._log_step_size = min(self._log_step_size, math.log(self.trajectory))

    def tuning(self) -> dict[str, float]:
        return {"log_step_size": self._log_step_size}

    def set_tuning(self, values: Mapping[str, float]) -> None:
        self._log_step_size = float(values["log_step_size"])


def _moved_with_auxiliaries(before: State, refreshed: State, field: Tensor) -> State:
    """Return the state at another field, with what was drawn for the trajectory to it."""
    drawn = {
        name: one for name, one in refreshed.carried.items() if before.carried.get(name) is not one
    }
    moved = refreshed.moved(field)
    return replace(moved, carried={**moved.carried, **drawn})


def _sum(actions: Sequence[Action]) -> Action:
    return actions[0] if len(actions) == 1 else SumAction(actions)


def _inner_levels(
    action: Action, inner: Sequence[InnerLevel], integrator: str
) -> list[tuple[list[str], Integrator, int]]:
    """Return terms, scheme and steps of every inner level, checked."""
    if not inner:
        return []
    left = list(action.parts())
    levels = []
    for number, level in enumerate(inner):
        where = f"hmc: inner[{number}]"
        names, steps = list(level["terms"]), level.get("steps", 1)
        scheme = level.get("integrator", integrator)
        for name in names:
            if name not in left:
                raise ConfigError(
                    f"{where}: terms = {names!r}: the action has no part {name!r} that is not in "
                    f"another level{nearest(name, left)}"
                )
            left.remove(name)
        if not names:
            raise ConfigError(f"{where}: terms = []: name the parts that this level integrates")
        if steps < 1:
            raise ConfigError(f"{where}: steps = {steps}: should be >= 1")
        if scheme not in INTEGRATORS:
            raise ConfigError(
                f"{where}: unknown integrator {scheme!r}{nearest(scheme, INTEGRATORS)}"
            )
        levels.append((names, INTEGRATORS[scheme], int(steps)))
    if not left:
        raise ConfigError(
            "hmc: inner names all parts of the action: leave out those of the outermost level, "
            "which steps and integrator are for"
        )
    return levels
