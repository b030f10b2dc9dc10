"""Between C and Python: what the library that :mod:`~flowmc.capi.build` makes calls.

Nothing raised here reaches C: a function returns its status plus one, and leaves a sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from flowmc_adapters import FormatError

from flowmc.capi.host import HostStream, Part
from flowmc.kernels import NonFiniteStateError, UpdateFailedError
from flowmc.parallel import CollectiveError
from flowmc.registry import ConfigError

__all__ = ["DECLARATIONS", "install"]

# What C knows of this module; flowmc.c has the same.
DECLARATIONS = """
int flowmc_python_open(const char *configuration, const char *const *settings, int has_ranks,
                       int communicator, const int *origin, const int *extents, int64_t *key,
                       int32_t *shape);
int flowmc_python_update(int64_t key, void *field, int bits, uint64_t number);
int flowmc_python_value(int64_t key, const char *name, double *value);
int flowmc_python_report(int64_t key, char *text, size_t room, size_t *length);
int flowmc_python_close(int64_t key);
"""

_OK, _FAILED, _UNUSABLE = 1, 2, 3
# Errors of the caller; CollectiveError has their names.
_CALLERS = (ConfigError, FormatError, OSError, ValueError, TypeError)
# As in flowmc.c.
_MOST_DIMENSIONS = 16


def install(ffi: Any, lib: Any) -> None:
    """Give the library its functions.

    Args:
        ffi: of the module that cffi has made.
        lib: its functions in C.
    """
    streams: dict[int, HostStream] = {}
    keys = itertools.count(1)

    def define(function: Callable[..., None]) -> None:
        def call(*args: Any) -> int:
            try:
                function(*args)
                return _OK
            except BaseException as error:  # SystemExit included: a host never ends here
                text = str(error) or type(error).__name__
                if not isinstance(
                    error, (*_CALLERS, CollectiveError, NonFiniteStateError, UpdateFailedError)
                ):
                    text = f"{type(error).__name__}: {text}"
                lib.flowmc_set_message(text.encode("utf-8", "replace"))
                return _UNUSABLE if _is_of_caller(error) else _FAILED

        ffi.def_extern(name=f"flowmc_python_{function.__name__}")(call)

    @define
    def open(configuration, settings, has_ranks, communicator, origin, extents, key, shape):
        given = []
        if settings != ffi.NULL:
            ends = (i for i in itertools.count() if settings[i] == ffi.NULL)
            given = [_text(ffi, settings[i]) for i in range(next(ends))]
        path = _text(ffi, configuration)
        if has_ranks:
            from flowmc.parallel.mpi import MpiCommunicator

            stream = HostStream(
                path,
                given,
                MpiCommunicator(communicator),
                lambda d: Part(tuple(origin[0:d]), tuple(extents[0:d])),
            )
        else:
            stream = HostStream(path, given)
        if len(stream.part.extents) > _MOST_DIMENSIONS:
            raise ConfigError(f"the C interface knows {_MOST_DIMENSIONS} dimensions at most")
        key[0] = next(keys)
        numbers = (
            len(stream.part.extents),
            stream.directions,
            stream.element,
            *stream.part.extents,
        )
        for i, number in enumerate(numbers):
            shape[i] = number
        streams[key[0]] = stream

    @define
    def update(key, field, bits, number):
        stream = streams[key]
        count = int(np.prod(stream.shape))
        data = np.frombuffer(ffi.buffer(field, count * bits // 8), f"f{bits // 8}", count)
        stream.update(data, number)

    @define
    def value(key, name, value):
        value[0] = streams[key].value(_text(ffi, name))

    @define
    def report(key, text, room, length):
        content = streams[key].report().encode()
        length[0] = len(content)
        if text != ffi.NULL:
            ffi.memmove(text, (content + b"\0")[:room], min(room, len(content) + 1))

    @define
    def close(key):
        streams.pop(key).close()


def _text(ffi: Any, pointer: Any) -> str:
    return ffi.string(pointer).decode("utf-8", "surrogateescape")


def _is_of_caller(error: BaseException) -> bool:
    if isinstance(error, CollectiveError):
        names = {f"{kind.__module__}.{kind.__qualname__}" for kind in _CALLERS}
        return not names.isdisjoint(error.kinds)
    return isinstance(error, _CALLERS)
