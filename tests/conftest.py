import pytest
import torch
from exactness import single_threaded

from flowmc.random import stream


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    single_threaded()


@pytest.fixture(autouse=True)
def _initial_weights() -> None:
    """Flows that a test makes have the same first weights whatever ran before it."""
    torch.manual_seed(20260101)


@pytest.fixture
def rng() -> torch.Generator:
    return stream(20260101, 0, "tests")
