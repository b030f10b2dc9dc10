"""Hybrid Monte Carlo on any group.

S. Duane, A.D. Kennedy, B.J. Pendleton, D. Roweth, Phys. Lett. B195 (1987) 216.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.kernels.base import Info, Kernel, State, action_of, value_in_torch
from flowmc.kernels.integrators import trajectory
from flowmc.kernels.reporting import Reported
from flowmc.registry import ConfigError, nearest
from flowmc.splitting import INTEGRATORS

__all__ = ["HMC"]


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

        end, end_momentum = trajectory(
            action, group, field, momentum, self.integrator, step_size, self.steps
        )
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
            back, _ = trajectory(
                action, group, end, -end_momentum, self.integrator, step_size, self.steps
            )
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
