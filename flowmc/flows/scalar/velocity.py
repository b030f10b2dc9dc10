r"""The equivariant velocity field of the continuous flow, its exact divergence and its gradients.

.. math:: v_x(\phi, t) = \sum_{y,f} \kappa_f(x - y; t)\, F_f(\phi_y), \qquad
          F_f(\phi) = \sum_{g} C_{fg} \sin(\omega_g \phi) + C_{f0}\, \phi

with kernels :math:`\kappa_f` that are constant on the orbits of the point group.  The divergence
sees only their value at zero offset, :math:`\sum_x \sum_f \kappa_f(0; t) F_f'(\phi_x)`.

Fields are ``(V, chains)`` here, features ``(V * chains, channels)``.  One evaluation and its
vector-Jacobian product are written by hand: automatic differentiation would keep the sines of every
site, chain, feature and time; here only the field itself is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmc.flows.parts.products import divisor
from flowmc.flows.parts.runge_kutta import Tableau, integrate, integrate_back
from flowmc.flows.scalar.symmetric_kernels import LatticeSpectrum
from flowmc.lattice import sum_over_rows

__all__ = ["Coefficients", "FixedStepMap", "Velocity"]

# Site-chain pairs treated at once: the features of so many fit into the cache of one core.
_BLOCK_ON_CPU = 4096


@dataclass
class Coefficients:
    """Everything the velocity depends on besides the field, at a sequence of times.

    Attributes:
        frequencies: omega, ``(g,)``.
        mixing: C of the sines, ``(f, g)``.
        linear: C of the linear feature, ``(f,)``.
        spectra: eigenvalues of the kernels, ``(times, V, f)``.
        slopes: kernels at zero offset contracted with C of the sines, ``(times, g)``; the
            divergence sums ``slopes * omega * cos(omega phi)`` and ``traces`` over the sites.
        traces: kernels at zero offset contracted with C of the linear feature, ``(times,)``.
    """

    frequencies: Tensor
    mixing: Tensor
    linear: Tensor
    spectra: Tensor
    slopes: Tensor
    traces: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the six tensors in the order of the attributes."""
        return (
            self.frequencies,
            self.mixing,
            self.linear,
            self.spectra,
            self.slopes,
            self.traces,
        )


class _Scratch:
    """Memory for the features, taken once: returning it to the system at every stage costs more
    than the sines that fill it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int, like: Tensor) -> Tensor:
        """Return an uninitialised ``(rows, g)`` for the g entries of ``like``."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape[0] < rows:
            buffer = like.new_empty(rows, like.shape[0])
            self._buffers[name] = buffer
        return buffer[:rows]


def _evaluate(
    x: Tensor, node: int, c: Coefficients, spectrum: LatticeSpectrum, scratch: _Scratch
) -> tuple[Tensor, Tensor]:
    """Return the velocity ``(V, chains)`` and its divergence ``(chains,)`` float64."""
    sites, chains = x.shape
    column = x.reshape(-1)
    theta = scratch("theta", len(column), c.frequencies)
    torch.outer(column, c.frequencies, out=theta)
    sine = torch.sin(theta, out=scratch("sine", len(column), c.frequencies))
    features = _features(column, sine, c)
    transformed = spectrum.transform(features.view(sites, -1)).view(sites, chains, -1)
    mixed = torch.bmm(transformed, c.spectra[node].unsqueeze(2)).squeeze(2)
    velocity = spectrum.transform(mixed, inverse=True)
    # Row by row: a library rounds a matrix times a vector differently for different threads.
    cosines = theta.cos_().mul_(c.slopes[node] * c.frequencies).sum(1).view(sites, chains)
    divergence = sum_over_rows(cosines)
    return velocity, divergence.add_(c.traces[node].to(torch.float64), alpha=sites)


def _features(column: Tensor, sine: Tensor, c: Coefficients) -> Tensor:
    """Return all F_f, ``(V * chains, f)``, from the field and its sines."""
    # A batch of products, for the reason given in flowmc.flows.parts.products.
    parts = divisor(len(column))
    return torch.baddbmm(
        torch.outer(column, c.linear).view(parts, -1, len(c.linear)),
        sine.view(parts, -1, sine.shape[1]),
        c.mixing.t().expand(parts, -1, -1),
    ).view(len(column), -1)


def _product(
    x: Tensor,
    node: int,
    c: Coefficients,
    spectrum: LatticeSpectrum,
    gradient_v: Tensor,
    gradient_divergence: Tensor,
    accumulate: Coefficients | None,
    scratch: _Scratch,
) -> Tensor:
    """Return the gradient with respect to x; add those of the coefficients to ``accumulate``."""
    sites, chains = x.shape
    column = x.reshape(-1)
    theta = scratch("theta", len(column), c.frequencies)
    torch.outer(column, c.frequencies, out=theta)
    sine = torch.sin(theta, out=scratch("sine", len(column), c.frequencies))
    cosine = theta.cos_()
    slope = c.slopes[node]
    # The cotangent of the divergence is the same at all sites of a chain.
    per_site = gradient_divergence.to(x.dtype).expand(sites, chains).reshape(-1)
    momentum_gradient = spectrum.transform(gradient_v)
    outgoing = momentum_gradient.unsqueeze(2) * c.spectra[node].unsqueeze(1)
    gradient_features = spectrum.transform(outgoing.reshape(sites, -1), inverse=True)
    gradient_features = gradient_features.reshape(sites * chains, -1)
    through_sine = scratch("through", len(column), c.frequencies)
    torch.mm(gradient_features, c.mixing, out=through_sine).mul_(cosine)
    gradient_x = torch.mv(gradient_features, c.linear)
    gradient_x = torch.addmv(gradient_x, through_sine, c.frequencies)
    curvature = torch.mv(sine, slope * c.frequencies.square())
    gradient_x = gradient_x.addcmul_(curvature, per_site, value=-1)
    if accumulate is not None:
        features = _features(column, sine, c)
        transformed = spectrum.transform(features.view(sites, -1)).view(sites, chains, -1)
        accumulate.spectra[node] += torch.bmm(momentum_gradient.unsqueeze(1), transformed).squeeze(
            1
        )
        weighted = torch.mv(cosine.t(), per_site)
        curved = torch.mv(sine.t(), per_site * column)
        accumulate.frequencies.addmv_(through_sine.t(), column)
        accumulate.frequencies.addcmul_(slope, weighted - c.frequencies * curved)
        accumulate.slopes[node].addcmul_(c.frequencies, weighted)
        accumulate.traces[node] += per_site.sum()
        accumulate.mixing.addmm_(gradient_features.t(), sine)
        accumulate.linear.addmv_(gradient_features.t(), column)
    return gradient_x.view(sites, chains)


