"""Rows put together from the words of all ranks, against putting in part by part."""

import numpy as np
import pytest

from flowmc.chains.diagnostics import Piece
from flowmc.chains.storage.rows import Packer, RowBuilder

BLANK = {
    "observables/a": np.full((5, 2), np.nan),
    "observables/b": np.full((5, 2, 3), np.nan),
    "kernels/hmc/tried": np.zeros(5, np.int64),
    "kernels/hmc/work": np.full(5, np.nan),
}


def draw(rng, rank, row):
    """Return the parts of a rank: chains 0, 1 or 2 to 4; a kernel joins in the second row."""
    first, last = ((0, 1), (1, 2), (2, 5))[rank]
    chains = last - first
    pieces = [Piece("observables/a", first, last, r, rng.normal(size=chains)) for r in (0, 1)]
    pieces += [Piece("observables/b", first, last, 1, rng.normal(size=(chains, 3)))]
    if row > 0 or rank == 0:
        pieces.append(Piece("kernels/hmc/tried", first, last, None, rng.integers(9, size=chains)))
    return pieces


def test_rows_are_those_of_all_parts():
    rng = np.random.default_rng(1)
    builder = RowBuilder(BLANK, 4)
    packers = [Packer() for _ in range(4)]
    base = {"kernels/hmc/work": np.arange(5.0)}
    row = 0
    for count, start in ((3, base), (0, None), (1, None), (2, None)):
        expected = []
        for index in range(count):
            values = {path: value.copy() for path, value in BLANK.items()}
            if index == 0 and start is not None:
                values["kernels/hmc/work"][:] = base["kernels/hmc/work"]
            for rank, packer in enumerate(packers):
                # The last rank has nothing to do.
                pieces = draw(rng, rank, row) if rank < 3 else []
                packer.add(pieces)
                for piece in pieces:
                    piece.put(values)
            expected.append(values)
            row += 1
        found = list(builder.rows([packer.take() for packer in packers], start))
        assert len(found) == count
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for path, value in theirs.items():
                assert ours[path].dtype == value.dtype
                np.testing.assert_array_equal(ours[path], value)


def test_what_does_not_fit_is_refused():
    builder = RowBuilder(BLANK, 2)
    one, other = Packer(), Packer()
    one.add([])
    with pytest.raises(ValueError, match="number of rows"):
        list(builder.rows([one.take(), other.take()]))
    one.add([Piece("observables/a", 0, 2, 0, np.zeros(3))])
    other.add([])
    with pytest.raises(ValueError, match="came as"):
        list(builder.rows([one.take(), other.take()]))
