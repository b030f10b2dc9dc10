"""Random streams: what they are made of, and that none meets another."""

import hashlib

import numpy as np
import pytest
import torch

from flowmc.random import Streams, shared_stream, stream


@pytest.mark.parametrize(("first", "second"), [(50624, 95902), (80610, 102730), (192482, 193155)])
def test_streams_that_share_32_bits_of_a_seed_differ(first, second):
    """The torch generator keeps 32 bits of a seed, in which these blocks once agreed."""
    one, other = (stream(7, block, "update") for block in (first, second))
    assert not torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


def test_all_bits_of_a_stream_come_from_its_name():
    """The numbers are those of numpy's Mersenne twister with all words of the hash as its state."""
    words = np.frombuffer(hashlib.shake_256(b"7, 3, update").digest(4 * 624), "<u4")
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.randint(2**20, (1500,), generator=stream(7, 3, "update"))
    np.testing.assert_array_equal(drawn.numpy(), twister.random_raw(1500) % 2**20)


def test_a_stream_goes_on_from_its_state():
    """As a checkpoint has it: also between the two normal numbers that are drawn at once."""
    rng = stream(2**63 + 5, 0, "update")
    torch.randn(3, dtype=torch.float64, generator=rng)
    again = torch.Generator()
    again.set_state(rng.get_state())
    assert torch.equal(torch.randn(50, generator=again), torch.randn(50, generator=rng))
    assert again.initial_seed() == rng.initial_seed() < 2**63


def test_distinct_names_give_distinct_streams():
    names = [
        (seed, block, f"u{k}") for seed in (1, 12, 2**32 + 1) for block in (0, 2) for k in "01"
    ]
    names += [(1, 0, "0, u"), (10, 0, "u"), (0, 1, "u")]
    first = {tuple(stream(*name).get_state()[24:56].tolist()) for name in names}
    assert len(first) == len(names)


def test_shared_streams_of_one_replica_do_not_depend_on_the_others():
    """A rank that has replica 1 alone draws for it what one that has both draws."""

    def key(streams):
        return int(torch.randint(2**62, (), generator=shared_stream(streams, "independence")))

    both, alone = Streams(7, 0, 3, {}), Streams(7, 0, 3, {})
    keys = [key(both.on(0)), key(both.on(1)), key(both), key(both.on(1))]
    assert len(set(keys)) == 4
    assert [key(alone.on(1)), key(alone.on(1))] == [keys[1], keys[3]]
    assert key(alone) == keys[2]
