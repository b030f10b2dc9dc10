"""Rows of measurements as 8-byte words: how a rank packs its parts, how rank 0 puts rows together.

Rank 0 does so for all ranks, so that its time per rank and row bounds the number of ranks that a
run can have.  What the words of a rank mean is told once, when it changes; afterwards a row of any
number of ranks is put together by one indexed copy.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flowmc.chains.diagnostics import Piece

__all__ = ["Packer", "RowBuilder"]

# A meaning: path, first and last chain, replica, shape of every part of a row.
Meaning = tuple[tuple[str, int, int, int | None, tuple[int, ...]], ...]


class Packer:
    """Collects the rows of one rank until they are taken."""

    def __init__(self) -> None:
        self._meanings: list[Meaning] = []
        self._told = 0
        self._versions: list[int] = []
        self._words: list[np.ndarray] = []

    def add(self, pieces: Sequence[Piece]) -> None:
        """Copy the parts of one row; all are float64 or int64."""
        meaning = tuple((p.path, p.first, p.last, p.replica, p.values.shape) for p in pieces)
        if not self._meanings or self._meanings[-1] != meaning:
            self._meanings.append(meaning)
        self._versions.append(len(self._meanings) - 1)
        words = [np.ascontiguousarray(p.values).reshape(-1).view(np.int64) for p in pieces]
        self._words.append(np.concatenate(words) if words else np.empty(0, np.int64))

    def take(self) -> np.ndarray:
        """Return all rows since the last call as one message for :class:`RowBuilder`.

        Number of rows, number of words of the new meanings (pickled), version of every row, the
        new meanings, the rows.
        """
        new = b""
        if self._told < len(self._meanings):
            new = pickle.dumps(self._meanings[self._told :])
            new += bytes(-len(new) % 8)
        head = np.array([len(self._versions), len(new) // 8, *self._versions], np.int64)
        message = np.concatenate([head, np.frombuffer(new, np.int64), *self._words])
        self._told = len(self._meanings)
        self._versions, self._words = [], []
        return message


class RowBuilder:
    """Puts the rows of all ranks together.

    Args:
        blank: a row of all chains to which no rank adds anything, by path: float64 or int64.
        ranks: number of ranks.
    """

    def __init__(self, blank: Mapping[str, np.ndarray], ranks: int) -> None:
        self._slots: dict[str, tuple[int, np.ndarray]] = {}
        words, position = [], 0
        for path, value in blank.items():
            places = np.arange(position, position + value.size).reshape(value.shape)
            self._slots[path] = position, places
            words.append(np.ascontiguousarray(value).reshape(-1).view(np.int64))
            position += value.size
        self._blank = np.concatenate(words)
        self._types = {path: value.dtype for path, value in blank.items()}
        # Of every rank and version: where in a row its words belong.
        self._places: list[list[np.ndarray]] = [[] for _ in range(ranks)]
        self._plan_key = b""
        self._plan: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def rows(
        self, messages: Sequence[np.ndarray], base: Mapping[str, np.ndarray] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the rows in the messages of all ranks, which hold equally many.

        Args:
            messages: by rank, from :meth:`Packer.take`.
            base: replaces the blank in the first row.
        """
        count = int(messages[0][0])
        lengths = np.array([len(message) for message in messages])
        everything = np.concatenate(messages)
        heads = np.cumsum(lengths) - lengths
        pickled = everything[heads + 1]
        if not (everything[heads] == count).all():
            raise ValueError("ranks disagree about the number of rows")
        for rank in np.flatnonzero(pickled):
            begin = heads[rank] + 2 + count
            data = everything[begin : begin + pickled[rank]]
            self._places[rank] += [self._places_of(m) for m in pickle.loads(data.tobytes())]
        starts = heads + 2 + count + pickled
        for row in range(count):
            versions = everything[heads + 2 + row]
            place, rank_of, within, widths = self._planned(versions)
            words = self._blank.copy()
            if row == 0 and base is not None:
                for path, value in base.items():
                    _, places = self._slots[path]
                    words[places] = np.ascontiguousarray(value, self._types[path]).view(np.int64)
            words[place] = everything[starts[rank_of] + within]
            starts = starts + widths
            yield {
                path: words[first : first + places.size]
                .view(self._types[path])
                .reshape(places.shape)
                for path, (first, places) in self._slots.items()
            }

    def _places_of(self, meaning: Meaning) -> np.ndarray:
        found = [np.empty(0, np.int64)]
        for path, first, last, replica, shape in meaning:
            places = self._slots[path][1][first:last]
            if replica is not None:
                places = places[:, replica]
            if places.shape != tuple(shape):
                raise ValueError(f"{path}: a part of shape {places.shape} came as {shape}")
            found.append(places.reshape(-1))
        return np.concatenate(found)

    def _planned(
        self, versions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return, for the words of a row, its place, rank and position there; and the widths."""
        key = versions.tobytes()
        if self._plan is None or key != self._plan_key:
            own = [places[v] for places, v in zip(self._places, versions, strict=True)]
            widths = np.array([len(places) for places in own])
            rank_of = np.repeat(np.arange(len(own)), widths)
            within = np.arange(len(rank_of)) - np.repeat(np.cumsum(widths) - widths, widths)
            self._plan = np.concatenate(own), rank_of, within, widths
            self._plan_key = key
        return self._plan
