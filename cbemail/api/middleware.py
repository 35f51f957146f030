"""What every request gets, whatever it asks for: an id, a line in the log, and headers. Pure ASGI."""

import re
from time import perf_counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbemail.errors import CbemailError
from cbemail.ids import new_request_id
from cbemail.logs import log_request
from cbemail.timing import Account, open_account

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAIL_PATHS = ("/api/mailbox/", "/api/send")
_MAIL_HEADERS = {
    b"cache-control": b"private, no-store",
    b"vary": b"Authorization, X-API-Key, X-Session-ID",
}


class Front:
    """The outermost application.

    It gives each request its id (the client's own if it is sane, so that a log line can be found from either side),
    counts its time, adds the headers every response has, and logs it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        account = open_account()
        own = Headers(scope=scope).get("x-request-id", "")
        request_id = own if _SANE_REQUEST_ID.fullmatch(own) else new_request_id()
        scope["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                scope["response_started"] = True
                _add_headers(message, scope, account)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            _log(scope, status, perf_counter() - start, account)


def _add_headers(start: Message, scope: Scope, account: Account) -> None:
    """Put ours in the place of those of the same name; only how long to cache may be said otherwise outside mail."""
    ours = {
        b"x-request-id": scope["request_id"].encode(),
        b"x-content-type-options": b"nosniff",
    }
    if scope["path"].startswith(_MAIL_PATHS):
        ours |= _MAIL_HEADERS
        ours[b"server-timing"] = server_timing(account).encode()
    headers = [(name, value) for name, value in start["headers"] if name not in ours]
    if b"cache-control" not in ours and not any(name == b"cache-control" for name, _ in headers):
        ours[b"cache-control"] = b"no-store"
    start["headers"] = [*headers, *ours.items()]


def server_timing(account: Account) -> str:
    """The account as a Server-Timing value, milliseconds.

    >>> server_timing({"auth": 0.0001, "imap": 0.0123})
    'auth;dur=0.1, imap;dur=12.3'
    """
    return ", ".join(f"{phase};dur={seconds * 1000:.1f}" for phase, seconds in account.items())


def _log(scope: Scope, status: int, seconds: float, account: Account) -> None:
    operation = scope.get("operation")
    problem = scope.get("problem")
    log_request(
        request_id=scope["request_id"],
        session_id=scope.get("session_id"),
        method=scope["method"],
        path=operation.path if operation is not None else "(no route)",
        status=status,
        seconds=seconds,
        code=problem.code if isinstance(problem, CbemailError) else None,
        account=account,
    )
