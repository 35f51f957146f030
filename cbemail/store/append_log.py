"""The log of an embedded store, for the event loop: a thread of its own writes it, an entry after the other."""

from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from cbemail.errors import Overloaded
from cbemail.store.database import Entry
from cbemail.store.log_file import LogFile, LogFull


class AppendLog:
    """A `Log` in a file.

    Args:
        full: makes the error for an entry there was no room for.
        fail: makes the error for one that may or may not be on disk, and for all after it.
        closed: makes the error for one that comes too late.
    """

    def __init__(
        self,
        file: LogFile,
        loop: AbstractEventLoop,
        *,
        full: Callable[[], Overloaded],
        fail: Callable[[OSError], Overloaded],
        closed: Callable[[], Overloaded],
    ) -> None:
        self._file = file
        self._loop = loop
        self._full = full
        self._fail = fail
        self._closed = closed
        self._is_closed = False
        self._failure: OSError | None = None
        self._thread = ThreadPoolExecutor(1, "cbemail-store-log")

    @property
    def octets(self) -> int:
        return self._file.octets

    async def entries(self, after: int) -> list[Entry]:
        return await self._loop.run_in_executor(self._thread, self._file.entries, after)

    def append(self, entry: Entry) -> Future[None]:
        if self._is_closed:
            raise self._closed()
        return self._loop.run_in_executor(self._thread, self._append, entry)

    def clear(self) -> None:
        if not self._is_closed:
            self._thread.submit(self._clear)

    async def close(self) -> LogFile:
        """Finish what was asked before, and leave the file to the caller."""
        self._is_closed = True
        await self._loop.run_in_executor(self._thread, lambda: None)  # the last that it is asked
        self._thread.shutdown()
        return self._file

    # ---- in the thread

    def _append(self, entry: Entry) -> None:
        if self._failure is not None:  # the kernel may have dropped what it could not write
            raise self._fail(self._failure)
        try:
            self._file.append(entry)
        except LogFull as exc:
            raise self._full() from exc
        except OSError as exc:
            self._failure = exc
            raise self._fail(exc) from exc

    def _clear(self) -> None:
        with suppress(OSError):  # a file that stays long does no harm
            self._file.clear()
