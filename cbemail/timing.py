"""Where a request's time went: what `Server-Timing` shows and the log keeps.

The request in hand is found through a context variable, so that the pools and connections, which know nothing of
HTTP, can add to its account. Outside a request the time is counted nowhere.
"""

from contextvars import ContextVar
from time import perf_counter

Account = dict[str, float]  # phase -> seconds; phases: auth, wait, imap, smtp, parse

_account: ContextVar[Account | None] = ContextVar("cbemail_timing", default=None)


def open_account() -> Account:
    """Start counting for the current context (one request), and give the account to be read at its end."""
    account: Account = {}
    _account.set(account)
    return account


def spent_on(phase: str) -> "_Span":
    """Add the time the block takes to ``phase`` of the request in hand."""
    return _Span(phase)


class _Span:
    """A class, since a generator would take longer to enter and leave than many a block that is measured."""

    __slots__ = ("_phase", "_start")

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        account = _account.get()
        if account is not None:
            account[self._phase] = account.get(self._phase, 0.0) + perf_counter() - self._start
