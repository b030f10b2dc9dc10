"""What kernels report: every value is declared once, and stored and shown as it is declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowmc.registry import ConfigError, nearest

__all__ = ["REDUCTIONS", "KernelReport", "Reported"]

REDUCTIONS = ("mean", "sum", "max", "last")
# Columns that every kernel has.
_COUNTS = ("accepted", "tried")


@dataclass(frozen=True)
class Reported:
    """A value that a kernel reports per chain, by the name that it has in ``Info.values``.

    Between two rows of measurements there are several updates, and several repetitions in each:
    ``reduce`` says how their values become one.

    Attributes:
        name: in ``Info.values`` and of the column ``kernels/KERNEL/NAME`` of ``measurements.h5``.
        title: how reports call it.
        unit: behind the number in reports; empty for pure numbers.
        reduce: "mean" over finite values, "sum", "max" (of what is not NaN) or "last".
        per_proposal: number of proposals of a step, of which each has a value, ``(chains,
            per_proposal)``, and keeps one in the row; 0 for one number per chain, to which
            everything behind the chain axis is reduced.
        in_report: whether reports have a line about it: mean and error of what is reduced by "mean"
            and "last", the sum and the maximum of the others.

    Raises:
        ConfigError: for a name that no column can have, or an unknown reduction.
    """

    name: str
    title: str
    unit: str = ""
    reduce: str = "mean"
    per_proposal: int = 0
    in_report: bool = True

    def __post_init__(self) -> None:
        if self.name in (*_COUNTS, "", ".", "updates") or "/" in self.name:
            raise ConfigError(
                f"a value that a kernel reports cannot be called {self.name!r}: that is no name "
                "for a column, or one that is taken"
            )
        if self.reduce not in REDUCTIONS:
            raise ConfigError(
                f"the value {self.name} is reduced by {self.reduce!r}: choose one of "
                f"{', '.join(REDUCTIONS)}{nearest(self.reduce, REDUCTIONS)}"
            )
        if self.per_proposal < 0:
            raise ConfigError(f"the value {self.name} has {self.per_proposal} proposals per step")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row behind the chain axis."""
        return (self.per_proposal,) if self.per_proposal else ()

    def is_reduced_like(self, other: Reported) -> bool:
        """Whether columns of both declarations hold numbers of one kind."""
        return (self.reduce, self.per_proposal) == (other.reduce, other.per_proposal)

    def repeated(self, times: int) -> Reported:
        """Return the declaration for a kernel that is applied several times in a step."""
        return replace(self, per_proposal=times * self.per_proposal)

    def attributes(self) -> dict[str, Any]:
        """Return what stands beside the column in ``measurements.h5``."""
        return {
            "title": self.title,
            "unit": self.unit,
            "reduction": self.reduce,
            "in_report": self.in_report,
        }

    @classmethod
    def of_column(
        cls, name: str, shape: tuple[int, ...], attributes: Mapping[str, Any]
    ) -> Reported:
        """Return the declaration of a stored column of this shape behind the chain axis.

        Raises:
            ValueError: if the column does not have one.
        """
        title, unit, reduction = (attributes.get(key) for key in ("title", "unit", "reduction"))
        shown = attributes.get("in_report")
        texts = isinstance(title, str) and isinstance(unit, str)
        sound = texts and reduction in REDUCTIONS and isinstance(shown, bool) and len(shape) < 2
        if not sound:
            raise ValueError(f"{name} does not say what it holds")
        return cls(name, str(title), str(unit), str(reduction), sum(shape), bool(shown))


@dataclass(frozen=True)
class KernelReport:
    """What one elementary kernel of a cycle, or its part at one replica or pair, reports.

    Attributes:
        kernel: the kernel's own name, ``"hmc"`` of every HMC of a cycle.
        title: how reports call it.
        values: beside the counts of accepted and tried proposals.
        replica: of a ladder, at which it is applied; None if it is not of one replica.
        pair: of neighbouring replicas that it exchanges, the lower one; None if it does not.
        update: name in the cycle of the ``[[update]]`` that it is a part of, ``"hmc_2"``.
        update_title: how reports call that.
        number: counts the updates of a cycle that have the same kernel, from 1.
    """

    kernel: str
    title: str
    values: tuple[Reported, ...] = ()
    replica: int | None = None
    pair: int | None = None
    update: str = ""
    update_title: str = ""
    number: int = 1

    def __post_init__(self) -> None:
        names = [value.name for value in self.values]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.kernel}: the value {name} is declared twice")

    def named(self, name: str) -> Reported:
        """Return the declaration of a value."""
        return next(value for value in self.values if value.name == name)

    def repeated(self, times: int) -> KernelReport:
        """Return the report of the kernel that is applied several times in a step."""
        return replace(self, values=tuple(value.repeated(times) for value in self.values))

    def attributes(self) -> dict[str, Any]:
        """Return what stands beside the columns in ``measurements.h5``."""
        found: dict[str, Any] = {
            "kernel": self.kernel,
            "title": self.title,
            "update": self.update,
            "update_title": self.update_title,
            "number": self.number,
        }
        places = {"replica": self.replica, "pair": self.pair}
        return found | {key: place for key, place in places.items() if place is not None}

    @classmethod
    def of_group(
        cls, name: str, values: tuple[Reported, ...], attributes: Mapping[str, Any]
    ) -> KernelReport:
        """Return the declaration of a stored group of columns.

        Raises:
            ValueError: if the group does not have one.
        """
        texts = [attributes.get(key) for key in ("kernel", "title", "update", "update_title")]
        numbers = [attributes.get(key) for key in ("replica", "pair", "number")]
        known = [number for number in numbers if number is not None]
        if not all(isinstance(text, str) for text in texts) or not all(
            type(number) is int and number >= 0 for number in known
        ):
            raise ValueError(f"{name} does not say what it is")
        kernel, title, update, update_title = map(str, texts)
        replica, pair, number = numbers
        return cls(kernel, title, values, replica, pair, update, update_title, number or 1)
