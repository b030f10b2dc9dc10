r"""The contract of an action: the target density is :math:`p(\phi) = e^{-S(\phi)} / Z`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from flowmc import native
from flowmc.fields import FieldSpace, FixedLinks, Place
from flowmc.groups import Group, Real
from flowmc.identity import Identified
from flowmc.lattice import sum_over_sites
from flowmc.registry import ConfigError, as_arguments, positional_of
from flowmc.terms import Term, added

if TYPE_CHECKING:
    from flowmc.actions.transformed import TransformedAction
    from flowmc.flows.base import Flow
    from flowmc.kernels.base import State

__all__ = [
    "Action",
    "PartOfAction",
    "ScaledAction",
    "SumAction",
    "at_couplings",
    "check_force",
    "name_of",
]


# What computes an action: a class that overrides one of these has changed it.
_DENSITY = ("__call__", "in_torch")
_FORMULAS = (*_DENSITY, "force", "force_in_torch")
# What says which action it is.
_DECLARATIONS = ("as_data", *_DENSITY)
# Fourth-order differences by steps of the coupling: central, and one-sided at its bounds.
_DIFFERENCES = (
    {-2: 1.0, -1: -8.0, 1: 8.0, 2: -1.0},
    {0: -25.0, 1: 48.0, 2: -36.0, 3: 16.0, 4: -3.0},
    {0: 25.0, -1: -48.0, -2: 36.0, -3: -16.0, -4: 3.0},
)


class Action(Identified):
    """A real function of a field, with its derivative in the algebra of the field's group.

    Subclasses set :attr:`group`, :attr:`lattice` and :attr:`parameters`, and for spins, elements of
    a group on sites, :attr:`place`.  Those whose terms are in the vocabulary of
    :mod:`flowmc.terms` declare them in :meth:`as_data`, and are computed by
    compiled code wherever there is some.  All others implement :meth:`__call__` in torch;
    :meth:`force` then has an automatic default.  Actions add and scale::

        action = Wilson("SU(3)", lattice, beta=5.7) + 0.1 * MyTerm(lattice)

    Attributes:
        name: as in configuration files.
        title: how reports call the action; a class that is derived from this one has its own.
        group: where the degrees of freedom live.
        place: "sites" or "links"; None: real numbers live on sites, all others on links.
        lattice: extents ``(L_0, ..., L_{d-1})``, x first.
        parameters: the couplings, as given; :meth:`at` returns a copy with some replaced.
        settings: further keys of the constructor that tell theories apart and that no ladder
            varies, such as the place of a defect; plain values, as in a configuration file.
        same_as: at which couplings S is another built-in action with the couplings that both
            have, by its name: a file that names the one is then a start for the other.
        interaction_range: for actions that are the same everywhere on the lattice: the largest
            distance, along any one direction, between two sites of one term; 1 for nearest
            neighbours.  None where nothing is said: then no kernel may update a part of the field.
        has_open_time: whether the links in time, the last direction, of the last slice are none of
            the theory, which ends there: S does not depend on them.  They are kept as elements of
            the group, independent of all others, and files have zeros in their place.
        fixed_links: links that the theory holds fixed, or None.  S is that of the field with them
            (:meth:`with_fixed_links`), and the force on them is zero; what a field has in their
            place are elements of the group on which nothing depends, so that draws, flows and
            kernels need no masks.  Trajectories leave these alone, observables and files see the
            fixed ones.
    """

    name: str = ""
    title: str = ""
    group: Group = Real()
    place: Place | None = None
    lattice: tuple[int, ...]
    parameters: dict[str, float]
    settings: Mapping[str, Any] = MappingProxyType({})
    same_as: ClassVar[Mapping[str, Mapping[str, float]]] = MappingProxyType({})
    interaction_range: int | None = None
    has_open_time: bool = False
    fixed_links: FixedLinks | None = None

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        names = (*_DECLARATIONS, "given")
        if all(getattr(cls, name) is getattr(Action, name) for name in names):
            raise TypeError(
                f"the action {cls.__name__} says neither what it is (as_data) nor how it is "
                "computed (__call__; with auxiliary fields, given): define one of them"
            )
        return super().__new__(cls, *args, **keywords)

    def __call__(self, field: Tensor) -> Tensor:
        """Return S per chain, ``(chains,)`` float64 whatever the precision of the field.

        By compiled code where there is some for the terms, the device and the precision, and no
        gradients are wanted; else by torch.
        """
        self._require_known()
        field = self.with_fixed_links(field)
        compiled = native.find_action(self, field)
        return self.in_torch(field) if compiled is None else compiled(field)

    def force(self, field: Tensor) -> Tensor:
        r"""Return the algebra gradient :math:`\sum_a T_a \partial_a S`, shaped like the field.

        HMC integrates :math:`\dot P = -` this.  By compiled code like the action; else from the
        terms, and without terms by autograd through the action.
        """
        self._require_known()
        field = self.with_fixed_links(field)
        compiled = native.find_force(self, field)
        force = self.force_in_torch(field) if compiled is None else compiled(field)
        return force if self.fixed_links is None else self.fixed_links.zeroed(force)

    def with_fixed_links(self, field: Tensor) -> Tensor:
        """Return the field with the links that the theory holds fixed; itself if there are none."""
        return field if self.fixed_links is None else self.fixed_links.put_into(field)

    def project(self, field: Tensor) -> Tensor:
        """Return the nearest field on the group to one that has left it by rounding."""
        compiled = native.find_projection(self, field)
        return self.group.project(field) if compiled is None else compiled(field)

    def as_data(self) -> tuple[Term, ...] | None:
        """Return the terms whose sum this is, or None if the vocabulary has no words for them.

        Both engines read them, at every call: they follow the attributes of the action.
        """
        return None

    def compilable(self) -> tuple[Term, ...] | None:
        """Return the terms if they are all of the action, else None.

        They are not if a subclass of the class that declares them, or the object itself, has
        another ``__call__`` or force.
        """
        return self._terms_without_own(_FORMULAS) if self.is_known else None

    def _terms_without_own(self, formulas: Collection[str]) -> tuple[Term, ...] | None:
        """Return the terms unless one of the formulas is defined below their declaration."""
        for kind in type(self).__mro__:
            own = vars(kind)
            if "as_data" in own:
                break
            if not own.keys().isdisjoint(formulas):
                return None
        return self.as_data() if vars(self).keys().isdisjoint(formulas) else None

    def in_torch(self, field: Tensor) -> Tensor:
        """Return S by torch operations, through which gradients pass: the sum of the terms."""
        terms = self.as_data()
        if terms is None:
            raise NotImplementedError(f"{type(self).__name__} is computed by its own __call__ only")
        field = self.with_fixed_links(field)
        return functools.reduce(torch.add, [term.value(field) for term in terms])

    def force_in_torch(self, field: Tensor) -> Tensor:
        """Return the force by torch operations: of the terms, else by autograd."""
        # Those of an inherited declaration are not what a density of one's own derives to.
        terms = self._terms_without_own(_DENSITY)
        if terms is None:
            return self.force_by_autograd(field)
        field = self.with_fixed_links(field)
        force = functools.reduce(torch.add, [term.force(field) for term in terms])
        return force if self.fixed_links is None else self.fixed_links.zeroed(force)

    def force_by_autograd(self, field: Tensor) -> Tensor:
        """Return the force by differentiating the action, with any formula of its own."""
        with torch.enable_grad():
            leaf = field.detach().requires_grad_(True)
            (euclidean,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return self.group.gradient_from_euclidean(field, euclidean)

    def refresh(self, state: State, rng: torch.Generator) -> State:
        r"""Return a state with auxiliary fields :math:`\chi` drawn for its field.

        Of actions whose density is an integral over auxiliary fields, as those of pseudofermions,
        :math:`p(\phi) \propto \int d\chi\, e^{-S(\phi, \chi)}`: draws of
        :math:`p(\chi | \phi) \propto e^{-S(\phi, \chi)}`, or an update that leaves it invariant,
        carried by the state::

            return state.with_carried("pseudofermion.chi", chi)

        HMC asks for it at the beginning of every step; the trajectory is that of :meth:`given`.
        When another kernel moves the field, what is carried is dropped.

        Args:
            state: with the field, and what was carried from the last step of HMC, if nothing else
                moved the field since.
            rng: draws.
        """
        return state

    def given(self, state: State) -> Action:
        r"""Return :math:`S(\cdot, \chi)` at the auxiliary fields that a state carries.

        An action with auxiliary fields may also be callable itself, if
        :math:`-\ln \int d\chi\, e^{-S(\phi, \chi)}` can be computed: then all kernels take it.
        """
        return self

    def parts(self, state: State | None = None) -> dict[str, Action]:
        """Return actions by name whose sum this is, for integrators with several time steps.

        Args:
            state: with the auxiliary fields at which they are taken; None: nobody computes them.
        """
        return {name_of(self): self if state is None else self.given(state)}

    @property
    def has_auxiliaries(self) -> bool:
        """Whether the density is an integral over auxiliary fields."""
        return type(self).given is not Action.given

    @property
    def is_known(self) -> bool:
        """Whether S is known of a field alone.

        Not if :meth:`given` is defined below all formulas: these are of another action.
        """
        kind: Any = type(self)
        return _is_known(kind)

    @property
    def difference(self) -> Action:
        """What tells the replicas of a ladder apart: the action, or a part of it that is known.

        The rest is the same function of the field for all replicas, and drops out of an exchange.
        """
        return self

    def require_given(self) -> None:
        """Refuse, by a ConfigError, what needs the action at auxiliary fields."""

    def _require_known(self) -> None:
        if not self.is_known:
            raise ConfigError(
                f"the action {self.name or type(self).__name__!r} is known at given auxiliary "
                "fields only: HMC samples it, but nothing that needs S of a field alone, such as "
                "flow proposals, exchanges and the observable 'action'"
            )

    @property
    def space(self) -> FieldSpace:
        """What the fields are."""
        place = self.place or ("sites" if isinstance(self.group, Real) else "links")
        return FieldSpace(self.group, self.lattice, place)

    @property
    def dimensions(self) -> int:
        """Number of lattice directions d."""
        return len(self.lattice)

    @property
    def volume(self) -> int:
        """Number of lattice sites V."""
        return self.space.volume

    @property
    def is_gauge(self) -> bool:
        """Whether the degrees of freedom are links; otherwise sites."""
        return self.space.is_gauge

    @property
    def is_scalar(self) -> bool:
        """Whether the degrees of freedom are real numbers on sites."""
        return self.space.is_scalar

    def field_shape(self, chains: int) -> tuple[int, ...]:
        """Return ``(chains, *L, *element)`` for sites, ``(chains, d, *L, *element)`` for links."""
        return self.space.shape(chains)

    def cold(
        self, chains: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return ``chains`` copies of the ordered start.

        ``dtype`` is that of real components, or of the field itself.
        """
        return self.space.cold(chains, dtype, device)

    def hot(self, chains: int, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return a disordered start: Haar for groups, unit Gaussians (or better) for real ones."""
        return self.space.hot(chains, rng, dtype)

    def at(self, **couplings: float) -> Action:
        """Return this action with other couplings: one of the same class.

        A class that inherits from another action defines it anew if that one returns the other
        action; :func:`at_couplings` refuses the wrong one.

        Raises:
            ValueError: for a coupling that this action does not have.
        """
        raise ValueError(f"the action {name_of(self)!r} has fixed couplings")

    def on_lattice(self, lattice: Sequence[int]) -> Action:
        """Return this action on a lattice of other extents.

        By calling the class with the lattice (and the group, if it takes one), the couplings and
        the settings, as a configuration file does; classes with another constructor override it.

        Args:
            lattice: extents, x first, as many as there are.

        Raises:
            ValueError: for extents that the action refuses, and for a class that cannot be called
                like this.
        """
        named = as_arguments(self.parameters)
        constructor: Any = type(self)
        positional: tuple[Any, ...] = (tuple(lattice),)
        if "group" in positional_of(constructor):
            positional = (self.group, *positional)
        try:
            return constructor(*positional, **named, **self.settings)
        except TypeError as error:
            raise ValueError(
                f"cannot make a {type(self).__name__} on another lattice from its couplings "
                f"({error}): implement on_lattice()"
            ) from error

    def transformed(self, flow: Flow) -> TransformedAction:
        """Return the action of z with the field f(z): :mod:`flowmc.actions.transformed`."""
        # A class of its own below this one.
        from flowmc.actions.transformed import TransformedAction

        return TransformedAction(self, flow)

    def coupling_derivative(self, coupling: str, field: Tensor) -> Tensor:
        r"""Return :math:`\partial S / \partial\lambda` at fixed field, ``(chains,)`` float64.

        By a central difference of fourth order in the coupling: exact to rounding for actions that
        are polynomials of degree four or less in it, as most are linear.

        Args:
            coupling: a key of :attr:`parameters`.
            field: ``(chains, ...)``.

        Raises:
            ValueError: for a coupling that this action does not have.
        """
        return self.differentiate(coupling, lambda action: action(field))

    def coupling_force(self, coupling: str, field: Tensor) -> Tensor:
        r"""Return the algebra gradient of :math:`\partial S / \partial\lambda`, like the field."""
        return self.differentiate(coupling, lambda action: action.force(field))

    def differentiate(self, coupling: str, function: Callable[[Action], Tensor]) -> Tensor:
        """Return the derivative of a function of the action with respect to a coupling.

        By the difference that :meth:`coupling_derivative` describes.
        """
        if coupling not in self.parameters:
            raise ValueError(
                f"the {self.name} action has no coupling {coupling!r}, only "
                f"{', '.join(self.parameters) or 'fixed ones'}"
            )
        value = self.parameters[coupling]
        # Small against the coupling, for those that must stay positive.
        step = 0.004 * (abs(value) or 1.0)
        refused: ValueError | None = None
        for weights in _DIFFERENCES:
            try:
                moved = [
                    (weight, at_couplings(self, {coupling: value + n * step}))
                    for n, weight in weights.items()
                ]
            except ValueError as error:
                # At the edge of what the coupling may be.
                refused = error
                continue
            terms = [function(action) * (weight / (12 * step)) for weight, action in moved]
            return torch.stack(terms).sum(0)
        assert refused is not None
        raise refused

    def check_field(self, field: Tensor) -> None:
        """Raise ``ValueError`` if ``field`` is not a field of this theory, saying why."""
        expected = self.field_shape(field.shape[0] if field.dim() else 0)
        if tuple(field.shape) != expected:
            raise ValueError(
                f"field of shape {tuple(field.shape)} does not fit the {self.name} action on a "
                f"{'x'.join(map(str, self.lattice))} lattice, which needs (chains, "
                f"{', '.join(map(str, expected[1:]))})"
            )

    def __add__(self, other: Action) -> Action:
        return SumAction([self, other])

    def __mul__(self, factor: float) -> Action:
        return ScaledAction(self, factor)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        couplings = ", ".join(f"{key}={value:g}" for key, value in self.parameters.items())
        size = "x".join(map(str, self.lattice))
        return f"{type(self).__name__}({self.group.name}, {size}, {couplings})"


class SumAction(Action):
    """The sum of several actions of the same field."""

    name = "sum"

    def __init__(self, terms: Sequence[Action]) -> None:
        self.terms = [t for term in terms for t in getattr(term, "terms", [term])]
        first = self.terms[0]
        for term in self.terms[1:]:
            if term.space != first.space:
                raise ValueError(
                    f"cannot add {term!r} to {first!r}: the field of one is {term.space}, of the "
                    f"other {first.space}"
                )
        self.group, self.lattice = first.group, first.lattice
        self.parameters: dict[str, float] = {}
        ranges = [term.interaction_range for term in self.terms]
        known = [one for one in ranges if one is not None]
        self.interaction_range = max(known) if len(known) == len(ranges) else None
        fixed = [one for term in self.terms if (one := term.fixed_links) is not None]
        if any(
            not (
                torch.equal(one.where, fixed[0].where) and torch.equal(one.values, fixed[0].values)
            )
            for one in fixed
        ):
            raise ValueError(f"cannot add {self.terms}: they hold different links fixed")

    @property
    def fixed_links(self) -> FixedLinks | None:  # type: ignore[override]
        # Of any term: all are functions of the same field.
        return next((one for term in self.terms if (one := term.fixed_links) is not None), None)

    @property
    def space(self) -> FieldSpace:
        return self.terms[0].space

    @property
    def has_open_time(self) -> bool:  # type: ignore[override]
        # Where one term knows these links, they are degrees of freedom.
        return all(term.has_open_time for term in self.terms)

    def refresh(self, state: State, rng: torch.Generator) -> State:
        for term in self.terms:
            state = term.refresh(state, rng)
        return state

    def given(self, state: State) -> Action:
        return SumAction([term.given(state) for term in self.terms])

    def parts(self, state: State | None = None) -> dict[str, Action]:
        """Return the parts of all terms; a name that is taken gets a number: "wilson_2"."""
        found: dict[str, Action] = {}
        for term in self.terms:
            for name, part in term.parts(state).items():
                number = sum(one == name or one.startswith(f"{name}_") for one in found)
                found[f"{name}_{number + 1}" if number else name] = part
        return found

    @property
    def has_auxiliaries(self) -> bool:
        return any(term.has_auxiliaries for term in self.terms)

    @property
    def is_known(self) -> bool:
        return all(term.is_known for term in self.terms)

    def as_data(self) -> tuple[Term, ...] | None:
        parts = [term.compilable() for term in self.terms]
        if any(part is None for part in parts):
            return None
        return added([one for part in parts if part is not None for one in part])

    def in_torch(self, field: Tensor) -> Tensor:
        return torch.stack([term(field) for term in self.terms]).sum(0)

    def force_in_torch(self, field: Tensor) -> Tensor:
        total = self.terms[0].force(field)
        for term in self.terms[1:]:
            total = total + term.force(field)
        return total

    def on_lattice(self, lattice: Sequence[int]) -> Action:
        return SumAction([term.on_lattice(lattice) for term in self.terms])

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


class ScaledAction(Action):
    """A real multiple of an action."""

    name = "scaled"

    def __init__(self, action: Action, factor: float) -> None:
        if action.has_auxiliaries:
            raise ValueError(
                f"a multiple of {action!r} is no action with the same auxiliary fields: write the "
                "factor into its terms"
            )
        self.action, self.factor = action, float(factor)
        self.group, self.lattice = action.group, action.lattice
        self.parameters, self.settings = action.parameters, dict(action.settings)
        self.interaction_range = action.interaction_range

    @property
    def space(self) -> FieldSpace:
        return self.action.space

    @property
    def has_open_time(self) -> bool:  # type: ignore[override]
        return self.action.has_open_time

    @property
    def fixed_links(self) -> FixedLinks | None:  # type: ignore[override]
        return self.action.fixed_links

    def as_data(self) -> tuple[Term, ...] | None:
        terms = self.action.compilable()
        return None if terms is None else tuple(term.times(self.factor) for term in terms)

    def in_torch(self, field: Tensor) -> Tensor:
        return self.factor * self.action(field)

    def force_in_torch(self, field: Tensor) -> Tensor:
        return self.factor * self.action.force(field)

    def at(self, **couplings: float) -> Action:
        return ScaledAction(at_couplings(self.action, couplings), self.factor)

    def on_lattice(self, lattice: Sequence[int]) -> Action:
        return ScaledAction(self.action.on_lattice(lattice), self.factor)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.action!r}"


class PartOfAction(Action):
    """Some of the terms of an action, for integrators with several time steps."""

    name = "part"

    def __init__(self, action: Action, terms: Sequence[Term]) -> None:
        self.group, self.lattice, self.place = action.group, action.lattice, action.place
        self.parameters: dict[str, float] = {}
        self.fixed_links = action.fixed_links
        self._terms = tuple(terms)

    def as_data(self) -> tuple[Term, ...] | None:
        return self._terms


@functools.lru_cache(maxsize=256)
def _is_known(kind: Any) -> bool:
    for ancestor in kind.__mro__:
        own = vars(ancestor)
        if not own.keys().isdisjoint(_DECLARATIONS):
            return ancestor is not Action
        if "given" in own:
            return False
    return False


def name_of(action: Action) -> str:
    """Return the name of an action, or that of its class if it has none."""
    return action.name or type(action).__name__


def at_couplings(action: Action, couplings: Mapping[str, float]) -> Action:
    """Return ``action.at(**couplings)``, if that is still this action.

    Args:
        action: the theory.
        couplings: the new values by name.

    Raises:
        ValueError: as :meth:`Action.at`, and if that returns an object of a base class, whose
            density would silently be sampled in the place of this one's.
    """
    moved = action.at(**couplings)
    if type(moved) is not type(action) and isinstance(action, type(moved)):
        raise ValueError(
            f"{type(action).__name__}.at() returns a {type(moved).__name__}, which is another "
            f"theory: define at() in {type(action).__name__} and return a {type(action).__name__}"
        )
    return moved


def check_force(action: Action, field: Tensor, rng: torch.Generator, step: float = 1e-4) -> float:
    r"""Compare the force with finite differences of the action; return the relative error.

    Along a random algebra direction :math:`P` the force predicts
    :math:`\frac{d}{ds} S(e^{sP} U) = \sum_a p_a \partial_a S`; the derivative is taken by a
    central difference of fourth order in ``step``, so that with a float64 field the error of a
    correct force is about 1e-9.

    Args:
        action: what to check.
        field: any field of the theory, ``(chains, ...)``, in float64.
        rng: draws the direction.
        step: displacement along the direction, in algebra units.
    """
    group = action.group
    direction = group.draw_algebra(field, rng)

    def along(s: float) -> Tensor:
        return action(group.move(field, s * direction))

    numeric: Any = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (
        12 * step
    )
    coordinates = group.algebra_to_coordinates
    product = coordinates(direction) * coordinates(action.force(field))
    analytic = sum_over_sites(product)
    scale = analytic.abs().clamp(min=1.0)
    return float(((numeric - analytic).abs() / scale).max())
