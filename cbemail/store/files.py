"""The store's place on disk: a private folder, one owner at a time, and changes of the file that are all or nothing."""

import fcntl
import os
import shutil
import stat
from pathlib import Path

from cbemail.store.database import StoreUnusable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def wal_of(path: Path) -> Path:
    """The write-ahead log: commits that are not in the file itself yet."""
    return path.with_name(path.name + ".wal")


def log_of(path: Path) -> Path:
    """What is not folded into the rows of the store yet (`log_file`).

    Not ``.log``: files of that name are rotated, deleted, and left out of backups.
    """
    return path.with_name(path.name + ".events")


def keep_private() -> None:
    """From now on, make every file of this process readable by its owner alone.

    For good, not around a call: DuckDB makes its WAL anew after each checkpoint, in a thread and at a time of its
    own, and a umask put back would be put back for every thread.
    """
    os.umask(0o077)


def make_folder(folder: Path) -> None:
    """Make ``folder`` where it is missing. One that exists keeps its mode: it may hold other people's files."""
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _named_in(lock: int) -> str:
    return os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"


def owner_of(path: Path) -> str | None:
    """The number of the process that uses the store at ``path`` now; None where none does."""
    try:
        lock = os.open(_lock_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named_in(lock)
    finally:
        os.close(lock)
    return None


def claim(path: Path) -> int:
    """Become the only process, and the only opener in it, that uses the store at ``path``; gives the lock to close.

    DuckDB's own lock is not enough. It is a POSIX record lock: it does not keep this process from opening the file
    twice, and is lost as soon as this process closes any descriptor of the file, as making a backup does.

    Raises:
        StoreUnusable: another instance has it.
    """
    lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        owner = _named_in(lock)
        os.close(lock)
        raise StoreUnusable(
            f"Another instance (process {owner}) is using the store {path}: stop it first, or set another DB_PATH."
        ) from exc
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def refuse_missing(path: Path) -> None:
    """Keep a new store from being made beside what is left of another.

    Raises:
        StoreUnusable: only ``path`` itself is missing.
    """
    for what, file in (("write-ahead log", wal_of(path)), ("log", log_of(path))):
        if file.exists():
            raise StoreUnusable(
                f"The store {path} is missing, but its {what} is there: restore it, or remove {file} to begin anew."
            )


def refuse_unfit(path: Path) -> None:
    """Say in one sentence what DuckDB would say in several, or not at all.

    Raises:
        StoreUnusable: ``path`` is no regular file, is empty, or may not be written.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnusable(f"The store {path} is not a file.")
    if status.st_size == 0:
        raise StoreUnusable(
            f"The store {path} is empty: restore a backup, or remove the file to start anew."
        )
    # The mode is asked too, since the superuser may write to what its owner has locked.
    if not status.st_mode & stat.S_IWUSR or not os.access(path, os.R_OK | os.W_OK):
        raise StoreUnusable(f"The store {path} is read-only for this user.")


def make_private(path: Path) -> None:
    """Take other users' access to the store away, should an earlier umask or a restored backup have given it."""
    for file in (path, wal_of(path), log_of(path)):
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(PRIVATE_FILE)


def copy(source: Path, target: Path) -> None:
    """Copy a database that nobody has open, and wait until the copy is on disk."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Remove a database that was never finished."""
    wal_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def put_in_place(new: Path, path: Path) -> None:
    """Let ``new`` take the place of ``path``: after a crash there is the one or the other, whole."""
    for file in (new, path):
        if wal_of(file).exists():  # it would be replayed into a file it does not belong to
            raise StoreUnusable(f"The store {path} could not be checkpointed: is the disk full?")
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A file's name is on disk only when its folder is; DuckDB syncs the file alone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
