import os
import signal
from collections.abc import Iterator

import pytest
import torch
from exactness import single_threaded

# Else a command that a test calls in its own process gives it all cores (choose_threads), and the
# workers of pytest spend most of their time waiting for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "slow tests with all kills, mutations and damaged files of docs/validation.md: hours"
    parser.addoption("--campaign", action="store_true", help=text)


@pytest.fixture
def share(request: pytest.FixtureRequest) -> int:
    """Of how many kills, mutations and damaged files of a campaign a slow test tries one."""
    return 1 if request.config.getoption("campaign") else 10


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    single_threaded()


@pytest.fixture(autouse=True)
def _initial_weights() -> None:
    """Flows that a test makes have the same first weights whatever ran before it."""
    torch.manual_seed(20260101)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures are made but neither laid out nor drawn, which takes most of their time.

    For tests of the numbers and words of a page: `run/test_pages.py` looks at its pictures.
    """
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr(
        "matplotlib.backends.backend_svg.FigureCanvasSVG.print_svg",
        lambda canvas, file, **options: file.write(empty),
    )
    monkeypatch.setattr(
        "matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda engine, figure: None
    )


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
