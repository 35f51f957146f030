"""Room in memory for the bodies of requests: what is large is held by a few requests at a time."""

import asyncio

from cbemail.errors import Overloaded
from cbemail.outbox.room import Room

LARGE = 1024 * 1024  # octets; what is smaller is not counted
BODIES_OCTETS = 256 * 1024 * 1024  # of large bodies in all; what is made of one takes some more
PATIENCE_SECONDS = 5.0  # that a large body waits for room, before it is read
RETRY_SECONDS = 10


class Bodies:
    """The large bodies that are held at present."""

    def __init__(self, octets: int = BODIES_OCTETS, patience: float = PATIENCE_SECONDS) -> None:
        self._room = Room(octets)
        self._patience = patience

    async def take(self, octets: int) -> None:
        """Wait for room; it is the caller's until `give`. Raises Overloaded where there is none in time."""
        try:
            async with asyncio.timeout(self._patience):
                await self._room.take(octets)
        except TimeoutError as exc:
            raise Overloaded(
                "Too many large requests are under way at once.", retry_after=RETRY_SECONDS
            ) from exc

    def give(self, octets: int) -> None:
        """Give back what was taken."""
        self._room.give(octets)
