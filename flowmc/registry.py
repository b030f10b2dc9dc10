"""One way from a name and a table of a configuration file to an object.

A component (action, observable, flow, prior, kernel) is a class or function.  It is found by its
built-in name, as ``"package.module:Name"``, or by an entry point of the group ``flowmc.<kind>``;
its keyword-only parameters and their annotations are its configuration keys.  User code therefore
needs nothing but a signature, and is validated like ours.

To import a module is to run it.  What a file of somebody else names, the card of a flow or the
configuration in a run directory (:func:`named_by`), is therefore imported only if it is ours, an
entry point of a package that was installed, or of a module that the user's own configuration has
named before or that :func:`trust` was given.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from flowmc.docstrings import descriptions

if TYPE_CHECKING:
    # Imported where it is used: what is misspelt is said within a fraction of a second.
    from pydantic import BaseModel

__all__ = [
    "BUILTIN",
    "ConfigError",
    "as_arguments",
    "build",
    "built_in_title",
    "check_known",
    "defaults",
    "named_by",
    "nearest",
    "parameters",
    "positional_of",
    "resolve",
    "resolved",
    "split_name",
    "table_model",
    "title_of",
    "trust",
    "validate",
    "written",
    "written_key",
]

BUILTIN: dict[str, dict[str, str]] = {
    "actions": {
        "phi4": "flowmc.actions:Phi4",
        "free": "flowmc.actions:FreeScalar",
        "double_well": "flowmc.actions:DoubleWell",
        "wilson": "flowmc.actions:Wilson",
        "wilson_defect": "flowmc.actions:DefectWilson",
        "wilson_anisotropic": "flowmc.actions:AnisotropicWilson",
        "symanzik": "flowmc.actions:Symanzik",
        "iwasaki": "flowmc.actions:Iwasaki",
        "dbw2": "flowmc.actions:DBW2",
        "luescher_weisz": "flowmc.actions:LuescherWeisz",
        "improved": "flowmc.actions:ImprovedGauge",
        "schroedinger_functional": "flowmc.actions:SchroedingerFunctional",
        "external": "flowmc.actions:ExternalAction",
    },
    "kernels": {
        "hmc": "flowmc.kernels:HMC",
        "independence": "flowmc.kernels:Independence",
        "exchange": "flowmc.kernels:Exchange",
        "sign_flip": "flowmc.kernels:SignFlip",
        "local_flow": "flowmc.kernels:LocalFlow",
        "external": "flowmc.kernels:External",
    },
    "flows": {
        "identity": "flowmc.flows:Identity",
        "affine_coupling": "flowmc.flows:AffineCouplingFlow",
        "spline_coupling": "flowmc.flows:SplineCouplingFlow",
        "conditional_continuous": "flowmc.flows:ConditionalContinuousFlow",
        "continuous": "flowmc.flows:ContinuousFlow",
        "residual": "flowmc.flows:ResidualFlow",
        "defect": "flowmc.flows:DefectFlow",
        "multi_lattice": "flowmc.flows:MultiLatticeFlow",
        "plaquette": "flowmc.flows:PlaquetteFlow",
        "block_coupling": "flowmc.flows:BlockCouplingFlow",
        "transform": "flowmc.flows:TransformFlow",
    },
    # Of other libraries, and a user's: all are named "package.module:Name".
    "transforms": {},
    "vector_fields": {
        "kernels": "flowmc.vector_fields:KernelFields",
        "loops": "flowmc.vector_fields:LoopFields",
        "krylov": "flowmc.vector_fields:KrylovFields",
    },
    "priors": {
        "gaussian": "flowmc.flows:GaussianPrior",
        "free_field": "flowmc.flows:FreeFieldPrior",
        "haar": "flowmc.flows:HaarPrior",
        "super_resolution": "flowmc.flows.scalar.coarse_models:super_resolution",
        "block_gaussian": "flowmc.flows:BlockGaussian",
    },
    "objectives": {
        "reverse_kl": "flowmc.training:ReverseKL",
        "forward_kl": "flowmc.training:ForwardKL",
        "reinforce": "flowmc.training:Reinforce",
        "log_variance": "flowmc.training:LogVariance",
        "alpha_two": "flowmc.training:AlphaTwo",
        "exchange_kl": "flowmc.training:ExchangeKL",
        "local_kl": "flowmc.training:LocalKL",
    },
    "derivatives": {
        "difference": "flowmc.correlate.difference:Difference",
        "linear": "flowmc.correlate.linear:Linear",
    },
    "observables": {
        "action": "flowmc.observables:action_density",
        "plaquette": "flowmc.observables:plaquette",
        "plaquette_correlator": "flowmc.observables:plaquette_correlator",
        "topological_charge": "flowmc.observables:topological_charge",
        "energy_density": "flowmc.observables:energy_density",
        "gradient_flow": "flowmc.observables:gradient_flow",
        "polyakov_loop": "flowmc.observables:polyakov_loop",
        "wilson_loop": "flowmc.observables:wilson_loop",
        "magnetization": "flowmc.observables:magnetization",
        "abs_magnetization": "flowmc.observables:abs_magnetization",
        "phi2": "flowmc.observables:phi2",
        "susceptibility": "flowmc.observables:susceptibility",
        "correlator": "flowmc.observables:correlator",
    },
}

# Modules that files of others may name, and the file that is being read.
_TRUSTED = {"flowmc"}
_FILE: ContextVar[str | None] = ContextVar("file", default=None)

# Of float64: larger integers are no numbers that could be computed with.
_LARGEST = sys.float_info.max
# Characters of a value in a message.
_LONGEST = 120

# Keys of a configuration that are words of Python, and the parameters that they stand for.
_PARAMETER_OF = {"lambda": "lam", "from": "from_"}
_KEY_OF = {parameter: key for key, parameter in _PARAMETER_OF.items()}


class ConfigError(ValueError):
    """Unusable input: the message names the key, what is wrong and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def resolve(kind: str, name: str, where: str = "") -> Callable[..., Any]:
    """Return the component ``name`` of a kind ("actions", "kernels", "flows", ...).

    Args:
        kind: a key of :data:`BUILTIN`.
        name: built in, of an entry point, or ``"package.module:Name"``.
        where: how to name the place that names it in messages, e.g. ``"[theory]"``.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a failing import.
    """
    # Imported late, like pydantic below: what is misspelt is said within a fraction of a second.
    from importlib.metadata import entry_points

    table = BUILTIN[kind]
    target = table.get(name)
    place = f"{where}: " if where else ""
    what = f"{place}cannot load {kind.removesuffix('s')} {name!r}"
    if target is None and ":" in name:
        if not all(part.isidentifier() for part in name.replace(":", ".", 1).split(".")):
            raise ConfigError(f"{what}: should be 'package.module:Name'")
        _check_trusted(name, place)
        target = name
    if target is None:
        plugins = {entry.name: entry.value for entry in entry_points(group=f"flowmc.{kind}")}
        target = plugins.get(name)
        if target is None:
            raise ConfigError(
                f"{place}unknown {kind.removesuffix('s')} {name!r}"
                f"{nearest(name, {*table, *plugins})} "
                "(your own are named 'package.module:Name')"
            )
    module, _, attribute = target.partition(":")
    try:
        component = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = "; its folder is that of the configuration file, or is named in PYTHONPATH"
        raise ConfigError(f"{what}: {error}{hint}") from error
    except Exception as error:
        # The module is not ours: what is wrong in it is named, and its traceback is kept.
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error
    try:
        inspect.signature(component)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: should be a class or a function written in Python") from error
    return component


