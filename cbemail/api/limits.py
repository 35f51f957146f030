"""How much of the service one caller gets: requests of a session, and logins, which other people's servers count too."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address, ip_address
from time import monotonic_ns

from starlette.types import Scope

from cbemail.errors import Overloaded, RateLimited
from cbemail.hosts import MailServer, normalise_host
from cbemail.ids import SessionId
from cbemail.settings import Rate

WAITING_OF_A_SESSION = 64  # requests at once; its IMAP connections serve three
KEYS_KEPT = 100_000  # of each quota: some 20 MB when full

# A login that fails costs as much as two that do not: a password is guessed half as fast as mailboxes are added.
FAILED_LOGIN = 2
# Failed logins at one mail server, in times SESSION_RATE_LIMIT: it sees one address for all our callers, and may ban it.
FAILED_LOGINS_OF_A_HOST = 10

_SECOND = 1_000_000_000  # ns; whole numbers, so that a hundred steps of a tenth are ten


class Quota:
    """Counts against a rate, separately for each key: GCRA (ITU-T I.371), one number a key.

    The number is when the key will have made good all it used. It may use up the whole of its quota at once, and gets
    it back evenly. Beyond ``keys`` of them, the one unused longest is forgotten, so that whoever has many addresses
    fills no memory with them.
    """

    def __init__(
        self,
        name: str,
        rate: Rate,
        *,
        clock: Callable[[], int] = monotonic_ns,
        keys: int = KEYS_KEPT,
    ) -> None:
        self._interval = rate.seconds * _SECOND // rate.times
        self._window = self._interval * rate.times
        self._clock = clock
        self._keys = keys
        self._due: OrderedDict[Hashable, int] = OrderedDict()
        self._policy = (b"ratelimit-policy", f'"{name}";q={rate.times};w={rate.seconds}'.encode())
        self._standing = f'"{name}";r=%d;t=%d'.encode()

    def take(self, key: Hashable, cost: int = 1) -> int:
        """Use ``cost`` of the quota; 0 if there was any left, else in how many seconds there will be. Who takes more
        than was left waits the longer for the next."""
        now = self._clock()
        due = max(self._due.get(key, now), now)
        early = due + self._interval - now - self._window
        if early > 0:
            return -(-early // _SECOND)
        self._due[key] = due + cost * self._interval
        self._due.move_to_end(key)
        if len(self._due) > self._keys:
            self._due.popitem(last=False)
        return 0

    def give_back(self, key: Hashable, cost: int = 1) -> None:
        """What was taken before was not used after all."""
        if key in self._due:
            self._due[key] -= cost * self._interval

    def fields(self, key: Hashable) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers): what is left, and in how many
        seconds it is whole again."""
        used = max(self._due.get(key, 0) - self._clock(), 0)
        left = max(self._window - used, 0) // self._interval
        return self._policy, (b"ratelimit", self._standing % (left, -(-used // _SECOND)))


class Limits:
    """What the service counts, all of it in memory. A refusal says when to come back.

    An API key has no limit of its own: its requests count for the session they name, its logins for the mailbox and the
    mail servers. So one user of a trusted service cannot lock out the others.
    """

    def __init__(
        self, *, logins: Rate, requests: Rate, clock: Callable[[], int] = monotonic_ns
    ) -> None:
        failures = Rate(logins.times * FAILED_LOGINS_OF_A_HOST, logins.seconds)
        self._requests = Quota("requests", requests, clock=clock)
        self._waiting: dict[SessionId, int] = {}
        self._clients = Quota("logins", logins, clock=clock)
        self._mailboxes = Quota("mailbox-logins", logins, clock=clock)
        self._hosts = Quota("failed-logins", failures, clock=clock)
        self._look_ups = Quota("look-ups", logins, clock=clock)

    # ---- requests

    def admit(self, session_id: SessionId, scope: Scope) -> None:
        """Let one request of the session in, which must `leave` in the end.

        Raises:
            RateLimited, Overloaded: it may come again later.
        """
        scope["rate_limit"] = (self._requests, session_id)
        wait = self._requests.take(session_id)
        if wait:
            raise RateLimited("The session sends too many requests.", retry_after=wait)
        waiting = self._waiting.get(session_id, 0)
        if waiting >= WAITING_OF_A_SESSION:
            raise Overloaded("The session has too many requests under way.", retry_after=1)
        self._waiting[session_id] = waiting + 1

    def leave(self, session_id: SessionId) -> None:
        """A request that was let in has ended."""
        waiting = self._waiting[session_id] - 1
        if waiting:
            self._waiting[session_id] = waiting
        else:
            del self._waiting[session_id]

    # ---- look-ups

    def admit_look_up(self, stranger: Scope) -> None:
        """Let a client, known by its address only, have us ask others where a domain's mail servers are.

        Raises:
            RateLimited: it may again later.
        """
        client = counted_as(stranger)
        stranger["rate_limit"] = (self._look_ups, client)
        wait = self._look_ups.take(client)
        if wait:
            raise RateLimited("There were too many look-ups of mail servers.", retry_after=wait)

    # ---- logins

    def begin_login(self, *servers: MailServer, stranger: Scope | None = None) -> "LoginAttempt":
        """Let somebody try to log in to ``servers``. A ``stranger``, by the scope of its request, is known by its
        address only, which is counted too.

        It counts as failed until it is told to have succeeded: tries made at once cannot all be let in on the strength
        of none having failed yet, nor does hanging up in the middle make a try free.

        Raises:
            RateLimited: for the client's address, the mailbox or a server; the answer is the same, so that it tells
                nothing of who else tries.
            HostNotAllowed: a server's name is none.
        """
        attempt = LoginAttempt()
        names = {(normalise_host(server.host), server.username.lower()) for server in servers}
        waits = []
        if stranger is not None:
            client = counted_as(stranger)
            stranger["rate_limit"] = (self._clients, client)
            waits.append(attempt.take(self._clients, client, FAILED_LOGIN, 1))
        waits += [attempt.take(self._mailboxes, name, FAILED_LOGIN, 1) for name in names]
        waits += [attempt.take(self._hosts, host, 1, 0) for host in {host for host, _ in names}]
        if any(waits):
            attempt.withdraw()
            raise RateLimited("There were too many logins like this one.", retry_after=max(waits))
        return attempt


class LoginAttempt:
    """What one login has taken of its quotas."""

    def __init__(self) -> None:
        self._taken: list[tuple[Quota, Hashable, int, int]] = []

    def take(self, quota: Quota, key: Hashable, failed: int, succeeded: int) -> int:
        wait = quota.take(key, failed)
        if not wait:
            self._taken.append((quota, key, failed, succeeded))
        return wait

    def succeed(self) -> None:
        """It was a good login: it costs less."""
        for quota, key, failed, succeeded in self._taken:
            quota.give_back(key, failed - succeeded)

    def withdraw(self) -> None:
        """It was not made, so it costs nothing."""
        for quota, key, failed, _ in self._taken:
            quota.give_back(key, failed)


def counted_as(scope: Scope) -> Hashable:
    """Who a request's client is counted as: its address, of IPv6 the /64, which is one customer's (RFC 6177).

    What is no address, as over a Unix socket or from a proxy that hides its clients, is one client.

    >>> counted_as({"client": ("2001:db8:0:7::1", 1)}) == counted_as({"client": ("2001:db8:0:7:8::", 2)})
    True
    >>> counted_as({"client": ("::ffff:192.0.2.1", 1)}) == counted_as({"client": ("192.0.2.1", 2)})
    True
    """
    host, _ = scope.get("client") or ("", 0)
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if not isinstance(address, IPv6Address):
        return int(address)
    if address.ipv4_mapped is not None:
        return int(address.ipv4_mapped)
    return address.packed[:8]
