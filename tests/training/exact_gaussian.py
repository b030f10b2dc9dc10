"""Two coupled sites and a linear flow: every objective and its gradient in closed form."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.actions import FreeScalar
from flowmc.flows import Flow, FlowModel, GaussianPrior
from flowmc.random import stream

ACTION = FreeScalar([2], m2=0.8)
# S = 1/2 x.K x
PRECISION = 2 * torch.tensor([[2.8, -2.0], [-2.0, 2.8]], dtype=torch.float64)
LOG_Z = ACTION.log_partition()


class Linear(Flow):
    """x = M z + b with M lower triangular."""

    def __init__(self, scales=(-1.0, -0.8), shear=0.1, shift=(0.05, -0.1)):
        super().__init__()
        self.scales = nn.Parameter(torch.tensor(scales, dtype=torch.float64))
        self.shear = nn.Parameter(torch.tensor([shear], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def matrix(self):
        diagonal = torch.diag(self.scales.exp())
        below = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        return diagonal + below * self.shear

    def forward(self, x, log_density):
        return x @ self.matrix().T + self.shift, log_density - self.scales.sum()

    def inverse(self, y, log_density):
        x = torch.linalg.solve(self.matrix(), (y - self.shift).T).T
        return x, log_density + self.scales.sum()


def model(**keys):
    return FlowModel(GaussianPrior(ACTION), Linear(**keys)).to(torch.float64)


def perfect():
    """Return the model whose density is the target's."""
    matrix = torch.linalg.cholesky(torch.linalg.inv(PRECISION))
    scales = matrix.diagonal().log().tolist()
    return model(scales=scales, shear=float(matrix[1, 0]), shift=(0.0, 0.0))


def quadrature(mean: Tensor, covariance: Tensor, nodes: int = 60) -> tuple[Tensor, Tensor]:
    """Return points ``(nodes^2, 2)`` and weights of a Gaussian average."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.from_numpy(np.stack(np.meshgrid(points, points, indexing="ij"), -1)).reshape(-1, 2)
    weight = torch.from_numpy(np.outer(weights, weights)).reshape(-1) / (2 * math.pi)
    return mean + grid @ torch.linalg.cholesky(covariance).T, weight


def points_of_target():
    return quadrature(torch.zeros(2, dtype=torch.float64), torch.linalg.inv(PRECISION))


def points_of_flow(model):
    matrix = model.flow.matrix().detach()
    return quadrature(model.flow.shift.detach(), matrix @ matrix.T)


def g_of(model, x):
    """ln q + S with a graph to the weights at fixed x, by the definition of the density."""
    return model.log_prob(x) + ACTION(x).detach()


def flat_gradient(scalar, model):
    gradients = torch.autograd.grad(scalar, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def exact_reverse(model):
    """The reverse loss, by Gaussian integrals."""
    matrix, shift = model.flow.matrix(), model.flow.shift
    covariance = matrix @ matrix.T
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    return -entropy + 0.5 * (PRECISION @ covariance).trace() + 0.5 * shift @ PRECISION @ shift


def exact_forward(model):
    """The forward loss: <S>_p = 1 for two modes."""
    matrix, shift = model.flow.matrix(), model.flow.shift
    covariance = matrix @ matrix.T
    second = torch.linalg.inv(PRECISION) + torch.outer(shift, shift)
    cross = 0.5 * (torch.linalg.inv(covariance) @ second).trace()
    return 0.5 * torch.logdet(2 * math.pi * covariance) + cross - 1.0


def exact_log_variance(model, share, n):
    """Half the variance over n samples of which a share comes from the target."""
    foreign = round(share * n)
    moments = []
    for (x, weight), count in ((points_of_flow(model), n - foreign), (points_of_target(), foreign)):
        g = g_of(model, x)
        mean = (weight * g).sum()
        moments.append((count, mean, (weight * (g - mean) ** 2).sum()))
    within = sum(count * variance for count, _, variance in moments) / n
    (a, mean_a, _), (b, mean_b, _) = moments
    return 0.5 * (within + a * b / (n * (n - 1)) * (mean_a - mean_b) ** 2)


def exact_alpha_two(model):
    """ln of the integral of e^{-2S} / q."""
    matrix, shift = model.flow.matrix(), model.flow.shift
    covariance = matrix @ matrix.T
    precision = torch.linalg.inv(covariance)
    remaining = 2 * PRECISION - precision
    assert torch.linalg.eigvalsh(remaining).min() > 0
    linear = precision @ shift
    exponent = 0.5 * linear @ torch.linalg.solve(remaining, linear) + 0.5 * shift @ linear
    gaussian = -0.5 * torch.logdet(remaining / (2 * math.pi))
    return exponent + gaussian + 0.5 * torch.logdet(2 * math.pi * covariance)


class ExactDraws:
    """Looks like an ensemble, with independent exact draws."""

    def __init__(self):
        self.action, self.draws = ACTION, 0

    def distribute(self, communicator):
        pass

    def draw_share(self, n):
        self.draws += 1
        return ACTION.sample(n, stream(77, self.draws, "exact draws")), torch.arange(n)


def sample_gradients(objective, batches, n):
    """Return the gradients ``(batches, parameters)`` and losses of independent batches."""
    parameters = list(objective.module.parameters())
    rows, losses = [], []
    for index in range(batches):
        batch = objective.evaluate(n, stream(5, index, "batches"))
        gradients = torch.autograd.grad(batch.surrogate, parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        losses.append(float(batch.loss))
    return torch.stack(rows), torch.tensor(losses, dtype=torch.float64)


def largest_pull(values, exact):
    """Return the largest deviation of the column means from their exact values, in errors."""
    values = values.reshape(len(values), -1)
    error = values.std(0) / len(values) ** 0.5
    return float(((values.mean(0) - exact).abs() / error).max())


def pulls(objective, loss, module, n):
    """Return the largest pull of the gradients of 200 batches, and that of their losses."""
    gradients, losses = sample_gradients(objective, 200, n)
    return (
        largest_pull(gradients, flat_gradient(loss, module)),
        largest_pull(losses, float(loss.detach())),
    )
