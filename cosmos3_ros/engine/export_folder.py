"""A folder that appears whole or not at all, written by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cosmos3_ros.engine.bundle import MANIFEST

_LOCK = ".lock"
# Compiled engines and their keys fit the graphs they were compiled from alone.
_ENGINES = (".engine", ".engine.json")


class FolderError(ValueError):
    """A folder cannot be written now: it is being written, or the disk has no room for it."""


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out`` that takes its place when the block ends without an error.

    What was at ``out`` is there until then; after an error nothing is left of the new one. What a
    killed process left half written is cleared by the next, and what it had put aside is put back.
    A link is followed. Raises FolderError where another process is writing this folder and where
    the disk fills up.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.partial"
    work.mkdir(exist_ok=True)
    with (work / _LOCK).open("w") as lock:
        _acquire(lock.fileno(), out)
        try:
            if _old(out).exists() and not out.exists():
                _old(out).rename(out)
            _clear(work)
            yield work
            _replace(work, out)
            (out / _LOCK).unlink()
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise FolderError(
                    f"disk full while writing '{out}'; what was written of it is removed: free "
                    "some space, or name a folder on another disk",
                ) from error
            raise


@contextmanager
def bundle_folder(out: Path) -> Iterator[Path]:
    """``whole_folder`` for a bundle: what else lies beside an earlier one, its card for one, stays.

    Raises FolderError, too, where ``out`` is there and is no bundle, and where a file of the new
    bundle would take the place of one that the earlier one does not name.
    """
    with whole_folder(out) as work:
        _others(out)  # refuses before there is work to lose
        yield work
        for path in _others(out):
            if (work / path.name).exists():
                raise FolderError(
                    f"'{path}' is not of the bundle there and would be replaced; expected a name "
                    "that the new bundle has no file of: move it, or name another folder"
                )
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, work / path.name, symlinks=True)
                continue
            with suppress(FileNotFoundError):  # an editor's, gone by now
                shutil.copy2(path, work / path.name, follow_symlinks=False)


def _others(out: Path) -> list[Path]:
    """What lies in a bundle's folder and is not of the bundle."""
    if not out.exists():
        return []
    try:
        own = {MANIFEST, _LOCK, *json.loads((out / MANIFEST).read_bytes())["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(
            f"'{out}' exists and is no bundle that can be read; name another folder for the bundle"
        ) from error
    return [p for p in out.iterdir() if p.name not in own and not p.name.endswith(_ENGINES)]


def require_space(folder: Path, size: int) -> None:
    """Raises FolderError with both figures where a disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise FolderError(
            f"{size / 1e9:.1f} GB are to be written and the disk of '{folder}' has "
            f"{free / 1e9:.1f} GB free; free some, or name a folder on another disk",
        )


def _acquire(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have finished between our opening and locking: then it is no lock.
        held = os.fstat(descriptor).st_nlink > 0
    except BlockingIOError:
        held = False
    if not held:
        raise FolderError(f"'{out}' is being written by another process; wait for it to end")


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _replace(work: Path, out: Path) -> None:
    old = _old(out)
    shutil.rmtree(old, ignore_errors=True)
    try:
        if out.exists():
            out.rename(old)
        work.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _old(out: Path) -> Path:
    """Where an earlier folder is while the new one takes its place."""
    return out.parent / f".{out.name}.old"
