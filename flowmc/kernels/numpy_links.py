"""Updates by a function of numpy arrays, the base of kernels that call other lattice packages.

In Python what :mod:`flowmc.kernels.external` is for programs: the function, or the method of a
class derived from :class:`NumpyKernel`, gets the field in the order of files and returns the next.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.io import field_to_file_order, file_order_to_field
from flowmc.kernels.base import Info, Kernel, State, UpdateFailedError
from flowmc.kernels.reporting import Reported
from flowmc.random import Randomness, Streams, own_stream

__all__ = ["NumpyFunction", "NumpyKernel", "Request", "moved_state", "requests_of"]

# Links further from their group than this are damaged, in double and in single precision.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Request:
    """One update of one chain that somebody else is asked for.

    Attributes:
        number: of the update, counted from 1 by a run; of the configuration that is written in
            ``flowmc step``; 0 where nobody counts.
        seed: 63 bits from the chain's own stream: of all random numbers of the update.
        chain: number of the chain.
        replica: of a ladder; 0 without one.
        couplings: of the theory, by name.
        directory: a folder of this chain and replica for files that last from one update to the
            next; a command finds it there, a function makes it if it needs it.
    """

    number: int
    seed: int
    chain: int
    replica: int
    couplings: Mapping[str, float]
    directory: Path

    @property
    def placeholders(self) -> dict[str, str | int | float]:
        """The values of placeholders in a command line, but for those of files."""
        return {
            **self.couplings,
            "number": self.number,
            "seed": self.seed,
            "chain": self.chain,
            "replica": self.replica,
            "directory": str(self.directory),
        }

    def __str__(self) -> str:
        return f"chain {self.chain}, replica {self.replica}, update {self.number}"


def requests_of(kernel: Kernel, action: Action, state: State, rng: Randomness) -> list[Request]:
    """Return what one step of a kernel asks for, one update per chain; draws the seeds."""
    generator = own_stream(rng)
    seeds = torch.randint(
        2**63 - 1, (state.chains,), dtype=torch.int64, device=generator.device, generator=generator
    )
    first, number, replica = 0, 0, None
    if isinstance(rng, Streams):
        first, number, replica = rng.first_chain, rng.update, rng.replica
    suffix = "" if replica is None else f".replica{replica}"
    root = (kernel.scratch or Path("external")).absolute()
    return [
        Request(
            number, seed, chain, replica or 0, action.parameters, root / f"chain{chain}{suffix}"
        )
        for chain, seed in enumerate(seeds.tolist(), start=first)
    ]


def moved_state(state: State, fields: Sequence[Tensor]) -> tuple[State, Tensor]:
    """Return the state at new fields, one per chain, and which chains have moved, ``(chains, 1)``.

    A batch in which none has moved keeps what is known of its fields.
    """
    field = torch.cat(list(fields))
    moved = (field != state.field).flatten(1).any(1, keepdim=True)
    return (state.moved(field) if bool(moved.any()) else state), moved


class NumpyKernel(Kernel):
    """A kernel whose update is a function of one numpy array.

    The function must leave the density of the theory invariant, which only its author can promise.
    What it returns is checked: shape, finite numbers, elements of the group.

    Args:
        action: the theory; ``action = "external"`` where only the function knows it.

    The arrays are in the order of ILDG files: links ``(t, z, y, x, mu, row, column)`` complex, mu =
    0, 1, 2, 3 for x, y, z, t (in d dimensions the last d of these axes and the first d directions);
    U(1) angles ``(..., y, x, mu)``; scalar fields ``(..., y, x)``.  U_mu(x) transports from
    x + mu to x, :math:`P_{\\mu\\nu} = U_\\mu(x) U_\\nu(x+\\mu) U_\\mu(x+\\nu)^\\dagger
    U_\\nu(x)^\\dagger`.  Their precision is that of the chains.
    """

    name = "numpy_function"
    title = "update by a function"
    takes_streams = True
    is_rehearsed = False

    def __init__(self, action: Action) -> None:
        self.action = action

    @abstractmethod
    def update(
        self, field: NDArray, request: Request
    ) -> NDArray | tuple[NDArray, Mapping[str, float]]:
        """Return the next field of one chain.

        Args:
            field: of the chain, a copy.
            request: seed, number, couplings and the like.

        Returns:
            The field; or the field and the values that :attr:`reports` declares, with the further
            one ``accepted`` for whether the update was accepted.  Without that an update counts as
            accepted if the field has changed.
        """

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        return State(field)

    @torch.no_grad()
    def step(self, state: State, rng: Randomness) -> tuple[State, Info]:
        fields, said = [], []
        requests = requests_of(self, self.action, state, rng)
        for chain, request in zip(state.field, requests, strict=True):
            array = field_to_file_order(chain.detach().cpu().resolve_conj().numpy(), self.action)
            try:
                result = self.update(array, request)
            except Exception as error:
                raise UpdateFailedError(
                    f"{self.name}: {request}: {type(error).__name__}: {error}"
                ) from error
            values: Mapping[str, float] = {}
            if isinstance(result, tuple):
                result, values = result
            fields.append(self._checked(result, request, state.field))
            said.append(values)
        state, moved = moved_state(state, fields)
        names = {value.name for value in self.reports}
        for values in said:
            unknown = set(values) - names - {"accepted"}
            if unknown:
                raise UpdateFailedError(
                    f"{self.name}: the function returns a value {sorted(unknown)[0]!r} that its "
                    "reports do not declare"
                )
        accepted = [
            bool(values.get("accepted", is_moved))
            for values, is_moved in zip(said, moved[:, 0], strict=True)
        ]
        table = {
            name: torch.tensor([float(values.get(name, np.nan)) for values in said]).double()
            for name in sorted(names)
        }
        return state, Info(torch.tensor(accepted, device=moved.device)[:, None], table)

    def _checked(self, result: Any, request: Request, like: Tensor) -> Tensor:
        """Return what the function has returned as a field of one chain.

        Raises:
            UpdateFailedError: it is none.
        """
        where = f"{self.name}: {request}: the function"
        array, group = np.asarray(result), self.action.group
        shape = self.action.field_shape(1)
        wanted = field_to_file_order(np.empty(shape[1:], np.int8), self.action).shape
        if array.shape != wanted:
            raise UpdateFailedError(
                f"{where} returns an array of shape {array.shape}, the field has {wanted}"
            )
        dtype = np.dtype(str(like.dtype).removeprefix("torch."))
        if array.dtype != dtype:
            raise UpdateFailedError(
                f"{where} returns numbers of type {array.dtype}, the field is of {dtype}"
            )
        if not np.isfinite(array).all():
            raise UpdateFailedError(f"{where} returns numbers that are not finite")
        field = torch.from_numpy(file_order_to_field(array, self.action))[None].to(like.device)
        distance = float(group.distance(group.project(field), field).max())
        tolerance = _TOLERANCE[like.real.dtype]
        if self.action.is_gauge and not distance <= tolerance:
            raise UpdateFailedError(
                f"{where} returns links that are not in {group.name}: they are {distance:.1e} from "
                "it"
            )
        return field


class NumpyFunction(NumpyKernel):
    """A :class:`NumpyKernel` of a function, for notebooks and scripts.

    Args:
        action: the theory.
        function: as :meth:`NumpyKernel.update`.
        name: of the kernel.
        reports: what the function reports.
    """

    def __init__(
        self,
        action: Action,
        function: Callable[[NDArray, Request], NDArray | tuple[NDArray, Mapping[str, float]]],
        name: str = "numpy_function",
        reports: Sequence[Reported] = (),
    ) -> None:
        super().__init__(action)
        self.function, self.name, self.reports = function, name, tuple(reports)

    def update(self, field, request):
        return self.function(field, request)