def title_of(component: Any) -> str:
    """Return how a class or a function is called in texts: its own ``title``; empty without one.

    A title is not inherited: what is derived from another class is something else.
    """
    return str(getattr(component, "__dict__", {}).get("title", ""))


def built_in_title(kind: str, name: str) -> str:
    """Return the title of a built-in component; empty for any other name."""
    return title_of(resolve(kind, name)) if name in BUILTIN[kind] else ""


def trust(module: str) -> None:
    """Let files of others name components of a module, or of the modules in a package."""
    _TRUSTED.add(module)


@contextlib.contextmanager
def named_by(what: str) -> Iterator[None]:
    """A context in which all names come from a file that may be somebody else's.

    Args:
        what: how to name the file in messages.
    """
    token = _FILE.set(_FILE.get() or what)
    try:
        yield
    finally:
        _FILE.reset(token)


def _check_trusted(name: str, place: str) -> None:
    """Raise unless a component ``"package.module:Name"`` may be imported."""
    module, file = name.partition(":")[0], _FILE.get()
    if file is None:
        # The user's own configuration: then the files that it uses may name it, too.
        _TRUSTED.add(module)
    elif not any(module == one or module.startswith(f"{one}.") for one in _TRUSTED):
        raise ConfigError(
            f"{place}{file} names {name!r}, which is no part of flowmc, and importing it would run "
            f"the code of {module!r}: if you trust that, give --trust {module} (in Python: "
            "flowmc.registry.trust), or name it in your own configuration"
        )


def parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a component: its configuration keys."""
    return {
        key: parameter
        for key, parameter in inspect.signature(component).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def positional_of(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the positional parameters of a component with their defaults.

    They are what a component asks for by name: ``action``, ``lattice``, ``group``, ``model``, ...;
    one without a default has ``inspect.Parameter.empty``.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind in kinds
    }


def written_key(parameter: str) -> str:
    """Return the configuration key of a parameter: itself, but for Python's keywords."""
    return _KEY_OF.get(parameter, parameter)


