"""The PIN gate: who may see the pages and log in, where the operator has set `GATE_PIN`."""

import re
from collections import deque
from collections.abc import Hashable
from datetime import datetime, timedelta
from hashlib import sha256
from hmac import compare_digest, digest
from math import ceil
from typing import NamedTuple

from cbemail.clock import Clock
from cbemail.errors import PinRequired, RateLimited
from cbemail.sessions.keys import KeyRing

PASS_LIFETIME = timedelta(days=7)

# A PIN is short, so it is the number of tries that keeps it: five an address stop a person, and fifty an hour over all
# addresses leave a PIN of six digits an even chance to be found within more than a year.
ADDRESS_TRIES, ADDRESS_WINDOW = 5, timedelta(minutes=15)
ALL_TRIES, ALL_WINDOW = 50, timedelta(hours=1)

_PASS = re.compile(r"(?P<expiry>[1-9][0-9]{9,10})\.(?P<mac>[0-9a-f]{64})", re.ASCII)


class Gate:
    """Opens to the PIN, and to the passes it gives to those who knew it. Without a PIN it is open to all.

    A pass is its expiry, and a MAC over the expiry and the PIN with a key of its own: it ends with its time, with the
    PIN, and with SECRET_KEY. Nothing is stored of it.
    """

    def __init__(self, pin: str, keyring: KeyRing, clock: Clock) -> None:
        self._pin = pin
        self._keys = keyring.keys("gate")
        self._clock = clock
        self._wrong = _WrongTries()

    @property
    def is_set(self) -> bool:
        return bool(self._pin)

    def new_pass(self) -> str:
        """A pass for one who knew the PIN."""
        expiry = int((self._clock() + PASS_LIFETIME).timestamp())
        return f"{expiry}.{self._mac(self._keys[0], expiry).hex()}"

    def accepts(self, given: str) -> bool:
        """Whether it is a pass of ours, for the PIN there is now, that has not expired."""
        match = _PASS.fullmatch(given)
        if match is None:
            return False
        expiry, mac = int(match["expiry"]), bytes.fromhex(match["mac"])
        genuine = any([compare_digest(mac, self._mac(key, expiry)) for key in self._keys])  # noqa: C419 - no short cut
        return genuine and expiry > self._clock().timestamp()

    def _mac(self, key: bytes, expiry: int) -> bytes:
        return digest(key, f"{expiry}.{self._pin}".encode(), "sha256")

    def try_pin(self, pin: str, client: Hashable) -> None:
        """Return if it is the PIN. Wrong ones are counted for ``client``, and for all.

        Nothing is awaited between the look at the count and counting: tries made at once are tries made in turn.

        Raises:
            PinRequired: it is not.
            RateLimited: there were too many wrong ones. The PIN is not looked at, so that this tells nothing of it.
        """
        now = self._clock()
        wait = self._wrong.wait(client, now)
        if wait:
            raise RateLimited(
                "No PIN is looked at for now: there were too many wrong ones.",
                retry_after=ceil(wait.total_seconds()),
            )
        # Digests are equally long, so that the time tells nothing of the PIN's length either.
        given, known = (sha256(text.encode("utf-8", "replace")) for text in (pin, self._pin))
        if not compare_digest(given.digest(), known.digest()):
            self._wrong.add(client, now)
            raise PinRequired("That is not the PIN.")


class _Try(NamedTuple):
    time: datetime
    client: Hashable


class _WrongTries:
    """The wrong tries of the last hour. The budget of all bounds how many there are to remember."""

    def __init__(self) -> None:
        self._tries: deque[_Try] = deque(maxlen=ALL_TRIES)

    def add(self, client: Hashable, now: datetime) -> None:
        self._tries.append(_Try(now, client))

    def wait(self, client: Hashable, now: datetime) -> timedelta:
        """How long until ``client`` may try again; zero if it may now."""
        everybody = [each.time for each in self._tries]
        own = [each.time for each in self._tries if each.client == client]
        return max(
            _until_free(everybody, ALL_TRIES, ALL_WINDOW, now),
            _until_free(own, ADDRESS_TRIES, ADDRESS_WINDOW, now),
        )


def _until_free(times: list[datetime], tries: int, window: timedelta, now: datetime) -> timedelta:
    """How long until fewer than ``tries`` of ``times`` lie within ``window``."""
    if len(times) < tries:
        return timedelta()
    return max(times[-tries] + window - now, timedelta())
