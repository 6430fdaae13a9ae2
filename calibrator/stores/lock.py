"""One instance per database file: an exclusive `flock` on `<file>.lock`, held from open to close.

The kernel drops the lock when the last descriptor of this opening goes, whatever ended the process, so kill -9 leaves
nothing behind to clean up and a restart serves at once. The descriptor is not inherited by executed programs; a child
made by a bare fork would share it, therefore sweeps run in spawned processes. The lock file itself is never removed:
unlinking it would let two instances hold "the" lock on two different files.

The file holds the owner's process id, for the message only; what counts is the kernel's lock, not the number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from calibrator.errors import StoreError, StoreLockedError


class InstanceLock:
    """Blocking file work, all of it short: call it off the event loop."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises StoreLockedError if another instance holds it, StoreError if the file cannot be made."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"The store's lock file {self._path} cannot be written ({error.strerror}).",
                "Make its directory exist, writable for this user and with some space, or set store.path to another.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreLockedError(
                f"The store {self._database} is in use by another calibrator (process {owner or 'unknown'}).",
                "Stop that one, or give this one a store.path of its own.",
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"The store's lock file {self._path} cannot be locked ({error.strerror}).",
                "Put store.path on a local file system.",
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its owner's number
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
