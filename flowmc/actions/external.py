"""The action of a theory that another program samples: only its field is known here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from flowmc.actions.base import Action, at_couplings
from flowmc.groups import Group, parse_group
from flowmc.registry import ConfigError

__all__ = ["ExternalAction"]


class ExternalAction(Action):
    """A theory whose density only an external program knows.

    Fields can be started, updated by ``external`` kernels, measured and saved.  Whatever needs S or
    its force is refused.

    Args:
        group: of a field: "R" for scalar fields on sites; "U(1)" or "SU(N)" for links.
        lattice: extents, x first.
        couplings: numbers by name, for the command line of the program: ``{name}``.

    Raises:
        ValueError: for a coupling that is not finite, or has no name.
    """

    name = "external"
    title = "action of another program"

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        couplings: dict[str, float] | None = None,
    ) -> None:
        self.group = parse_group(group) if isinstance(group, str) else group
        self.lattice = tuple(int(extent) for extent in lattice)
        self._difference: Action | None = None
        self.parameters = {name: float(value) for name, value in (couplings or {}).items()}
        for name, value in self.parameters.items():
            if not (name.isidentifier() and math.isfinite(value)):
                raise ValueError(
                    f"couplings: {name} = {value}: should be a finite number under a plain name"
                )

    def differing_by(self, difference: Action) -> ExternalAction:
        """Return the theory of a replica, whose action is this one's plus a known one.

        Args:
            difference: the known part, of the same field; its couplings become this theory's.

        Raises:
            ValueError: it is of another field.
        """
        if difference.space != self.space:
            raise ValueError(f"the difference is of {difference.space}, the theory of {self.space}")
        couplings = {**self.parameters, **difference.parameters}
        found = ExternalAction(self.group, self.lattice, couplings=couplings)
        found._difference = difference
        return found

    @property
    def difference(self) -> Action:
        return self if self._difference is None else self._difference

    def __call__(self, field: Tensor) -> Tensor:
        self._require_known()

    def at(self, **couplings: float) -> ExternalAction:
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(f"the external action has no coupling {sorted(unknown)[0]!r}")
        moved = ExternalAction(self.group, self.lattice, couplings={**self.parameters, **couplings})
        if self._difference is not None:
            own = {key: couplings[key] for key in self._difference.parameters if key in couplings}
            moved._difference = at_couplings(self._difference, own)
        return moved

    def on_lattice(self, lattice: Sequence[int]) -> ExternalAction:
        return ExternalAction(self.group, lattice, couplings=self.parameters)

    @property
    def is_known(self) -> bool:
        return False

    def require_given(self) -> None:
        self._require_known()

    def _require_known(self) -> NoReturn:
        raise ConfigError(
            'the action is "external": another program knows it, flowmc does not, so nothing that '
            "needs S or its force can be used; take external updates and observables of the field "
            "alone, or name the action in [theory]; for exchanges name what the replicas' actions "
            "differ by, as [ladder] difference"
        )
