"""Every action that is registered keeps its contract, and the check of it finds what does not."""

import dataclasses
import inspect

import pytest
import torch

from flowmc import native
from flowmc.actions import Action, FreeScalar, Phi4, Wilson
from flowmc.registry import BUILTIN, parameters, resolve, written_key
from flowmc.terms import Hopping
from flowmc.testing import ContractError, check_action, check_theory_table

# Couplings of a keyword: required ones get a number of their own, all others their defaults.
# Exceptions, with the reason.
KEYS = {
    # Exactly one of two optional keys is required.
    "phi4": [{"m2": -0.7}, {"kappa": 0.21}],
}
# All extents differ; in one, two, three and four dimensions.
LATTICES = {
    "R": ([5], [4, 6], [3, 2, 4]),
    "U(1)": ([3, 4], [2, 3, 4]),
    "SU(2)": ([4, 3, 2],),
    "SU(3)": ([4, 3], [2, 3, 2, 4]),
    "SU(4)": ([2, 3],),
}


def tables(name):
    """Return tables of every group, dimension and parametrisation that an action takes."""
    component = resolve("actions", name)
    required = [
        key for key, one in parameters(component).items() if one.default is inspect.Parameter.empty
    ]
    couplings = {written_key(key): 0.9 + 0.2 * n for n, key in enumerate(required)}
    groups = [g for g in LATTICES if g != "R"] if "group" in signature(component) else ["R"]
    for group in groups:
        for lattice in LATTICES[group]:
            for more in KEYS.get(name, [{}]):
                table = {"action": name, "lattice": lattice, **couplings, **more}
                yield table if group == "R" else table | {"group": group}


def signature(component):
    return inspect.signature(component).parameters


def accepted(name):
    """Return the actions of the tables that an action does not refuse."""
    found = []
    for table in tables(name):
        try:
            found.append(check_theory_table(table))
        except ValueError as error:
            refusal = error
    if not found:
        raise refusal
    return found


# Another program knows the external action, so nothing can be asked of it here.
KNOWN = [name for name in BUILTIN["actions"] if name != "external"]


@pytest.mark.parametrize("name", KNOWN)
def test_registered_actions(name):
    for action in accepted(name):
        check_action(action)
        assert (native.why_in_torch(action) is None) == (action.group.name != "SU(4)")


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_made_of_registered_actions(name):
    action = accepted(name)[0]
    kind = type(action)
    keywords = {"lam" if key == "lambda" else key: v for key, v in action.parameters.items()}
    positional = (action.group, action.lattice) if action.is_gauge else (action.lattice,)
    subclass = type("Same", (kind,), {"at": lambda self, **c: again(type(self), self, c)})
    for made in (action + 0.5 * action, -0.3 * action, subclass(*positional, **keywords)):
        check_action(made)
        assert native.why_in_torch(made) is None


def again(kind, action, couplings):
    written = action.parameters | couplings
    unknown = set(couplings) - set(action.parameters)
    if unknown:
        raise ValueError(f"no couplings {unknown}")
    keywords = {"lam" if key == "lambda" else key: value for key, value in written.items()}
    positional = (action.group, action.lattice) if action.is_gauge else (action.lattice,)
    return kind(*positional, **keywords)


class Broken(Phi4):
    def at(self, **couplings):
        return type(self)(self.lattice, m2=self.parameters["m2"], lam=self.quartic)


class OneCouplingOnly(Phi4):
    def at(self, **couplings):
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(f"no {unknown}")
        return type(self)(self.lattice, m2=couplings.get("m2", 0.3), lam=self.quartic)


class WrongForce(Phi4):
    def force(self, field):
        return 1.001 * super().force(field)


class AcrossChains(Phi4):
    def __call__(self, field):
        return super().__call__(field) + 1e-3 * field.mean()


class Single(Phi4):
    def __call__(self, field):
        return super().__call__(field).float()


class Striped(Phi4):
    """Not the same everywhere, but inherits the declaration that it is."""

    def __call__(self, field):
        return super().__call__(field) + 0.1 * field[:, 0].double().square().flatten(1).sum(1)


class Far(Phi4):
    def __call__(self, field):
        far = (field * field.roll(2, 2)).double()
        return super().__call__(field) + 0.1 * far.flatten(1).sum(1)


class NotInvariant(Wilson):
    def __call__(self, field):
        return super().__call__(field) + 0.1 * torch.cos(field).double().flatten(1).sum(1)


class Moves(Phi4):
    def __call__(self, field):
        field.data.mul_(1.0 + 1e-9)
        return super().__call__(field)


@dataclasses.dataclass(frozen=True)
class WrongHopping(Hopping):
    """A term whose formulas in torch are not those of the compiled code."""

    def value(self, field):
        return super().value(field) + 1e-3 * field.double().flatten(1).sum(1)

    def force(self, field):
        return super().force(field) + 1e-3


class OtherTerm(Phi4):
    def as_data(self):
        return (WrongHopping(self.k, self.a, self.quartic),)


PHI4 = {"m2": -0.7, "lam": 0.9}


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (Broken([4, 3], **PHI4), "changes more than m2"),
        (OneCouplingOnly([4, 3], **PHI4), "changes more than lambda"),
        (WrongForce([4, 3], **PHI4), "finite differences"),
        (AcrossChains([4, 3], **PHI4), "S of a chain depends on the others"),
        (Single([4, 3], **PHI4), "not .chains,. float64"),
        (Striped([4, 3], **PHI4), "not the same everywhere along 0"),
        (Far([4, 6], **PHI4), "felt farther away"),
        (NotInvariant("U(1)", [4, 3], beta=1.0), "not gauge invariant"),
        (Moves([4, 3], **PHI4), "changes the field"),
        (OtherTerm([4, 3], **PHI4), "differs between both engines"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Action) else "",
)
def test_what_is_broken_is_found(action, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_action(action)


def test_a_table_that_leads_elsewhere_is_found():
    with pytest.raises(ContractError, match="gives another action"):
        check_theory_table({"action": f"{__name__}:Forgets", "lattice": [4], "m2": 0.3, "shift": 2})


class Forgets(FreeScalar):
    """A key that is neither a coupling nor a setting."""

    def __init__(self, lattice, *, m2: float, shift: float = 0.0):
        super().__init__(lattice, m2=m2)
        self.a += shift
