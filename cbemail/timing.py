"""Where a request's time went: what `Server-Timing` shows and the log keeps.

The request in hand is found through a context variable, so that the pools and connections, which know nothing of
HTTP, can add to its account. Outside a request the time is counted nowhere.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter

Account = dict[str, float]  # phase -> seconds; phases: auth, wait, imap, smtp, parse

_account: ContextVar[Account | None] = ContextVar("cbemail_timing", default=None)


def open_account() -> Account:
    """Start counting for the current context (one request), and give the account to be read at its end."""
    account: Account = {}
    _account.set(account)
    return account


@contextmanager
def spent_on(phase: str) -> Iterator[None]:
    """Add the time the block takes to ``phase`` of the request in hand."""
    account = _account.get()
    if account is None:
        yield
        return
    start = perf_counter()
    try:
        yield
    finally:
        account[phase] = account.get(phase, 0.0) + perf_counter() - start


TURN_SECONDS = 0.01  # of the event loop, at a stretch; a request that waits for ten of them has waited unnoticed


class Turn:
    """A task's turn on the event loop, for work that comes in many small pieces, some of which a stranger has made
    large: between them the others get theirs."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def share(self) -> None:
        """End the turn if it has lasted long enough."""
        if perf_counter() - self._began > TURN_SECONDS:
            await asyncio.sleep(0)
            self._began = perf_counter()
