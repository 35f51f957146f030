"""From an address to its mail servers: known by heart, remembered, or asked for of all who may know, side by side."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic

from msgspec import Struct, structs

from cbemail.errors import HostNotAllowed, Overloaded
from cbemail.hosts import normalise_host
from cbemail.sessions.provider import Setup, Source
from cbemail.sessions.providers import find_provider, find_provider_by_host
from cbemail.sessions.sources import ServerSources

LOOK_UP_SECONDS = 3.0  # for all that can be asked, side by side
GUESS_SECONDS = 2.0  # then, for guesses: other people's servers hear of no guess that is not needed
DOMAINS_KEPT = 10_000
AT_ONCE = 50  # look-ups; each takes a dozen sockets
NAMES_AT_ONCE = 12  # resolved, of the 32 that the service resolves at once
SHORTEST, LONGEST = 300, 86_400  # seconds an answer is kept, whatever its source says
FAILURE_KEPT = 60

# Names that lead nowhere (RFC 2606, RFC 6761 section 6, RFC 6762, RFC 7686, RFC 9476): nobody is asked for them.
_NOWHERE = {"alt", "arpa", "example", "invalid", "local", "localhost", "onion", "test"}
_EXAMPLES = {"example.com", "example.net", "example.org"}


def known_by_heart(email: str) -> Setup | None:
    """As it is built in: of a provider's own addresses."""
    provider = find_provider(email)
    return Setup.of(provider, Source.BUILTIN) if provider is not None else None


class _Kept(Struct, frozen=True):
    setup: Setup | None
    until: float


_Ask = Callable[[str], Awaitable[Setup | None]]


class Discovery:
    """Knows the mail servers of addresses. Without ``sources`` it knows what is built in, and asks nobody."""

    def __init__(
        self,
        sources: ServerSources | None,
        *,
        look_up_seconds: float = LOOK_UP_SECONDS,
        guess_seconds: float = GUESS_SECONDS,
        clock: Callable[[], float] = monotonic,
        domains_kept: int = DOMAINS_KEPT,
    ) -> None:
        self._sources = sources
        self._look_up_seconds = look_up_seconds
        self._guess_seconds = guess_seconds
        self._clock = clock
        self._domains_kept = domains_kept
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Setup | None]] = {}

    async def find(self, email: str, *, admit: Callable[[], None]) -> Setup | None:
        """How the mailbox ``email`` is reached, within five seconds; None where nobody knows.

        ``admit`` is called before others are asked, and may refuse that by raising. Who asks for a domain that is
        being asked for already waits for that answer, and hanging up spoils it for nobody.

        Raises:
            Overloaded: too many domains are being asked for.
        """
        by_heart = known_by_heart(email)
        if by_heart is not None:
            return by_heart
        domain = _public_domain(email)
        if domain is None or self._sources is None:
            return None
        kept = self._kept.get(domain)
        if kept is not None and self._clock() < kept.until:
            self._kept.move_to_end(domain)
            return kept.setup
        under_way = self._under_way.get(domain)
        if under_way is None:
            admit()
            under_way = self._begin(domain, self._sources)
        return await asyncio.shield(under_way)

    async def close(self) -> None:
        """Ask no further."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _begin(self, domain: str, sources: ServerSources) -> asyncio.Task[Setup | None]:
        if len(self._under_way) >= AT_ONCE:
            raise Overloaded("Too many mail servers are being looked for.", retry_after=5)
        task = asyncio.create_task(self._look_up(domain, sources))
        self._under_way[domain] = task
        task.add_done_callback(lambda _: self._under_way.pop(domain))
        return task

    async def _look_up(self, domain: str, sources: ServerSources) -> Setup | None:
        in_order = (
            sources.exchanger,
            sources.database,
            sources.autoconfig_host,
            sources.well_known,
            sources.services,
        )
        setup = await _first_answer(in_order, domain, self._look_up_seconds)
        if setup is None:
            setup = await _first_answer((sources.guess,), domain, self._guess_seconds)
        if setup is not None:
            setup = _with_provider(setup)
        self._keep(domain, setup)
        return setup

    def _keep(self, domain: str, setup: Setup | None) -> None:
        seconds = (
            min(max(setup.ttl, SHORTEST), LONGEST) if setup is not None else float(FAILURE_KEPT)
        )
        self._kept[domain] = _Kept(setup, self._clock() + seconds)
        self._kept.move_to_end(domain)
        if len(self._kept) > self._domains_kept:
            self._kept.popitem(last=False)


async def _first_answer(ask_all: Sequence[_Ask], domain: str, seconds: float) -> Setup | None:
    """Ask all at once. The first in the row that knows is right; when the time is up, the first of those that have
    answered."""
    asked = [asyncio.ensure_future(ask(domain)) for ask in ask_all]
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for each in asked:
                    if (setup := await each) is not None:
                        return setup
        answers = (each.result() for each in asked if each.done() and not each.cancelled())
        return next((setup for setup in answers if setup is not None), None)
    finally:
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)


def _with_provider(setup: Setup) -> Setup:
    """Whoever says where the servers are, of those of a known provider more is known."""
    provider = find_provider_by_host(setup.imap.host)
    if provider is None:
        return setup
    return structs.replace(setup, provider=provider.name, notes=provider.notes)


def _public_domain(email: str) -> str | None:
    """The domain in A-labels, if there may be something to find out about it."""
    try:
        domain = normalise_host(email.rpartition("@")[2])
    except HostNotAllowed:
        return None
    labels = domain.split(".")
    if len(labels) < 2 or ":" in domain or labels[-1].isdigit():  # an address, for one
        return None
    if labels[-1] in _NOWHERE or ".".join(labels[-2:]) in _EXAMPLES:
        return None
    return domain
