r"""The equivariant continuous flow of scalar fields.

The field moves along a velocity for unit time, and its density by the divergence,

.. math:: \frac{d\phi_x}{dt} = \sum_{y,d,f} W_{[x-y],f,d}\, K_d(t)\, F_f(\phi_y), \qquad
          \frac{d \ln q}{dt} = -\sum_x \frac{\partial \dot\phi_x}{\partial\phi_x}.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowmc.actions import Action
from flowmc.flows.base import Flow
from flowmc.flows.parts.products import contract, multiply
from flowmc.flows.parts.runge_kutta import TABLEAUS, Tableau
from flowmc.flows.scalar.symmetric_kernels import LatticeSpectrum
from flowmc.flows.scalar.velocity import Coefficients, FixedStepMap, Velocity
from flowmc.lattice import sum_over_rows
from flowmc.native import has_continuous_map

__all__ = ["ContinuousFlow"]

_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
# Largest |phi| that tables of the velocity reach; the next one is tried when a field leaves them.
_RANGES = (8.0, 16.0, 64.0)
# Numbers in all tables together, beyond which they are not worth their memory: 2 GB.
_LARGEST_TABLES = 2**29
# Random vectors per chain in the estimate of a trace.
_PROBES = 2


class ContinuousFlow(Flow):
    r"""Continuous flow, equivariant under all symmetries of the lattice and :math:`\phi \to -\phi`.

    The architecture is that of Gerdes, de Haan, Rainone, Bondesan and Cheng, "Learning Lattice
    Quantum Field Theories with Equivariant Continuous Flows" (arXiv:2207.00283).  Site features
    :math:`\sin(\omega_g\phi)` and :math:`\phi` are contracted to the :math:`F_f`, a Fourier series
    in time to the :math:`K_d`, and W is one number per f, d and orbit of the offset x - y under the
    point group, on the whole lattice or within ``reach``.  W starts at zero: the flow starts as the
    identity.  The divergence is exact, as only W at zero offset enters.  Any dimension and any
    extents.

    The number of parameters is ``N_orb * site_channels * time_channels`` plus those of the
    features: 400 N_orb + 1,469 with the defaults.

    What is mapped is a discretisation of the flow, and the log-density is integrated beside it;
    neither is the exact Jacobian of the other.  :meth:`density_error` measures the difference.  An
    optimiser will exploit it if the steps are too few: watch it while training.

    Fixed-step integrators ("euler", "midpoint", "rk4") are differentiated exactly as the discrete
    map they are, at the memory cost of one field per stage.  The adaptive integrators of
    torchdiffeq ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun") choose their steps for
    the whole batch: the same field in another batch comes out differently at the level of the
    tolerance.

    Everything is computed in the precision of the weights and returned in that of the field.  On
    two axes, in float32 and on a CPU, fixed steps are integrated by compiled kernels
    (:mod:`flowmc.native.continuous`), which agree with torch to rounding.

    Args:
        action: the theory; gives the lattice.
        frequencies: number of trainable frequencies omega, initially uniform in [0, 5].
        site_channels: number of contracted site features f.
        time_frequencies: frequencies of the Fourier series in time, one cosine and one sine each.
        time_channels: number of contracted time features d.
        reach: the kernels W vanish at offsets of more sites than this along any axis; on the whole
            lattice if None.  The work per site and the number of parameters then do not grow with
            the volume, and one set of weights serves any lattice of at least 2 reach + 1 sites.
        integrator: one of those above.
        steps: number of steps of a fixed-step integrator, 50 unless given.
        tolerance: absolute and relative tolerance of an adaptive integrator, 1e-6 unless given.
        adjoint: differentiate an adaptive integrator by the adjoint equation, whose memory does not
            grow with the number of steps and whose gradients are right up to the tolerance.

    Raises:
        ValueError: for a gauge theory, an unknown integrator, or an option that the chosen
            integrator does not have.
    """

    log_density_is_exact = False

    def __init__(
        self,
        action: Action,
        *,
        frequencies: int = 49,
        site_channels: int = 20,
        time_frequencies: int = 10,
        time_channels: int = 20,
        reach: int | None = None,
        integrator: str = "rk4",
        steps: int | None = None,
        tolerance: float | None = None,
        adjoint: bool = False,
    ) -> None:
        super().__init__()
        if not action.is_scalar:
            raise ValueError(f"ContinuousFlow moves scalar fields, but the theory is {action!r}")
        if min(frequencies, site_channels, time_channels) < 1 or time_frequencies < 0:
            raise ValueError(
                "ContinuousFlow needs frequencies, site_channels and time_channels >= 1 and "
                f"time_frequencies >= 0, got {frequencies}, {site_channels}, {time_channels} and "
                f"{time_frequencies}"
            )
        if reach is not None and reach < 0:
            raise ValueError(f"ContinuousFlow needs reach >= 0, got {reach}")
        if integrator not in TABLEAUS and integrator not in _ADAPTIVE:
            known = ", ".join([*TABLEAUS, *_ADAPTIVE])
            raise ValueError(f"unknown integrator {integrator!r}: use one of {known}")
        if integrator in TABLEAUS and (tolerance is not None or adjoint):
            raise ValueError(
                f"integrator {integrator!r} has fixed steps and exact gradients: leave out "
                "tolerance and adjoint, or choose an adaptive integrator such as 'dopri5'"
            )
        if integrator in _ADAPTIVE and steps is not None:
            raise ValueError(f"integrator {integrator!r} chooses its steps: give tolerance instead")
        self.lattice = action.lattice
        self.integrator = integrator
        self.steps = 50 if steps is None else int(steps)
        self.tolerance = 1e-6 if tolerance is None else float(tolerance)
        if self.steps < 1 or not self.tolerance > 0:
            raise ValueError("ContinuousFlow needs steps >= 1 and tolerance > 0")
        self.adjoint = adjoint
        self.reach = reach
        self.spectrum = LatticeSpectrum(self.lattice, reach)
        self.frequencies = nn.Parameter(5 * torch.rand(frequencies))
        self.site_mixing = nn.Parameter(
            torch.randn(site_channels, frequencies + 1) / math.sqrt(frequencies + 1)
        )
        terms = 2 * time_frequencies + 1
        self.time_mixing = nn.Parameter(torch.randn(time_channels, terms) / math.sqrt(terms))
        self._start_kernels(site_channels, time_channels)

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        y, total = self._flow(x, 0.0, 1.0)
        return y, log_density - total

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        x, total = self._flow(y, 1.0, 0.0)
        return x, log_density - total

    def forward_with_force(
        self, x: Tensor, log_density: Tensor, force: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if self.integrator not in TABLEAUS:
            return None
        rows, total, pushed = self._integrate(self._to_rows(x), 0.0, 1.0, self._to_rows(force))
        assert pushed is not None
        return self._to_fields(rows, x), log_density - total, self._to_fields(pushed, x)

    def velocity(self, x: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Return the velocity ``(chains, *L)`` and its divergence ``(chains,)`` at one time."""
        times = torch.tensor([time], dtype=self.frequencies.dtype, device=self.frequencies.device)
        v, divergence = Velocity.apply(
            self._to_rows(x), self.spectrum, *self._coefficients(times).tensors()
        )
        return self._to_fields(v, x), divergence

    def density_error(self, x: Tensor) -> Tensor:
        r"""Return an estimate per chain of the error of the log-density after :meth:`forward`.

        The error is that of the integrated divergence against the
        :math:`\ln|\det \partial y/\partial x|` of the discrete map itself.  Going forward, and then
        back with steps of half the size (a tenth of the tolerance), is a map :math:`r(x) \approx x`
        whose log-density would change by :math:`-\ln|\det \partial r/\partial x|` if it were exact.
        The determinant is estimated as :math:`\mathrm{tr}(\partial r/\partial x - 1)` with a few
        vectors of random signs, always the same, whose noise is of the size of the error in single
        chains: average over chains, or take the largest of many.
        """
        start = self._to_rows(x).detach()
        rng = torch.Generator().manual_seed(20220700283)
        shape = (_PROBES, *start.shape)
        probes = (2 * torch.randint(0, 2, shape, generator=rng) - 1).to(start)
        trace = torch.zeros(start.shape[1], dtype=torch.float64, device=start.device)
        with torch.enable_grad():
            start.requires_grad_(True)
            there, divergence, _ = self._integrate(start, 0.0, 1.0, frozen=True)
            settings = self.steps, self.tolerance
            try:
                self.steps, self.tolerance = 2 * self.steps, self.tolerance / 10
                back, returned, _ = self._integrate(there, 1.0, 0.0, frozen=True)
            finally:
                self.steps, self.tolerance = settings
            for probe in probes:
                (product,) = torch.autograd.grad(back, start, probe, retain_graph=True)
                trace += sum_over_rows((product - probe) * probe) / _PROBES
        return (trace - (divergence + returned).detach()).abs()

    def embedded(self, action: Action, reach: int | None = None) -> ContinuousFlow:
        """Return this flow on a larger lattice, for training by transfer from small volumes.

        Every kernel element keeps its offset.  An offset of half an extent is one site of the small
        lattice but stands for both directions; its weight is spread evenly.

        Args:
            action: the theory on the other lattice.
            reach: of the kernels there; elements beyond it are left out.

        Raises:
            ValueError: if the lattice is smaller in some direction, or other axes are equivalent.
        """
        small = self.spectrum
        other = type(self)(action, **self._sizes(), reach=reach).to(self.frequencies)
        other.integrator, other.steps = self.integrator, self.steps
        other.tolerance, other.adjoint = self.tolerance, self.adjoint
        large = other.spectrum
        numbers = {tuple(offset): i for i, offset in enumerate(large.representatives.tolist())}
        offsets = [tuple(offset) for offset in small.representatives.tolist()]
        same_axes = len(self.lattice) == len(other.lattice) and all(
            (a == b) == (c == d)
            for a, c in zip(self.lattice, other.lattice, strict=True)
            for b, d in zip(self.lattice, other.lattice, strict=True)
        )
        if not same_axes or any(a > b for a, b in zip(self.lattice, other.lattice, strict=True)):
            raise ValueError(
                f"a flow on {'x'.join(map(str, self.lattice))} cannot be embedded in "
                f"{'x'.join(map(str, other.lattice))}: every extent must be at least as large, and "
                "the same axes of equal extent"
            )
        kept = torch.tensor([i for i, offset in enumerate(offsets) if offset in numbers])
        index = torch.tensor([numbers[offsets[i]] for i in kept.tolist()])
        share = small.multiplicity[kept] / large.multiplicity[index]
        with torch.no_grad():
            own = self.kernels[..., kept, :, :] * share.to(self.kernels)[:, None, None]
            other.kernels[..., index, :, :] = own
            other.frequencies.copy_(self.frequencies)
            other.site_mixing.copy_(self.site_mixing)
            other.time_mixing.copy_(self.time_mixing)
        return other

    @property
    def fixed_steps(self) -> int | None:
        """The number of steps, which can be set; None for an adaptive integrator."""
        return self.steps if self.integrator in TABLEAUS else None

    @fixed_steps.setter
    def fixed_steps(self, steps: int | None) -> None:
        assert steps is not None
        self.steps = steps

    def weights_from(self, old: nn.Module, action: Action) -> Mapping[str, Tensor]:
        """Return those of the same class, embedded (:meth:`embedded`) from a smaller lattice."""
        weights = super().weights_from(old, action)
        assert isinstance(old, ContinuousFlow)
        if self.transfers_to_other_lattices or self._fits(old):
            return weights
        return old.embedded(action, self.reach).state_dict()

    def _fits(self, old: ContinuousFlow) -> bool:
        """Whether the kernels of another flow have the same offsets."""
        return (old.lattice, old.reach) == (self.lattice, self.reach)

    def speed_remark(self, dtype: torch.dtype, device: torch.device) -> str | None:
        single, own = (
            has_continuous_map(self.lattice, torch.empty(1, 1, dtype=one, device=device))
            for one in (torch.float32, dtype)
        )
        if own or not single:
            return None
        return (
            "continuous flows are compiled for fields of 32 bit only; this one is several times "
            "faster with precision = 32 in [chains]"
        )

    def _sizes(self) -> dict[str, Any]:
        """Return the arguments that the shapes of the weights come from, but for the reach."""
        return {
            "frequencies": len(self.frequencies),
            "site_channels": self.site_mixing.shape[0],
            "time_frequencies": (self.time_mixing.shape[1] - 1) // 2,
            "time_channels": self.time_mixing.shape[0],
        }

    def extra_repr(self) -> str:
        size = "x".join(map(str, self.lattice))
        if self.integrator in TABLEAUS:
            return f"{size}, integrator={self.integrator!r}, steps={self.steps}"
        return f"{size}, integrator={self.integrator!r}, tolerance={self.tolerance:g}"

    def _flow(self, x: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
        """Return the field ``(chains, *L)`` and the integral of div v dt from start to stop."""
        rows, total, _ = self._integrate(self._to_rows(x), start, stop)
        return self._to_fields(rows, x), total

    def _integrate(
        self,
        rows: Tensor,
        start: float,
        stop: float,
        force: Tensor | None = None,
        frozen: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Integrate fields ``(V, chains)`` and, with fixed steps, the force of their density.

        ``frozen`` leaves the weights out of the gradient.
        """
        if self.integrator in TABLEAUS:
            tableau = TABLEAUS[self.integrator]
            step = (stop - start) / self.steps
            keep = torch.is_grad_enabled()
            found = self._integrate_natively(rows, force, tableau, start, step, keep, frozen)
            if found is not None:
                return found
            nodes = torch.tensor(tableau.distinct_nodes, dtype=torch.float64)
            times = start + step * (torch.arange(self.steps).unsqueeze(1) + nodes)
            tensors = self._coefficients(times.flatten().to(self.frequencies)).tensors()
            if frozen:
                tensors = tuple(tensor.detach() for tensor in tensors)
            return FixedStepMap.apply(
                rows, force, self.spectrum, tableau, step, self.steps, keep, *tensors
            )
        times = torch.tensor([start, stop], dtype=rows.dtype, device=rows.device)
        from torchdiffeq import odeint, odeint_adjoint  # takes a second to import

        solve = odeint_adjoint if self.adjoint and not frozen else odeint
        # All chains share the steps: one that is not finite would leave none for the others.
        is_finite = torch.isfinite(rows).all(0)
        rows = torch.where(is_finite, rows, torch.zeros_like(rows))
        none = torch.zeros(rows.shape[1], dtype=rows.dtype, device=rows.device)
        fields, totals = solve(
            _Dynamics(self, frozen),
            (rows, none),
            times,
            rtol=self.tolerance,
            atol=self.tolerance,
            method=self.integrator,
        )
        field = torch.where(is_finite, fields[-1], torch.nan)
        return field, torch.where(is_finite, totals[-1], torch.nan).to(torch.float64), None

    def _integrate_natively(
        self,
        rows: Tensor,
        force: Tensor | None,
        tableau: Tableau,
        start: float,
        step: float,
        keep: bool,
        frozen: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return the result of the compiled kernels, or None if there are none for this case."""
        if not has_continuous_map(self.lattice, rows):
            return None
        from flowmc.flows.scalar.site_tables import (
            TabulatedMap,
            build_tables,
            make_plan,
            spacing_for,
            tables_shape,
        )

        largest_frequency = float(self.frequencies.detach().abs().max())
        if not math.isfinite(largest_frequency):
            return None
        spacing = spacing_for(largest_frequency)
        orbit = self.spectrum.quadrant()
        plan, times = make_plan(tableau, self.steps, step, orbit, spacing)
        times = start + step * times
        weights = [self.frequencies, self.site_mixing, self._kernels(times.to(self.frequencies))]
        if frozen:
            weights = [weight.detach() for weight in weights]
        fields = self._to_fields(rows, rows)
        own = None if force is None else self._to_fields(force, rows)
        for largest in _RANGES:
            shape = tables_shape(len(times), orbit, rows.dtype, spacing, largest)
            if math.prod(shape) > _LARGEST_TABLES:
                return None
            tables = build_tables(weights[0], weights[1], weights[2], orbit, spacing, largest)
            try:
                y, total, pushed = TabulatedMap.apply(fields, own, tables, plan, keep)
            except OverflowError:
                continue
            return y.flatten(1).t(), total, None if pushed is None else pushed.flatten(1).t()
        return None

    def _start_kernels(self, site_channels: int, time_channels: int) -> None:
        """Make the weights of the kernels, all zero."""
        self.kernels = nn.Parameter(torch.zeros(self.spectrum.orbits, site_channels, time_channels))

    def _spatial_kernels(self) -> Tensor:
        """Return W, ``(orbits, f, d)``."""
        return self.kernels

    def _kernels(self, times: Tensor) -> Tensor:
        """Return the kernels at ``times (nodes,)``, ``(nodes, orbits, f)``."""
        harmonics = (self.time_mixing.shape[1] - 1) // 2
        multiples = torch.arange(1, harmonics + 1, device=times.device)
        phases = 2 * math.pi * torch.outer(times.to(torch.float64), multiples)
        one = torch.ones_like(phases[:, :0].sum(1, keepdim=True))
        series = torch.cat([one, phases.cos(), phases.sin()], 1).to(times.dtype)
        weights = contract(series, self.time_mixing.t())
        # (orbits, times, f), then the times in front.
        return (
            multiply(weights, self._spatial_kernels().transpose(1, 2)).transpose(0, 1).contiguous()
        )

    def _coefficients(self, times: Tensor) -> Coefficients:
        """Contract the kernels with the time features at ``times (nodes,)``."""
        kernels = self._kernels(times)
        mixing = self.site_mixing[:, 1:].contiguous()
        linear = self.site_mixing[:, 0].contiguous()
        return Coefficients(
            frequencies=self.frequencies,
            mixing=mixing,
            linear=linear,
            spectra=self.spectrum.eigenvalues(kernels),
            slopes=contract(kernels[:, 0], mixing),
            traces=contract(kernels[:, 0], linear[:, None]).squeeze(1),
        )

    def _to_rows(self, x: Tensor) -> Tensor:
        """Return the field as ``(V, chains)`` in the precision of the weights."""
        if tuple(x.shape[1:]) != self.lattice:
            raise ValueError(
                f"a field of shape {tuple(x.shape)} does not fit this flow, which was built for "
                f"(chains, {', '.join(map(str, self.lattice))})"
            )
        return x.flatten(1).t().to(self.frequencies.dtype)

    def _to_fields(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return the field of ``(V, chains)`` in the precision of another."""
        return rows.t().reshape(-1, *self.lattice).to(like.dtype)


class _Dynamics(nn.Module):
    """The right-hand side of the field and of the integrated divergence, for torchdiffeq."""

    def __init__(self, flow: ContinuousFlow, frozen: bool) -> None:
        super().__init__()
        # A copy that shares the weights: the adjoint equation is solved when a conditional flow may
        # be at another coupling.
        self.flow, self.frozen = copy.copy(flow), frozen

    def forward(self, time: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows, _ = state
        tensors = self.flow._coefficients(time.reshape(1).to(rows.dtype)).tensors()
        if self.frozen:
            tensors = tuple(tensor.detach() for tensor in tensors)
        v, divergence = Velocity.apply(rows.contiguous(), self.flow.spectrum, *tensors)
        return v, divergence.to(rows.dtype)
