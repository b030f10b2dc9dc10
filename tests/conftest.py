import pytest
import torch
from exactness import single_threaded


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    single_threaded()


@pytest.fixture(autouse=True)
def _initial_weights() -> None:
    """Flows that a test makes have the same first weights whatever ran before it."""
    torch.manual_seed(20260101)


@pytest.fixture
def rng() -> torch.Generator:
    """Numbers that stay the same when the streams of runs are made in another way."""
    return torch.Generator().manual_seed(8623414109925789621)
