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
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

__all__ = [
    "BUILTIN",
    "ConfigError",
    "build",
    "named_by",
    "nearest",
    "parameters",
    "resolve",
    "trust",
    "validate",
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
    },
    "kernels": {
        "hmc": "flowmc.kernels:HMC",
        "independence": "flowmc.kernels:Independence",
        "exchange": "flowmc.kernels:Exchange",
        "sign_flip": "flowmc.kernels:SignFlip",
        "local_flow": "flowmc.kernels:LocalFlow",
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
    },
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

# Words of the configuration file that are Python keywords.
_ALIASES = {"lambda": "lam"}


class ConfigError(ValueError):
    """Unusable input: the message names the key, what is wrong and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """Return the component ``name`` of a kind ("actions", "kernels", "flows", ...).

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a failing import.
    """
    # Imported late, like pydantic below: what is misspelt is said within a fraction of a second.
    from importlib.metadata import entry_points

    table = BUILTIN[kind]
    target = table.get(name)
    what = f"cannot load {kind.removesuffix('s')} {name!r}"
    if target is None and ":" in name:
        if not all(part.isidentifier() for part in name.replace(":", ".", 1).split(".")):
            raise ConfigError(f"{what}: should be 'package.module:Name'")
        _check_trusted(name)
        target = name
    if target is None:
        plugins = {entry.name: entry.value for entry in entry_points(group=f"flowmc.{kind}")}
        target = plugins.get(name)
        if target is None:
            raise ConfigError(
                f"unknown {kind.removesuffix('s')} {name!r}{nearest(name, {*table, *plugins})} "
                "(your own are named 'package.module:Name')"
            )
    module, _, attribute = target.partition(":")
    try:
        component = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        where = ""
        if isinstance(error, ModuleNotFoundError):
            where = "; its folder is that of the configuration file, or is named in PYTHONPATH"
        raise ConfigError(f"{what}: {error}{where}") from error
    except Exception as error:
        # The module is not ours: what is wrong in it is named, and its traceback is kept.
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error
    try:
        inspect.signature(component)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: should be a class or a function written in Python") from error
    return component


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


def _check_trusted(name: str) -> None:
    """Raise unless a component ``"package.module:Name"`` may be imported."""
    module, file = name.partition(":")[0], _FILE.get()
    if file is None:
        # The user's own configuration: then the files that it uses may name it, too.
        _TRUSTED.add(module)
    elif not any(module == one or module.startswith(f"{one}.") for one in _TRUSTED):
        raise ConfigError(
            f"{file} names {name!r}, which is no part of flowmc, and importing it would run the "
            f"code of {module!r}: if you trust that, give --trust {module} (in Python: "
            "flowmc.registry.trust), or name it in your own configuration"
        )


def parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a component: its configuration keys."""
    return {
        key: parameter
        for key, parameter in inspect.signature(component).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


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


def validate(component: Callable[..., Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return ``table`` as keyword arguments of ``component``, types checked; see :func:`build`."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    known = parameters(component)
    written = {written_key(key): key for key in known}
    function = component.__init__ if inspect.isclass(component) else component
    hints = typing.get_type_hints(function)
    arguments: dict[str, Any] = {}
    for key, value in table.items():
        if key not in written:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, written)}")
        _require_usable(value, value, f"{where}: {key}")
        name = written[key]
        try:
            adapter = TypeAdapter(
                hints.get(name, Any), config=ConfigDict(arbitrary_types_allowed=True)
            )
            arguments[name] = adapter.validate_python(value, strict=False)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"{where}: {key} = {_shown(value)}: {reason}") from error
        # The text "inf" is a number only now.
        _require_usable(arguments[name], value, f"{where}: {key}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"{where}: missing key {written_key(name)!r}")
    return arguments


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


def written_key(parameter: str) -> str:
    """Return the configuration key of a parameter: itself, but for Python's keywords."""
    return {name: alias for alias, name in _ALIASES.items()}.get(parameter, parameter)
