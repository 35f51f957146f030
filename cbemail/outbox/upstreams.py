"""Each account at its mail server, found by session: what is shared by all sessions of one login, and counted for it.

What an account has sent in the last 24 hours is on disk, and read when somebody first wants to send for it: a start
takes no longer for what was sent before it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from weakref import WeakValueDictionary

from msgspec import Struct

from cbemail.clock import Clock
from cbemail.ids import SessionId
from cbemail.outbox.limits import ProviderLimits
from cbemail.outbox.pacing import START, Allowance, Upstream
from cbemail.store.batches import BatchRepository
from cbemail.store.records import SessionRecord

_DAY = timedelta(days=1)


class Account(Struct, frozen=True):
    """Whom a provider's limits hold for, both in lower case: a login at an SMTP host, however many sessions it has."""

    host: str
    username: str


class Upstreams:
    """What is known of each account's server, for as long as it has sessions here, or anything of it still counts.

    Args:
        find: the session; raises SessionNotFound where it has ended.
        limits_of: what its provider allows.
    """

    def __init__(
        self,
        find: Callable[[SessionId], SessionRecord],
        limits_of: Callable[[SessionRecord], ProviderLimits],
        repository: BatchRepository,
        clock: Clock,
    ) -> None:
        self._find = find
        self._limits_of = limits_of
        self._repository = repository
        self._clock = clock
        self._accounts: dict[SessionId, Account] = {}
        self._sessions: Counter[Account] = Counter()
        self._known: dict[Account, Upstream] = {}
        self._left: set[Account] = set()  # known, without a session
        self._opening: WeakValueDictionary[Account, asyncio.Lock] = WeakValueDictionary()

    async def of(self, session_id: SessionId) -> Upstream:
        """The account's.

        Raises:
            SessionNotFound: the session has ended.
            Overloaded: what the account has sent cannot be read just now.
        """
        session = self._find(session_id)
        account = Account(session.smtp.host.lower(), session.smtp.username.lower())
        upstream = self._known.get(account) or await self._open(account, self._limits_of(session))
        self._find(session_id)  # or it would be known for ever, had it ended meanwhile
        if session_id not in self._accounts:
            self._accounts[session_id] = account
            self._sessions[account] += 1
            self._left.discard(account)
        return upstream

    def connections(self, session_id: SessionId) -> int:
        """How many a session may have just now. For the pool, which asks for sessions that have ended as well."""
        account = self._accounts.get(session_id)
        return START if account is None else self._known[account].limit

    def forget(self, session_id: SessionId) -> None:
        """The session has ended. What its account has sent still counts for the next one."""
        account = self._accounts.pop(session_id, None)
        if account is not None:
            self._sessions[account] -= 1
            if not self._sessions[account]:
                del self._sessions[account]
                self._left.add(account)
        self._clear_away()

    async def _open(self, account: Account, limits: ProviderLimits) -> Upstream:
        lock = self._opening.setdefault(account, asyncio.Lock())
        async with lock:  # or what is taken here would be counted on disk, too, by who comes second
            upstream = self._known.get(account)
            if upstream is None:
                upstream = Upstream(limits, await self._day(account, limits))
                self._known[account] = upstream
                self._left.add(account)  # until its session is entered
        return upstream

    async def _day(self, account: Account, limits: ProviderLimits) -> Allowance | None:
        """What is left of the day. The store knows hours by the clock on the wall, pacing by one that nobody sets."""
        if limits.per_day is None:
            return None
        hours = await self._repository.sent_by_hour(
            host=account.host, username=account.username, since=self._clock() - _DAY
        )
        now, moment = self._clock(), asyncio.get_running_loop().time()
        ages = ((max((now - began).total_seconds(), 0.0), count) for began, count in hours)
        return Allowance(limits.per_day, [(moment - age, count) for age, count in ages])

    def _clear_away(self) -> None:
        now = asyncio.get_running_loop().time()
        for account in [each for each in self._left if self._known[each].is_forgettable(now)]:
            self._left.discard(account)
            del self._known[account]
