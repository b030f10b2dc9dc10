"""What tells two objects apart: a digest of class, construction and state.

Densities are cached under it, and a resumed run is held against it.  So it must differ wherever two
flows, priors or actions differ, and be the same in another process: it holds no memory address.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.registry import ConfigError

__all__ = ["Identified", "identity"]

# What every module has, and nothing that its maps depend on.
_OF_MODULES = {*nn.Module().__dict__, "_construction"}
_SEPARATE = ("_parameters", "_buffers", "_modules")
# Digests are in the files of runs, and a class is in its digest by the module where it stood when
# it was first written: modules that moved afterwards, by the package that they moved into.
_MOVED = {
    "gauge": "defect defect_masks link_jacobian link_masks masked_links plaquette residual",
    "local": "block_coupling block_gaussian blocks",
    "parts": "convolution interval_splines products runge_kutta splines",
    "scalar": "checkerboard coarse_models conditional continuous coupling multi_lattice "
    "site_tables spline_coupling super_resolution symmetric_kernels velocity",
}
_FIRST_MODULE = {
    "flowmc.flows.models": "flowmc.flows.base",
    "flowmc.flows.local.models": "flowmc.flows.local",
} | {
    f"flowmc.flows.{room}.{module}": f"flowmc.flows.{module}"
    for room, modules in _MOVED.items()
    for module in modules.split()
}


class Identified:
    """A base of classes whose objects remember how they were made, for :func:`identity`.

    Subclasses need nothing of their own.  A class, also of a part that is a plain module, may name
    in ``caches`` attributes that hold what can be computed again: these count as empty mappings.
    """

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        if (args or keywords) and cls.__init__ is object.__init__:
            # What object() itself says, which this method would hide.
            raise TypeError(f"{cls.__name__}() takes no arguments")
        self = super().__new__(cls)
        if cls.distinction is Identified.distinction:
            # Not by attribute: a module takes none before its own constructor has run.
            object.__setattr__(self, "_construction", (args, keywords))
        return self

    def distinction(self) -> Any:
        """Return what tells objects of this class apart beside their state; usually inherited.

        State is: weights, buffers, parts that are modules, and attributes that are numbers, text,
        tensors or other flows, priors and actions.  None, the default, stands for the arguments of
        the constructor.  A class overrides this if these cannot be identified from one process to
        the next, or if some of them do not matter.
        """
        return None


def identity(thing: Any) -> str:
    """Return a digest of 32 hexadecimal digits: equal for equal class, construction and state.

    Args:
        thing: a flow, a prior, a model of both, an action, or whatever these are made from.

    Raises:
        ConfigError: for an object of which this cannot be told; the message says what to define.
    """
    walk = _Walk()
    walk.add(thing, type(thing).__name__)
    return walk.digest.hexdigest()[:32]


class _Walk:
    """Feeds a digest with an object and all that it is made of."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        # Digests of objects, None while one is being walked.  The objects are kept, so that no
        # other one takes over the number of one that is gone.
        self._seen: dict[int, tuple[Any, str | None]] = {}

    def add(self, value: Any, where: str) -> None:
        """Add one value; ``where`` names it in messages."""
        if value is None or isinstance(value, bool | str | bytes):
            self._put(type(value).__name__, value if isinstance(value, bytes) else str(value))
        elif isinstance(value, int | float | complex | np.number):
            self._put("number", _number(value))
        elif isinstance(value, list | tuple) and type(value) in (list, tuple, torch.Size):
            self._put("sequence", str(len(value)))
            for index, entry in enumerate(value):
                self.add(entry, f"{where}[{index}]")
        elif isinstance(value, torch.dtype | torch.device | torch.layout):
            self._put("torch", str(value))
        elif isinstance(value, torch.Generator):
            # What was drawn from it is in the weights.
            self._put("generator", "")
        else:
            self._put("object", self._digest_of(value, where))

    def _digest_of(self, value: Any, where: str) -> str:
        # Equal parts count alike whether they are one object or several.
        if id(value) in self._seen:
            return self._seen[id(value)][1] or "a part of itself"
        self._seen[id(value)] = value, None
        outer, self.digest = self.digest, hashlib.sha256()
        self._add_object(value, where)
        outer, self.digest = self.digest, outer
        self._seen[id(value)] = value, outer.hexdigest()
        return outer.hexdigest()

    def _add_object(self, value: Any, where: str) -> None:
        if isinstance(value, Tensor):
            self._add_array(_array(value), where)
            self._put("dtype", str(value.dtype))
        elif isinstance(value, np.ndarray):
            self._add_array(value, where)
        elif isinstance(value, Mapping):
            self._add_mapping(value, where)
        elif isinstance(value, set | frozenset):
            self._put("set", " ".join(sorted(identity(entry) for entry in value)))
        elif isinstance(value, type):
            self._add_class(value, where)
        elif isinstance(value, types.ModuleType):
            self._put("module", value.__name__)
        elif isinstance(value, types.FunctionType):
            self._add_function(value, where)
        elif isinstance(value, types.CodeType):
            self._add_code(value, where)
        elif isinstance(value, nn.Module | Identified):
            self._add_identified(value, where)
        elif callable(getattr(value, "distinction", None)):
            self._add_class(type(value), where)
            self.add(value.distinction(), f"{where}.distinction()")
        else:
            self._add_reduced(value, where)

    def _add_identified(self, value: Any, where: str) -> None:
        self._add_class(type(value), where)
        distinction = value.distinction() if isinstance(value, Identified) else None
        if distinction is not None:
            self.add(distinction, f"{where}.distinction()")
        elif "_construction" in vars(value):
            self._add_arguments(value, where)
        state = vars(value)
        if isinstance(value, nn.Module):
            for kind in _SEPARATE:
                self._put(kind, str(len(state[kind])))
                for name, part in state[kind].items():
                    self._put("name", name)
                    self.add(part, f"{where}.{name}")
        caches = getattr(type(value), "caches", ())
        for name in sorted(state.keys() - _OF_MODULES):
            # Of a part that does not remember its construction, every attribute may matter.
            if not isinstance(value, Identified) or _is_plain(state[name]):
                self._put("attribute", name)
                self.add({} if name in caches else state[name], f"{where}.{name}")

    def _add_arguments(self, value: Any, where: str) -> None:
        args, keywords = vars(value)["_construction"]
        try:
            bound = inspect.signature(type(value).__init__).bind(value, *args, **keywords)
        except (TypeError, ValueError):
            given: dict[str, Any] = {"args": args, **keywords}
        else:
            bound.apply_defaults()
            given = dict(list(bound.arguments.items())[1:])
        for name, argument in sorted(given.items()):
            self._put("argument", name)
            self.add(argument, f"{where}({name})")

    def _add_array(self, value: np.ndarray, where: str) -> None:
        if value.dtype.hasobject:
            self.add(value.tolist(), where)
            return
        self._put("array", f"{value.dtype.str} {value.shape}")
        self.digest.update(np.ascontiguousarray(value).tobytes())

    def _add_mapping(self, value: Mapping[Any, Any], where: str) -> None:
        self._put("mapping", str(len(value)))
        keyed = sorted((identity(key), key) for key in value) if value else []
        for digest, key in keyed:
            self._put("key", digest)
            self.add(value[key], f"{where}[{key!r}]")

    def _add_class(self, value: type, where: str) -> None:
        self._put("class", _name(value))
        if not _is_at(value, value.__module__, value.__qualname__):
            # A class made inside a function: its name stands for many.
            self.add(value.__bases__, where)
            for key, entry in sorted(vars(value).items()):
                entry = getattr(entry, "__func__", getattr(entry, "fget", entry))
                is_constant = _is_plain(entry) and not key.startswith("__")
                if is_constant or isinstance(entry, types.FunctionType):
                    self._put("attribute", key)
                    self.add(entry, f"{where}.{key}")

    def _add_function(self, value: types.FunctionType, where: str) -> None:
        self._put("function", _name(value))
        if not _is_at(value, value.__module__, value.__qualname__):
            self._add_code(value.__code__, where)
            self.add(value.__defaults__, where)
            self.add(value.__kwdefaults__, where)
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                try:
                    content = cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
                self.add(content, f"{where}: {name}")

    def _add_code(self, value: types.CodeType, where: str) -> None:
        self._put("code", value.co_code)
        self.add(value.co_names, where)
        for constant in value.co_consts:
            self.add(constant, where)

    def _add_reduced(self, value: Any, where: str) -> None:
        """Add what would be written to copy the object, a protocol that all of Python has."""
        if isinstance(value, Iterator):
            raise _unknown(value, where)
        try:
            reduced = value.__reduce_ex__(2)
        except Exception as error:
            raise _unknown(value, where) from error
        if isinstance(reduced, str):
            self._put("name", f"{type(value).__module__}.{reduced}")
            return
        self._add_class(type(value), where)
        function, arguments, *rest = reduced
        self.add(function, where)
        self.add(tuple(entry for entry in arguments if entry is not value), where)
        for part in rest:
            self.add(list(part) if isinstance(part, Iterator) else part, where)

    def _put(self, kind: str, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        self.digest.update(f"{kind} {len(data)}:".encode() + data)


def _name(value: type | types.FunctionType) -> str:
    module = _FIRST_MODULE.get(value.__module__, value.__module__)
    return f"{module}.{value.__qualname__}"


def _number(value: complex | np.number) -> str:
    """Return the same text for equal numbers of any type, with all digits."""
    plain = value.item() if isinstance(value, np.number) else value
    if isinstance(plain, complex):
        imaginary = f" {_number(plain.imag)}i" if plain.imag else ""
        return f"{_number(plain.real)}{imaginary}"
    if isinstance(plain, float) and plain.is_integer():
        return str(int(plain))
    return plain.hex() if isinstance(plain, float) else str(int(plain))


def _array(value: Tensor) -> np.ndarray:
    data = value.detach().cpu().resolve_conj().resolve_neg()
    if data.is_sparse or not data.is_contiguous():
        data = data.to_dense().contiguous() if data.is_sparse else data.contiguous()
    if data.dtype == torch.bfloat16:  # numpy has none
        data = data.view(torch.int16)
    return data.numpy()


def _is_at(value: Any, module: str, name: str) -> bool:
    """Return whether this is what its name leads to."""
    try:
        return functools.reduce(getattr, name.split("."), sys.modules[module]) is value
    except (AttributeError, KeyError):
        return False


def _is_plain(value: Any) -> bool:
    """Return whether an attribute is state: text, numbers, tensors, identified parts, or tables."""
    if isinstance(value, Mapping):
        return _all_plain(value.keys()) and _all_plain(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return _all_plain(value)
    scalars = (str, bytes, int, float, complex, np.number, torch.dtype)
    return value is None or isinstance(value, (*scalars, Tensor, np.ndarray, Identified))


def _all_plain(values: Iterable[Any]) -> bool:
    return all(map(_is_plain, values))


def _unknown(value: Any, where: str) -> ConfigError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return ConfigError(
        f"{where} is a {kind}, of which another process cannot tell whether it is the same: give "
        "the class that holds it a method distinction() that returns, in plain values, what its "
        "density depends on"
    )