def written(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by the keys that a configuration has for them."""
    return {written_key(name): value for name, value in arguments.items()}


def as_arguments(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table by the names that parameters have for its keys: undoes :func:`written`."""
    return {_PARAMETER_OF.get(key, key): value for key, value in table.items()}


def defaults(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the defaults of a component by key, as far as a configuration can hold them."""
    return {
        written_key(name): parameter.default
        for name, parameter in parameters(component).items()
        if isinstance(parameter.default, (bool, int, float, str, list, tuple))
    }


def resolved(component: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of validated arguments, with all defaults that a configuration can hold."""
    table = {**defaults(component), **written(arguments)}
    return {key: _as_lists(value) for key, value in table.items()}


def split_name(entry: Any, where: str, example: str) -> tuple[str, dict[str, Any]]:
    """Return name and keys of an entry that is a name, or a table ``{name = "NAME", ...}``.

    Args:
        entry: as written.
        where: how to name the place in messages.
        example: of a table, for messages.

    Raises:
        ConfigError: for anything else.
    """
    keys = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    name = keys.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: {entry!r}: should be a name, or {example}")
    return name, keys


def _as_lists(value: Any) -> Any:
    return [_as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


def build(
    component: Callable[..., Any], table: Mapping[str, Any], where: str, *positional: Any
) -> Any:
    """Call ``component(*positional, **table)`` after checking the table against its signature.

    Args:
        component: a class or function.
        table: keys and values from a configuration file.
        where: how to name the table in messages, e.g. ``"[theory]"``.
        positional: arguments that flowmc supplies.

    Raises:
        ConfigError: for unknown or missing keys, wrong types and refused values.
    """
    return component(*positional, **validate(component, table, where))


def check_known(table: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ``ConfigError`` for the first key of a table that is not known."""
    known = set(known)
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")


@functools.cache
def table_model(component: Callable[..., Any]) -> type[BaseModel]:
    """Return the model of a component's table: its keys with types, defaults and descriptions.

    A key is the alias of the field ``key_PARAMETER``: a parameter may have any name, also one that
    models need for themselves.
    """
    from pydantic import ConfigDict, Field, PydanticUserError, create_model

    function = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(function, include_extras=True)
    said, holdable = descriptions(component), defaults(component)

    def fields(hints: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, declared in parameters(component).items():
            key = written_key(name)
            is_required = declared.default is inspect.Parameter.empty
            default = ... if is_required else holdable.get(key)
            found[f"key_{name}"] = (
                hints.get(name, Any),
                Field(default, alias=key, description=said.get(name)),
            )
        return found

    name = getattr(component, "__name__", type(component).__name__)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    try:
        return create_model(name, __config__=config, **fields(hints))
    except PydanticUserError:
        # A user's annotation that says nothing here; such a component checks its values itself.
        return create_model(name, __config__=config, **fields({}))


def validate(component: Callable[..., Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return ``table`` as keyword arguments of ``component``, types checked; see :func:`build`."""
    from pydantic import ValidationError

    names = {written_key(name): name for name in parameters(component)}
    checked: dict[str, Any] = {}
    reasons: dict[Any, str] = {}
    try:
        model = table_model(component).model_validate(dict(table))
        checked = {key: getattr(model, f"key_{name}") for key, name in names.items()}
    except ValidationError as error:
        for one in error.errors(include_url=False):
            reasons.setdefault(one["loc"][0], one["msg"])
    for key, value in table.items():
        check_known([key], names, where)
        _require_usable(value, value, f"{where}: {key}")
        if key in reasons:
            raise ConfigError(f"{where}: {key} = {_shown(value)}: {reasons[key]}")
        # The text "inf" is a number only now.
        _require_usable(checked.get(key), value, f"{where}: {key}")
    for key in names:
        if key in reasons:
            raise ConfigError(f"{where}: missing key {key!r}")
    return {names[key]: checked[key] for key in table}


def _require_usable(value: Any, written: Any, where: str) -> None:
    if not _is_usable(value):
        raise ConfigError(f"{where} = {_shown(written)}: should be finite, and text without \\0")


def _is_usable(value: Any) -> bool:
    """Whether all numbers of a value are finite, and all texts could be names of files."""
    if isinstance(value, Mapping):
        return all(_is_usable(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_usable(one) for one in value)
    if isinstance(value, str):
        return "\0" not in value
    return not isinstance(value, (int, float)) or abs(value) <= _LARGEST


def _shown(value: Any) -> str:
    """Return a value for a message, which is one sentence however long the value is."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
