"""A file that one process at a time can lock, also from different nodes of a cluster."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from flowmc.registry import ConfigError

__all__ = ["Lock"]

# What is held by this process: POSIX locks keep out other processes only, and are lost when the
# process closes any descriptor of the file.
_HELD: set[tuple[int, int]] = set()
_BUSY = (errno.EACCES, errno.EAGAIN)
# How often the file may vanish while it is locked, by processes that end.
_TRIES = 100


class Lock:
    """An exclusive POSIX lock on a file of its own.

    Such locks work over NFS and on parallel file systems, where locks of ``flock`` on a directory
    do not.  They end with the process, however that ends; the file stays.

    Args:
        path: the lock file, made by :meth:`acquire`; nothing else may ever open it.

    Attributes:
        works: whether the file system keeps other processes out; known after :meth:`acquire`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.works = False
        self._descriptor: int | None = None
        self._identity = (0, 0)

    def acquire(self, busy: str) -> None:
        """Lock the file, at once or not at all.

        Args:
            busy: what to say if another process has it.

        Raises:
            ConfigError: with that text.
            OSError: the file cannot be made.
        """
        for _ in range(_TRIES):
            if _identity_of(self.path) in _HELD:
                raise ConfigError(busy)
            # A planted link is not followed.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.works = True
            except OSError as error:
                if error.errno in _BUSY:
                    os.close(descriptor)
                    raise ConfigError(busy) from error
                self.works = False
            found = os.fstat(descriptor)
            self._identity = found.st_dev, found.st_ino
            if _identity_of(self.path) != self._identity:
                # Its last owner has removed the file in the meantime.
                os.close(descriptor)
                continue
            # By the clock of the file system: when the lock was taken.
            with contextlib.suppress(OSError):
                os.utime(descriptor)
            self._descriptor = descriptor
            _HELD.add(self._identity)
            return
        raise ConfigError(busy)

    @property
    def is_in_place(self) -> bool:
        """Whether the locked file is still where it was, and with it its directory."""
        return self._descriptor is not None and _identity_of(self.path) == self._identity

    def release(self, *, remove: bool = False) -> None:
        """Let other processes in.

        Args:
            remove: the file, too: nothing was done that anybody would want to lock again.
        """
        if self._descriptor is None:
            return
        if remove and self.is_in_place:
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None
        _HELD.discard(self._identity)


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino
