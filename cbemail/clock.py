"""Wall-clock time, as a thing that is handed in, so that a test can hold it still."""

from collections.abc import Callable
from datetime import UTC, datetime
from time import time

Clock = Callable[[], datetime]


def now() -> datetime:
    """The time, aware, in UTC, to the second: what the API shows and the store keeps."""
    return datetime.fromtimestamp(int(time()), UTC)
