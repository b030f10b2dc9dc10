"""How much memory there is: what could never fit is refused in words, before the system kills."""

from __future__ import annotations

import os

__all__ = ["lacks_memory", "memory_here"]


def memory_here() -> int:
    """Return the bytes of memory of this machine; 2^62 where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**62


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on the CPU or on a device."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in words for text in ("can't allocate memory", "out of memory"))
    )
