"""The field of a host program: taken from its memory, updated, put back."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmc.chains.assembly import assemble
from flowmc.chains.config import load_config
from flowmc.chains.stepper import Stepped, step, summary_of
from flowmc.io import field_to_file_order, take_field, with_signs
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.registry import ConfigError

__all__ = ["HostStream", "Part"]

_HOST = "the host's field"
# Of messages between ranks.
_TO_ROOT, _FROM_ROOT = 1, 2


@dataclass(frozen=True)
class Part:
    """The part of the lattice that a rank holds.

    Attributes:
        origin: its first site in direction x, y, ...
        extents: its number of sites likewise.
    """

    origin: tuple[int, ...]
    extents: tuple[int, ...]

    @property
    def sites(self) -> tuple[slice, ...]:
        """Where its sites are in an array ``[..., y, x]`` of the whole lattice."""
        pairs = zip(self.origin, self.extents, strict=True)
        return tuple(slice(first, first + count) for first, count in pairs)[::-1]


class HostStream:
    """A stream of fields of a host program, updated by the kernels of a configuration.

    The field is all the state there is, as for :func:`flowmc.chains.step`: the same field, seed and
    number give the same bits as there and as ``flowmc step``.

    Args:
        configuration: path of the file, as for ``flowmc step``.
        settings: values that replace those of the file, ``"section.key=value"``.
        communicator: of the host's ranks; one rank alone by default.
        part: returns the part of the lattice that this rank has, given its number of dimensions;
            all of it by default.

    Attributes:
        part: of the lattice that this rank has.
        directions: elements on a site: of links the dimension, else 1.
        element: real numbers of one element.

    Raises:
        ConfigError: the configuration is unusable or for more than one field, or the parts of the
            ranks are not the lattice.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        configuration: str,
        settings: Sequence[str] = (),
        communicator: Communicator | None = None,
        part: Callable[[int], Part] | None = None,
    ) -> None:
        self._ranks = communicator or Communicator()
        self._ranks.timeout = math.inf  # a host may be long at work between two updates
        self._config = self._ranks.together(
            lambda: load_config(configuration, for_step=True, settings=settings)
        )
        action = self._config.action
        self._ranks.together(self._check)
        whole = Part((0,) * action.dimensions, tuple(action.lattice))
        self.part = whole if part is None else part(action.dimensions)
        self._parts: Any = self._ranks.gather(self.part)
        self._ranks.from_root(lambda: _check_parts(self._parts, action.lattice))
        choose_threads(self._ranks)
        # The first rank alone computes.
        self._assembly = self._ranks.together(
            lambda: assemble(self._config) if self._ranks.rank == 0 else None
        )
        inner = action.field_shape(1)[1 + action.dimensions + action.is_gauge :]
        self.directions = action.dimensions if action.is_gauge else 1
        is_complex = action.group.field_dtype(torch.float64).is_complex
        self.element = math.prod(inner) * (2 if is_complex else 1)
        self._is_complex, self._inner = is_complex, tuple(inner)
        self._last: int | None = None
        self._stepped: Stepped | None = None
        self._summary: dict[str, Any] | None = None
        self._busy = threading.Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this rank's numbers: ``[t][z][y][x][mu]...``, without ``mu`` for fields on sites."""
        return self._shape_of(self.part)

    def _shape_of(self, part: Part) -> tuple[int, ...]:
        direction = (self.directions,) if self._config.action.is_gauge else ()
        return (*part.extents[::-1], *direction, *self._inner, *((2,) if self._is_complex else ()))

    def _check(self) -> None:
        config = self._config
        if config.ladder is not None:
            raise ConfigError(
                "a host program has one field, a ladder needs one per replica: remove [ladder] and "
                "the exchange"
            )
        if config.chains.count != 1:
            raise ConfigError(
                f"[chains]: count = {config.chains.count}: a host program has one field, set "
                "count = 1"
            )

    def update(self, numbers: np.ndarray, number: int) -> None:
        """Apply all kernels once to a field, in place.

        Args:
            numbers: this rank's, of :attr:`shape`, float64 or float32, contiguous.
            number: of the update, above that of the last one.

        Raises:
            ConfigError, FormatError: the number or the field is unusable; nothing has changed.
            NonFiniteStateError: the update failed; nothing has changed.
            CollectiveError: the same on several ranks.
        """
        if not self._busy.acquire(blocking=False):
            raise ConfigError("this stream is in use by another thread")
        try:
            self._update(numbers, number)
        finally:
            self._busy.release()

    def _update(self, numbers: np.ndarray, number: int) -> None:
        if self._last is not None and number <= self._last:
            raise ConfigError(
                f"number {number} is not above that of the last update, {self._last}: it selects "
                "the random numbers, and an update with those of an earlier one is biased"
            )
        whole = self._gather(numbers)
        self._ranks.from_root(lambda: self._step(whole, number))
        self._last = number
        self._scatter(whole, numbers.reshape(self.shape))

    def _step(self, array: np.ndarray | None, number: int) -> None:
        """Update the whole lattice in place; on the first rank."""
        assert array is not None and self._assembly is not None
        action, assembly = self._config.action, self._assembly
        precision = 8 * array.dtype.itemsize
        values: np.ndarray = array.astype(np.float64)
        if self._is_complex:
            values = values.view(np.complex128)[..., 0]
        if not np.isfinite(values).all():
            raise ConfigError(f"{_HOST} has numbers that are not finite")
        field, signs = take_field(
            values,
            action,
            _HOST,
            precision=precision,
            dtype=assembly.dtype,
            device=assembly.device,
            notes=[],
        )
        for kernel in assembly.timed.values():
            kernel.seconds = 0.0
        stepped = step(field, assembly, seed=self._config.chains.seed, number=number)
        # What is measured only if the host asks for it.
        self._stepped, self._summary = stepped, None
        out = with_signs(stepped.field, signs)[0].cpu().resolve_conj().numpy()
        out = field_to_file_order(out, action)
        if self._is_complex:
            out = np.stack([out.real, out.imag], -1)
        array[...] = out

    def _gather(self, numbers: np.ndarray) -> np.ndarray | None:
        """Return the field of the whole lattice on the first rank, of its own."""
        ranks = self._ranks
        own = numbers.reshape(self.shape)
        if ranks.size == 1:
            return own.copy()
        if ranks.rank:
            ranks.send(torch.from_numpy(own), 0, _TO_ROOT, "parts of a field").wait()
            return None
        lattice = tuple(self._config.action.lattice)
        whole = np.empty(self._shape_of(Part((0,) * len(lattice), lattice)), own.dtype)
        whole[self.part.sites] = own
        for source, part in enumerate(self._parts):
            if source:
                whole[part.sites] = self._receive(self._shape_of(part), own.dtype, source, _TO_ROOT)
        return whole

    def _receive(self, shape: tuple[int, ...], dtype: Any, source: int, tag: int) -> np.ndarray:
        kind = torch.float64 if dtype == np.float64 else torch.float32
        device = torch.device("cpu")
        what = "parts of a field"
        received: Tensor = self._ranks.receive(shape, kind, device, source, tag, what).wait()
        return received.numpy()

    def _scatter(self, whole: np.ndarray | None, own: np.ndarray) -> None:
        if whole is None:
            own[...] = self._receive(own.shape, own.dtype, 0, _FROM_ROOT)
            return
        own[...] = whole[self.part.sites]
        for to, part in enumerate(self._parts):
            if to:
                piece = torch.from_numpy(np.ascontiguousarray(whole[part.sites]))
                self._ranks.send(piece, to, _FROM_ROOT, "parts of a field").wait()

    def value(self, name: str) -> float:
        """Return a number of the last update: ``"action"``, ``"hmc.acceptance"``, an observable.

        Raises:
            ConfigError: there is no such number, or no update yet.
        """
        return self._ranks.from_root(lambda: self._value(name))

    def _value(self, name: str) -> float:
        summary = self._done()
        known = {"action": summary["action"]} | summary["observables"]
        for kernel, values in summary["kernels"].items():
            known |= {f"{kernel}.{key}": value for key, value in values.items()}
        # What a kernel reports of one chain is a list of one number.
        numbers = {
            key: value[0] if isinstance(value, list) and len(value) == 1 else value
            for key, value in known.items()
        }
        if name not in numbers:
            raise ConfigError(f"no number {name!r}: there are {', '.join(numbers)}")
        found = numbers[name]
        if found is None:
            return math.nan
        if isinstance(found, list):
            raise ConfigError(f"{name} is not one number: it is in the report of the update")
        return float(found)

    def report(self) -> str:
        """Return all numbers of the last update as JSON; see :func:`flowmc.chains.summary_of`.

        Raises:
            ConfigError: there is no update yet.
        """
        return self._ranks.from_root(lambda: json.dumps(self._done()))

    def _done(self) -> dict[str, Any]:
        if self._stepped is None:
            raise ConfigError("no update has been made yet")
        if self._summary is None:
            assert self._assembly is not None
            found = summary_of(self._config, self._assembly, self._stepped)
            self._summary = {"number": self._last, **found}
        return self._summary

    def close(self) -> None:
        """Give back what MPI holds for this stream; collective."""
        self._ranks.free()


def _check_parts(parts: Sequence[Part], lattice: Sequence[int]) -> None:
    """Raise ConfigError unless every site of the lattice belongs to one rank."""
    owners = np.zeros(tuple(reversed(lattice)), np.int32)
    for rank, part in enumerate(parts):
        if len(part.origin) != len(lattice) or any(
            first < 0 or count < 1 or first + count > extent
            for first, count, extent in zip(part.origin, part.extents, lattice, strict=True)
        ):
            raise ConfigError(
                f"the part of rank {rank}, origin {list(part.origin)} and extents "
                f"{list(part.extents)}, does not lie in the lattice {list(lattice)} of [theory]"
            )
        owners[part.sites] += 1
    if (owners != 1).any():
        bad = int((owners != 1).sum())
        raise ConfigError(
            f"{bad} sites of the lattice {list(lattice)} belong to no rank or to several: the "
            "parts of the ranks together should be the lattice"
        )
