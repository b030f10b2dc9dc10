import signal
from collections.abc import Iterator

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


@pytest.fixture
def _at_a_terminal() -> Iterator[None]:
    """SIGHUP is not ignored, as it is under nohup, here and in processes that a test starts."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)
