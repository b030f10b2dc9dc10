r"""A driven process with work and heat accounted for separately.

Step n = 1 ... N of the forward process, from :math:`x_{n-1}` to :math:`x_n`:

.. math::
    y_n = f_n(x_{n-1}), \qquad W \mathrel{+}= S_n(y_n) - J_n - S_{n-1}(x_{n-1}), \\
    x_n \sim K_n(\cdot\,|\,y_n), \qquad Q \mathrel{+}= S_n(x_n) - S_n(y_n),

with :math:`K_n` leaving :math:`e^{-S_n}` invariant, :math:`J_n = \ln|\det \partial f_n|`, and
:math:`f_n` the identity in plain annealing.  *The order matters*: the action changes on the old
configuration, then the configuration is updated.  The sum is

.. math:: W = S_N(x_N) - S_0(x_0) - \sum_n J_n - Q ,

and :math:`\langle e^{-W} \rangle = Z_N / Z_0` for any speed of the process (C. Jarzynski, Phys.
Rev. Lett. 78 (1997) 2690; R.M. Neal, Stat. Comput. 11 (2001) 125; with flow layers H. Wu,
J. Köhler, F. Noé, arXiv:2002.06707, M. Caselle, E. Cellini, A. Nada, M. Panero, arXiv:2201.08862).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, Identity
from flowmc.kernels import Cycle
from flowmc.kernels.base import Kernel, State, action_of
from flowmc.nonequilibrium.starts import update

__all__ = ["Evolution", "Process"]

Observer = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Evolution:
    r"""What became of a batch of configurations.

    Attributes:
        field: at the end, ``(n, ...)``.
        work: W, ``(n,)`` float64; NaN where a flow layer failed.
        heat: Q, ``(n,)``.
        log_det: :math:`\sum J`, ``(n,)``.
        action: S at the end, of the target (forward) or of the start (reverse), ``(n,)``.
        step_work: mean work of each step, ``(N,)``, in the order of n.
        acceptance: of each step's first update, ``(N,)``; NaN where it has none.
    """

    field: Tensor
    work: Tensor
    heat: Tensor
    log_det: Tensor
    action: Tensor
    step_work: Tensor
    acceptance: Tensor


class Process(nn.Module):
    r"""The steps of a process; see the module's docstring.

    Args:
        actions: :math:`S_1 \dots S_N`, the target last.
        kernels: for each action, updates that leave it invariant, applied in order.  Each must
            have detailed balance (HMC, heat-bath, Metropolis): the reverse process uses the same
            ones in reversed order.
        flows: :math:`f_n`, from samples of :math:`S_{n-1}` towards those of :math:`S_n`; identities
            by default.

    Raises:
        ValueError: for lists of different length.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        kernels: Sequence[Sequence[Kernel]],
        flows: Sequence[Flow] | None = None,
    ) -> None:
        super().__init__()
        given = [Identity() for _ in actions] if flows is None else list(flows)
        if not actions or not len(actions) == len(kernels) == len(given):
            raise ValueError(
                f"a process needs kernels and flows for each of its {len(actions)} actions, got "
                f"{len(kernels)} and {len(given)}"
            )
        self.actions, self.kernels = list(actions), [list(each) for each in kernels]
        self.flows = nn.ModuleList(given)
        self._begun: set[int] = set()

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.actions)

    @property
    def target(self) -> Action:
        """The last action."""
        return self.actions[-1]

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        log_density: Tensor,
        rng: torch.Generator,
        observe: Observer | None = None,
    ) -> Evolution:
        r"""Drive a batch from the start to the target.

        Args:
            x: samples of the start, ``(n, ...)``.
            log_density: :math:`\ln r(x)` of the start's density (:math:`-S_0`, if only that is
                known; then :math:`\langle e^{-W} \rangle` is relative to its :math:`Z_0`).
            rng: of the updates.
            observe: called as ``observe(n, y, log_density)`` after the flow of every step, with the
                graph to that flow's weights alone: y is its image, and the log-density its change,
                :math:`-J_n`.
        """
        old = -log_density
        work, heat = torch.zeros_like(old), torch.zeros_like(old)
        total_det = torch.zeros_like(old)
        step_work, acceptances = [], []
        for index, (action, kernels) in enumerate(zip(self.actions, self.kernels, strict=True)):
            flow = cast(Flow, self.flows[index])
            with torch.set_grad_enabled(observe is not None):
                y, change = flow.forward(x, torch.zeros_like(old))
                if observe is not None:
                    observe(index, y, change)
            y, change = y.detach(), change.detach()
            # First the action, on the configuration as it is ...
            new = action(y)
            increment = new + change - old
            work, total_det = work + increment, total_det - change
            # ... then the configuration.
            self._begin(index, y[torch.isfinite(new)])
            state, acceptance = _updated(kernels, State(y, new), rng)
            x, old = state.field, action_of(action, state)
            heat = heat + (old - new)
            step_work.append(increment.mean())
            acceptances.append(acceptance)
        return Evolution(
            x, work, heat, total_det, old, torch.stack(step_work), torch.tensor(acceptances)
        )

    def _begin(self, index: int, field: Tensor) -> None:
        """Let the kernels of a step see a field before they are first used."""
        if index not in self._begun and self.kernels[index] and len(field):
            Cycle(self.kernels[index]).init(field[:1])
            self._begun.add(index)

    @torch.no_grad()
    def reverse(
        self, y: Tensor, log_density: Callable[[Tensor], Tensor], rng: torch.Generator
    ) -> Evolution:
        r"""Drive samples of the target back to the start.

        .. math:: W_R = S_0(x_0) - S_N(y) + \sum_n J_n - Q ,

        with J at the configurations that the flows are pulled back to.

        Args:
            y: samples of the target, ``(n, ...)``.
            log_density: of the start, as in :meth:`forward`.
            rng: of the updates.
        """
        before: list[Callable[[Tensor], Tensor]] = [
            lambda x: -log_density(x),
            *self.actions[:-1],
        ]
        field, old = y, self.target(y)
        work, heat = torch.zeros_like(old), torch.zeros_like(old)
        total_det = torch.zeros_like(old)
        step_work, acceptances = [], []
        for index in reversed(range(self.steps)):
            self._begin(index, field[torch.isfinite(old)])
            state, acceptance = _updated(self.kernels[index][::-1], State(field, old), rng)
            moved = action_of(self.actions[index], state)
            heat = heat + (moved - old)
            flow = cast(Flow, self.flows[index])
            field, change = flow.inverse(state.field, torch.zeros_like(old))
            old = before[index](field)
            increment = old + change - moved
            work, total_det = work + increment, total_det + change
            step_work.append(increment.mean())
            acceptances.append(acceptance)
        return Evolution(
            field,
            work,
            heat,
            total_det,
            old,
            torch.stack(step_work[::-1]),
            torch.tensor(acceptances[::-1]),
        )


def _updated(kernels: Sequence[Kernel], state: State, rng: torch.Generator) -> tuple[State, float]:
    """Update the chains that are finite; the others keep their NaN, which is no weight."""
    known = state.action
    assert known is not None
    finite = torch.isfinite(known)
    if bool(finite.all()):
        state, acceptance = update(kernels, state, rng)
        return state, float("nan") if acceptance is None else acceptance
    if not bool(finite.any()):
        return state, float("nan")
    part, acceptance = update(kernels, State(state.field[finite], known[finite]), rng)
    field, action = state.field.clone(), known.clone()
    field[finite] = part.field
    if part.action is not None:
        action[finite] = part.action
    return State(field, action), float("nan") if acceptance is None else acceptance
