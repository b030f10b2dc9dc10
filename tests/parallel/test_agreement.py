"""When ranks stop and save, with a second rank played by the test."""

import itertools
import signal

import numpy as np
import pytest

from flowmc.parallel import Communicator, Pending, agreement
from flowmc.parallel.agreement import Agreement


class Two(Communicator):
    """Rank 0 of two; the other one says what the test has put into ``other``."""

    size = 2

    def __init__(self):
        super().__init__()
        self.other = np.zeros(6)
        self.begun, self.ended = 0, 0

    def start_maximum(self, values):
        heard = np.maximum(values, self.other)
        self.begun += 1

        def finish():
            self.ended += 1
            return heard

        return Pending(finish)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(agreement.time, "monotonic", lambda: now[0])
    return now


def updates_until_it_looks_up(agreed, clock, seconds):
    """Do updates of so many seconds; return their number."""
    for count in itertools.count(1):
        clock[0] += seconds
        agreed.took(update=seconds)
        if agreed.is_due:
            return count


def begin(ranks, clock, seconds, limit=None):
    """Let two ranks get to know how long an update takes."""
    agreed = Agreement(ranks, limit, 0.0)
    assert agreed.is_due
    assert agreed.reach(0, False) == (None, False)
    assert updates_until_it_looks_up(agreed, clock, seconds) == 1
    assert agreed.reach(0, False) == (None, False)
    return agreed


def test_short_updates_are_agreed_on_one_interval_later(clock):
    ranks = Two()
    agreed = begin(ranks, clock, 0.125)
    assert (ranks.begun, ranks.ended) == (2, 2)
    counts = []
    for _ in range(4):
        counts.append(updates_until_it_looks_up(agreed, clock, 0.125))
        assert agreed.reach(0, False) == (None, False)
        assert agreed.is_ahead
        # What has just been said is never waited for.
        assert ranks.begun == ranks.ended + 1
    assert counts == [16, 16, 16, 16]
    agreed.finish()
    assert ranks.begun == ranks.ended


def test_long_updates_are_agreed_on_at_once(clock):
    ranks = Two()
    agreed = begin(ranks, clock, 5.0)
    assert updates_until_it_looks_up(agreed, clock, 5.0) == 1
    ranks.other[0] = signal.SIGTERM
    assert agreed.reach(0, False) == ("SIGTERM", False)
    assert ranks.begun == ranks.ended


def test_a_signal_on_the_other_rank_stops_both_after_two_intervals_at_most(clock):
    ranks = Two()
    agreed = begin(ranks, clock, 0.125)
    updates_until_it_looks_up(agreed, clock, 0.125)
    agreed.reach(0, False)
    ranks.other[0] = signal.SIGTERM
    since = clock[0]
    updates_until_it_looks_up(agreed, clock, 0.125)
    assert agreed.reach(0, False) == (None, False)
    updates_until_it_looks_up(agreed, clock, 0.125)
    assert agreed.reach(0, False) == ("SIGTERM", False)
    assert clock[0] - since <= 2 * agreement._SECONDS_BETWEEN + 0.125


def test_a_due_checkpoint_is_written_once(clock):
    """It is asked for again before it is there, since the ranks hear of it one interval later."""
    ranks = Two()
    agreed = begin(ranks, clock, 0.125)
    saved, last = [], 0.0
    while clock[0] < 60:
        updates_until_it_looks_up(agreed, clock, 0.125)
        _, saves = agreed.reach(0, clock[0] - last >= 10.0)
        if saves:
            saved.append(clock[0])
            last = clock[0]
    assert len(saved) == 5
    assert (
        np.diff(saved).min() >= 10 and np.diff(saved).max() <= 10 + 2 * agreement._SECONDS_BETWEEN
    )


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.5, 7.0])
@pytest.mark.parametrize("checkpoint", [0.0, 6.0])
def test_the_time_limit_is_kept_and_used(clock, seconds, checkpoint):
    """The other rank is slower by a tenth, so that this one waits for it at the end."""
    limit = 300.0
    ranks = Two()
    agreed = begin(ranks, clock, seconds, limit)
    clock[0] += checkpoint
    agreed.took(checkpoint=checkpoint)
    reason = None
    while reason is None:
        updates_until_it_looks_up(agreed, clock, seconds)
        own = max(seconds, agreed._seconds / max(agreed._updates, 1))
        ranks.other[2:] = 1.1 * clock[0], 1.1 * seconds, checkpoint, 1.1 * own
        reason, _ = agreed.reach(0, False)
    assert reason == "time limit"
    assert 1.1 * clock[0] + checkpoint <= limit
    assert 1.1 * clock[0] + 2 * checkpoint + 2 * 1.1 * seconds >= limit - 1e-9
