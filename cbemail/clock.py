"""Wall-clock time, as a thing that is handed in, so that a test can hold it still."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from time import time

Clock = Callable[[], datetime]


def now() -> datetime:
    """The time, aware, in UTC, to the second: what the API shows and the store keeps."""
    return _second(int(time()))


@lru_cache(maxsize=1)  # a busy service asks thousands of times in each
def _second(moment: int) -> datetime:
    return datetime.fromtimestamp(moment, UTC)
