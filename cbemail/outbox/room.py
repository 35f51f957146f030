"""Room in memory for message bodies on their way: so many octets over all batches, whatever their number and size."""

from asyncio import Future, get_running_loop
from collections import deque


class Room:
    """First come, first served; what is larger than all there is gets all of it, alone."""

    def __init__(self, octets: int) -> None:
        self._all = octets
        self._free = octets
        self._waiters: deque[tuple[int, Future[None]]] = deque()

    async def take(self, octets: int) -> None:
        """Wait for so much room; it is the caller's until `give`."""
        octets = min(octets, self._all)
        if octets <= self._free and not self._waiters:
            self._free -= octets
            return
        granted: Future[None] = get_running_loop().create_future()
        self._waiters.append((octets, granted))
        try:
            await granted
        except BaseException:
            if granted.done() and not granted.cancelled():
                self.give(octets)  # granted in the very moment it was given up
            else:
                self._waiters = deque(each for each in self._waiters if each[1] is not granted)
                self.give(0)  # whoever stood behind may fit now
            raise

    def give(self, octets: int) -> None:
        """Give back what was taken."""
        self._free += min(octets, self._all)
        while self._waiters and self._waiters[0][0] <= self._free:
            wanted, granted = self._waiters.popleft()
            if granted.cancelled():
                continue
            self._free -= wanted
            granted.set_result(None)
