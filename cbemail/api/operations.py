"""What those who run the service ask of it: is it alive, is it ready."""

from msgspec import Struct
from starlette.responses import Response

from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.api.state import Services
from cbemail.outbox.batches import Batches


class Status(Struct, frozen=True):
    status: str


class Readiness(Struct, frozen=True):
    """``ready`` where every part is ``ok``. The store may have ``failed``; the outbox be ``stopping`` with the service,
    or ``restarting`` after a defect."""

    status: str
    store: str
    outbox: str


async def get_health(call: Call[object, None]) -> Response:  # noqa: ARG001 - a handler
    """The process is alive."""
    return json_response(Status("ok"))


async def get_readiness(call: Call[object, None]) -> Response:
    """The service can do its work: the store is open, and what sends is running. 503 where it cannot."""
    readiness = readiness_of(call.services)
    return json_response(readiness, 200 if readiness.status == "ready" else 503)


def readiness_of(services: Services) -> Readiness:
    """Whether each part can do its work, and so the service."""
    store = "failed" if services.database.failed.is_set() else "ok"
    outbox = _outbox_status(services.batches)
    return Readiness("ready" if store == outbox == "ok" else "not ready", store, outbox)


def _outbox_status(batches: Batches) -> str:
    if batches.draining:
        return "stopping"
    return "restarting" if batches.troubled else "ok"
