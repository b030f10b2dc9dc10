"""How kernels are compiled: without the interpreter lock, and cached on disk where that is safe."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

__all__ = ["compiled"]


@functools.lru_cache(maxsize=1)
def _sources() -> str:
    """Return a digest of this package: formulas live in other files than the kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _forget_unreadable(file: Any) -> None:
    """Remove an index of cached kernels that names a class which is no longer where it was.

    numba reads it whole, types of arguments included, before it looks at the stamp.
    """
    try:
        file._load_index()
    except (AttributeError, ImportError):
        Path(file._index_path).unlink(missing_ok=True)


def compiled(function: Callable) -> Any:
    """Compile a kernel on first use, and keep it on disk until any source of this package changes.

    numba by itself looks at the kernel's own file only, and would go on using a formula that has
    been corrected since.  Where there is nowhere to write, every process compiles anew.
    """
    kernel: Any = njit(nogil=True)(function)
    try:
        kernel.enable_caching()
        file = kernel._cache._cache_file
        file._source_stamp = (file._source_stamp, _sources())
        _forget_unreadable(file)
    except (RuntimeError, AttributeError):
        return njit(nogil=True)(function)
    return kernel
