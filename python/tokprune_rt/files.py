"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_target(path: Path) -> None:
    """Raises OSError when no file can have this name."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when the block has succeeded; a failure leaves no trace.

    A link keeps pointing where it did, and devices and pipes are written to, not replaced.
    """
    check_target(path)
    path = path.resolve()
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def only_process(folder: Path, output: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made, and where ``output`` comes from.

    Raises BlockingIOError when another one is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        try:
            # The system gives it up when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is working on {output}") from error
        yield


def check_new_folder(path: Path) -> None:
    """Raises FileExistsError when something is already there."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists and is not an empty folder; give another name or delete it"
        )


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes its name when the block has succeeded; a failure leaves no trace.

    Raises FileExistsError when something is already there.
    """
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        # mkdtemp's folder is private to the user.
        work.chmod(0o777 & ~_umask())
        yield work
        os.replace(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
