"""Commands that are on their way together, and how each of them ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from cbemail.errors import UpstreamError
from cbemail.imap.protocol import ImapSyntaxError, Response, StatusResponse, Untagged
from cbemail.imap.refusals import refusal
from cbemail.imap.wire import Command

T = TypeVar("T")


class Completion(Struct, frozen=True):
    """How one command ended, and what the server said untagged during its flight, in order.

    Of several commands in one flight a server may answer the later one first (Dovecot does), so nothing but its name
    says to which of them an untagged response belongs: each completion has them all. ``heard`` is how many of them came
    before the end of this command, and ``place`` how many other commands had ended by then.
    """

    command: Command
    status: StatusResponse
    responses: list[Response]
    heard: int = 0
    place: int = 0

    @property
    def ok(self) -> bool:
        return self.status.status == "OK"

    def untagged(self, name: str) -> list[Untagged]:
        return [r for r in self.responses if isinstance(r, Untagged) and r.name == name]

    def read(self, name: str, reader: Callable[[Untagged], T]) -> list[T]:
        """What ``reader`` makes of every untagged ``name``. One it cannot read is the server's fault."""
        try:
            return [reader(response) for response in self.untagged(name)]
        except ImapSyntaxError as exc:
            raise UpstreamError(
                f"The mail server's answer to {self.command.name} cannot be understood.",
                protocol="imap",
                command=self.command.name,
            ) from exc

    def code(self, name: str) -> bytes | None:
        """The arguments of response code ``name``, tagged or not (a COPYUID for MOVE comes untagged, RFC 6851)."""
        for response in (self.status, *self.responses):
            code = response.code if isinstance(response, StatusResponse) else None
            if code is not None and code.name == name:
                return code.arguments
        return None

    def require_ok(self) -> Completion:
        """This completion if the server said OK, its error otherwise."""
        if not self.ok:
            raise refusal(self.command.name, self.status)
        return self


class Flight(Struct, eq=False):
    """Commands on their way, by tag in the order of sending. They may be answered in any (RFC 9051 5.5)."""

    done: asyncio.Future[list[Completion]]
    unsent: int
    sent: dict[str, Command] = {}
    completions: dict[str, Completion] = {}
    responses: list[Response] = []

    @property
    def answered(self) -> bool:
        return not self.unsent and len(self.completions) == len(self.sent)

    @property
    def refused(self) -> bool:
        """Whether a command has been: what was sent behind a SELECT that failed is BAD by no fault of its own."""
        return any(not completion.ok for completion in self.completions.values())
