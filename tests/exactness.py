"""Tests against exact distributions, with a stated false-alarm rate.

With :func:`flowmc.testing.p_value_of_change` a correct kernel fails :data:`THRESHOLD` with
probability below 1e-6.  The whole suite makes fewer than 100 such tests: below 1e-4 in total.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 1e-6


def assert_mean(values: Tensor, exact: float, sigmas: float = 5.5) -> None:
    """Assert that independent draws have the exact mean; 5.5 sigma is a false alarm of 4e-8."""
    error = float(values.double().std() / len(values) ** 0.5)
    deviation = abs(float(values.double().mean()) - exact)
    assert deviation < sigmas * error, f"off by {deviation / error:.1f} sigma"


def single_threaded() -> None:
    """Small tensors: threads cost more than they bring, and results stay comparable."""
    torch.set_num_threads(1)
