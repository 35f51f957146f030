"""When to leave a mail host alone: after so many failures in a row to reach it, and for how long (pure).

A host that is down is asked by one connection at a time, ever more seldom; everybody else is told at once, rather
than each after a timeout of their own.
"""

from msgspec import Struct

from cbemail.errors import CbemailError, CredentialsRejected, CredentialsStale, UpstreamError

_PROBING = 1.0  # seconds; what the probe finds is not known yet: ask again soon


class CircuitPolicy(Struct, frozen=True):
    """``failures`` in a row open the circuit for ``shortest`` seconds; every probe that fails doubles that, up to
    ``longest``."""

    failures: int = 5
    shortest: float = 30.0
    longest: float = 600.0


DEFAULT_CIRCUIT = CircuitPolicy()


class Circuit:
    """Of one host. Closed, it lets everybody through; open, nobody, but for one probe each time its seconds are over.

    Who was let through says what came of it: `succeeded`, `failed`, or `withdrawn` where that tells nothing of the
    host. ``now`` is monotonic time.

    >>> circuit = Circuit(CircuitPolicy(failures=1, shortest=30))
    >>> circuit.failed(100.0, probe=False)
    >>> circuit.retry_in(110.0), circuit.retry_in(130.0)
    (20.0, None)
    >>> circuit.let_through(), circuit.retry_in(130.0)  # the probe, and those after it
    (True, 1.0)
    """

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._failures = 0  # in a row
        self._failed_at = 0.0  # the latest of those
        self._seconds = 0.0  # that it is open for; 0 when it is closed
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._seconds > 0

    def is_forgettable(self, now: float) -> bool:
        """What it remembers is so long ago that a new one would do."""
        old = now - self._failed_at > self._seconds + self._policy.longest
        return not self._probing and (self._failures == 0 or old)

    def retry_in(self, now: float) -> float | None:
        """Seconds until it is worth asking again; None: whoever comes now is let through."""
        if not self.is_open:
            return None
        if self._probing:
            return _PROBING
        left = self._failed_at + self._seconds - now
        return left if left > 0 else None

    def let_through(self) -> bool:
        """Go through where `retry_in` said None; is it the probe that goes?"""
        self._probing = self.is_open
        return self._probing

    def succeeded(self) -> None:
        """The host was reached. Whoever did it, the circuit is closed."""
        self._failures, self._seconds, self._probing = 0, 0.0, False

    def failed(self, now: float, *, probe: bool) -> None:
        """It was not. Who was let through before the circuit opened says nothing new."""
        if self.is_open and not probe:
            return
        self._failures += 1
        self._failed_at = now
        self._probing = False
        if self.is_open:
            self._seconds = min(self._seconds * 2, self._policy.longest)
        elif self._failures >= self._policy.failures:
            self._seconds = self._policy.shortest

    def withdrawn(self, *, probe: bool) -> None:
        """It came to no end that tells anything: the next to come is the probe."""
        if probe:
            self._probing = False


def was_reached(error: CbemailError) -> bool | None:
    """Whether a connection that could not be opened came as far as the login; None: it may not have been tried.

    What goes wrong from the login on is the account's affair, and must not keep other sessions from the host.
    """
    match error:
        case CredentialsStale():  # told without a login, once it is known
            return None
        case UpstreamError(protocol="oauth2"):  # no access token was to be had
            return None
        case CredentialsRejected() | UpstreamError(command="AUTH"):
            return True
        case UpstreamError():
            return False
        case _:
            return None
