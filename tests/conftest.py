import pytest
import torch
from exactness import single_threaded

from flowmc.random import stream


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    single_threaded()


@pytest.fixture
def rng() -> torch.Generator:
    return stream(20260101, 0, "tests")
