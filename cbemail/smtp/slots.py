"""What `SmtpPool` decides on: the mail hosts, who has a connection to one of them, and who waits for one."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from cbemail.errors import CbemailError
from cbemail.ids import SessionId
from cbemail.smtp.circuit import Circuit, CircuitPolicy
from cbemail.smtp.connection import SubmissionConnection


@dataclass(eq=False)
class Host:
    """Who has a connection to one mail host, who waits for one, and whether the host can be reached at all."""

    circuit: Circuit
    slots: list["Slot"] = field(default_factory=list)  # idle ones in the order they became idle
    waiters: deque["Waiter"] = field(default_factory=deque)

    def refuse_waiters(self, error: Callable[[], CbemailError]) -> None:
        """Each gets an error of its own: one that several tasks raise would collect their tracebacks."""
        for waiter in self.waiters:
            if not waiter.granted.done():
                waiter.granted.set_exception(error())


@dataclass(eq=False)
class Slot:
    """The right to one connection: being opened, lent out, or idle."""

    session_id: SessionId
    account: Hashable
    host: Host
    probe: bool = False  # its opening is what an open circuit waits for
    connection: SubmissionConnection | None = None  # none yet while it is being opened
    last_used: float = 0.0
    expiry: asyncio.TimerHandle | None = None  # while it is idle, and only then
    retiring: bool = False  # its session ended: not to be lent again

    @property
    def idle(self) -> bool:
        return self.expiry is not None

    @property
    def hung_up(self) -> bool:
        """Whether the server ended its connection while nobody used it."""
        return self.idle and self.connection is not None and not self.connection.is_usable()

    def stop_expiry(self) -> None:
        """It is idle no longer: lent, or gone."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None


@dataclass(eq=False)
class Waiter:
    """Somebody who wants a connection, and is granted a slot when there is one."""

    session_id: SessionId
    account: Hashable
    patient: bool  # waits for ever: a batch, which nobody is watching
    granted: asyncio.Future[Slot]


class Hosts:
    """The mail hosts by name, each for as long as somebody has a connection to it, or wants one, or wanted one in
    vain: its slots and its waiters keep it, and `failed` does until that is long ago."""

    def __init__(self, policy: CircuitPolicy) -> None:
        self._policy = policy
        self._by_name: WeakValueDictionary[str, Host] = WeakValueDictionary()
        self.troubled: set[Host] = set()  # those not reached lately

    def of(self, name: str) -> Host:
        """The host of that name, known before or not."""
        host = self._by_name.get(name)
        if host is None:
            host = self._by_name[name] = Host(Circuit(self._policy))
        return host

    def find(self, name: str) -> Host | None:
        return self._by_name.get(name)

    def all(self) -> list[Host]:
        return list(self._by_name.values())

    def slots(self) -> list[Slot]:
        return [slot for host in self._by_name.values() for slot in host.slots]

    def reached(self, host: Host) -> None:
        host.circuit.succeeded()
        self.troubled.discard(host)

    def failed(self, host: Host, now: float, *, probe: bool) -> None:
        """It could not be reached. Hosts that failed so long ago that nothing follows from it are let go."""
        host.circuit.failed(now, probe=probe)
        self.troubled.add(host)
        self.troubled = {each for each in self.troubled if not each.circuit.is_forgettable(now)}