class Velocity(torch.autograd.Function):
    """``(x, spectrum, *coefficients at one time) -> (v, div)``, differentiable once."""

    @staticmethod
    def forward(ctx, x, spectrum, *tensors):
        ctx.save_for_backward(x, *tensors)
        ctx.spectrum = spectrum
        return _evaluate(x, 0, Coefficients(*tensors), spectrum, _Scratch())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient_v, gradient_divergence):
        x, *tensors = ctx.saved_tensors
        coefficients = Coefficients(*tensors)
        gradients = _zeros(coefficients) if any(ctx.needs_input_grad[2:]) else None
        gradient_x = _product(
            x,
            0,
            coefficients,
            ctx.spectrum,
            gradient_v.contiguous(),
            gradient_divergence,
            gradients,
            _Scratch(),
        )
        parameters = gradients.tensors() if gradients else (None,) * len(tensors)
        return gradient_x, None, *parameters


class FixedStepMap(torch.autograd.Function):
    r"""``(x, force, spectrum, tableau, step, steps, keep, *coefficients) -> (y, total, force)``.

    The whole integration, with the integral of div v, and the gradient of the discrete map;
    differentiable once.  ``keep`` tells whether that gradient will be asked for, for which every
    stage is kept.  A force :math:`F = -\partial\ln q`, if not None, moves along by

    .. math:: \frac{dF}{dt} = -\frac{\partial v}{\partial\phi}^T F + \partial\, \mathrm{div}\, v

    (Vaitl, Nicoli, Nakajima, Kessel, arXiv:2206.09016); it has no gradient.  Chains are independent
    and pass through in blocks that fit into the cache.
    """

    @staticmethod
    def forward(
        ctx,
        x,
        force: Tensor | None,
        spectrum,
        tableau: Tableau,
        step: float,
        steps: int,
        keep: bool,
        *tensors,
    ):
        coefficients = Coefficients(*tensors)
        ctx.settings = (spectrum, tableau, step, steps)
        ctx.stages = []
        scratch, sites = _Scratch(), len(x)

        def velocity(stage: Tensor, node: int) -> tuple[Tensor, Tensor]:
            return _evaluate(stage, node, coefficients, spectrum, scratch)

        def with_force(stage: Tensor, node: int) -> tuple[Tensor, Tensor]:
            field, own = stage[:sites], stage[sites:]
            v, divergence = velocity(field, node)
            product = _product(
                field,
                node,
                coefficients,
                spectrum,
                own,
                torch.full_like(divergence, -1),
                None,
                scratch,
            )
            return torch.cat([v, -product]), divergence

        start = x if force is None else torch.cat([x, force])
        fields, totals = [], []
        for block in _blocks(start, sites):
            stages: list[Tensor] | None = [] if keep else None
            y, total = integrate(
                velocity if force is None else with_force, block, tableau, step, steps, stages
            )
            fields.append(y)
            totals.append(total)
            ctx.stages.append([stage[:sites] for stage in stages] if stages is not None else None)
        ctx.save_for_backward(*tensors)
        end = torch.cat(fields, 1)
        if force is None:
            return end, torch.cat(totals), None
        pushed = end[sites:]
        ctx.mark_non_differentiable(pushed)
        return end[:sites].clone(), torch.cat(totals), pushed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient_y, gradient_total, _):
        spectrum, tableau, step, steps = ctx.settings
        coefficients = Coefficients(*ctx.saved_tensors)
        accumulate = _zeros(coefficients) if any(ctx.needs_input_grad[7:]) else None
        scratch = _Scratch()

        def product(stage: Tensor, node: int, gradient_v: Tensor, gradient_div: Tensor) -> Tensor:
            return _product(
                stage, node, coefficients, spectrum, gradient_v, gradient_div, accumulate, scratch
            )

        gradients = []
        blocks = zip(_blocks(gradient_y, len(gradient_y)), ctx.stages, strict=True)
        start = 0
        for block, stages in blocks:
            stop = start + block.shape[1]
            gradients.append(
                integrate_back(
                    product, block, gradient_total[start:stop], tableau, step, steps, stages
                )
            )
            start = stop
        parameters = accumulate.tensors() if accumulate else (None,) * len(coefficients.tensors())
        return torch.cat(gradients, 1), *(None,) * 6, *parameters


def _blocks(x: Tensor, sites: int) -> list[Tensor]:
    """Split ``(rows, chains)`` of fields of so many sites into contiguous blocks of chains."""
    size = x.shape[1] if x.is_cuda else max(1, _BLOCK_ON_CPU // sites)
    return [block.contiguous() for block in x.split(size, dim=1)]


def _zeros(coefficients: Coefficients) -> Coefficients:
    return Coefficients(*(torch.zeros_like(tensor) for tensor in coefficients.tensors()))
