"""What those who run the service ask of it: is it alive, is it ready, what does it offer, what does an error mean."""

from html import escape

from msgspec import Struct
from starlette.responses import HTMLResponse, Response

from cbemail.api.codec import json_response
from cbemail.api.operation import Call
from cbemail.api.problems import INTERNAL, INTERNAL_CODE, PROBLEMS
from cbemail.errors import RouteNotFound
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
    store = "failed" if call.services.database.failed.is_set() else "ok"
    outbox = _outbox_status(call.services.batches)
    ready = store == outbox == "ok"
    status = "ready" if ready else "not ready"
    return json_response(Readiness(status, store, outbox), 200 if ready else 503)


def _outbox_status(batches: Batches) -> str:
    if batches.draining:
        return "stopping"
    return "restarting" if batches.troubled else "ok"


async def explain_problem(call: Call[object, None]) -> Response:
    """What a problem's `type` leads to: its meaning, for people."""
    code: str = call.path("code")
    rows = {kind.code: problem for kind, problem in PROBLEMS.items()} | {INTERNAL_CODE: INTERNAL}
    problem = rows.get(code)
    if problem is None:
        raise RouteNotFound("There is no problem of that code.")
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(problem.title)}</title><h1>{escape(problem.title)}</h1>"
        f"<p><code>{escape(code)}</code>, HTTP status {problem.status}</p><p>{escape(problem.meaning)}</p>",
        headers={"Content-Security-Policy": "default-src 'none'"},
    )
