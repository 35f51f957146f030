"""What every request gets, whatever it asks for: an id, a line in the log, and headers. Pure ASGI."""

import re
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbemail.api.codec import header_of
from cbemail.api.problems import problem_response
from cbemail.errors import CbemailError, Overloaded
from cbemail.ids import new_request_id
from cbemail.logs import log_request
from cbemail.metrics import RequestTally
from cbemail.timing import Account, open_account

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAIL_PATHS = ("/api/mailbox/", "/api/send")
_REQUEST_ID = b"x-request-id"
_SNIFFING = (b"x-content-type-options", b"nosniff")
_NOT_KEPT = (b"cache-control", b"no-store")
_MAIL_HEADERS = (
    _SNIFFING,
    (b"cache-control", b"private, no-store"),
    (b"vary", b"Authorization, X-API-Key, X-Session-ID"),
)
_OURS = frozenset((_REQUEST_ID, _SNIFFING[0]))
_OURS_OF_MAIL = _OURS.union((b"server-timing",), (name for name, _ in _MAIL_HEADERS))

REQUESTS_AT_ONCE = 2000  # over all; each may hold a body of a few MB, and a connection of the pool
_ALWAYS_SERVED = ("/healthz", "/readyz", "/metrics")  # how busy it is must show when it is busiest


class Front:
    """The outermost application.

    It gives each request its id (the client's own if it is sane, so that a log line can be found from either side),
    counts its time, adds the headers every response has, and logs it. It lets only so many in at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        tally: RequestTally | None = None,
        *,
        at_once: int = REQUESTS_AT_ONCE,
    ) -> None:
        self._app = app
        self._tally = tally or RequestTally()
        self._at_once = at_once
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        account = open_account()
        own = header_of(scope, _REQUEST_ID)
        request_id = own if own and _SANE_REQUEST_ID.fullmatch(own) else new_request_id()
        scope["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                scope["response_started"] = True
                _add_headers(message, scope, account)
            await send(message)

        self._under_way += 1
        full = self._under_way > self._at_once and scope["path"] not in _ALWAYS_SERVED
        try:
            await (_refuse if full else self._app)(scope, receive, send_with_headers)
        finally:
            self._under_way -= 1
            _log(scope, status, perf_counter() - start, account, self._tally)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = Overloaded("The service has too many requests under way.", retry_after=1)
    scope["problem"] = error
    await problem_response(error, scope["request_id"])(scope, receive, send)


def _add_headers(start: Message, scope: Scope, account: Account) -> None:
    """Put ours in the place of those of the same name; only how long to cache may be said otherwise outside mail."""
    headers: list[tuple[bytes, bytes]] = [*start["headers"]]
    names = {name for name, _ in headers}
    is_mail = scope["path"].startswith(_MAIL_PATHS)
    ours = _OURS_OF_MAIL if is_mail else _OURS
    if not names.isdisjoint(ours):
        headers = [header for header in headers if header[0] not in ours]
    headers.append((_REQUEST_ID, scope["request_id"].encode()))
    if is_mail:
        headers += _MAIL_HEADERS
        headers.append((b"server-timing", server_timing(account).encode()))
    else:
        headers.append(_SNIFFING)
        if _NOT_KEPT[0] not in names:
            headers.append(_NOT_KEPT)
    if "rate_limit" in scope:
        quota, key = scope["rate_limit"]
        headers += quota.fields(key)
    start["headers"] = headers


def server_timing(account: Account) -> str:
    """The account as a Server-Timing value, milliseconds.

    >>> server_timing({"auth": 0.0001, "imap": 0.0123})
    'auth;dur=0.1, imap;dur=12.3'
    """
    return ", ".join(f"{phase};dur={seconds * 1000:.1f}" for phase, seconds in account.items())


def _log(scope: Scope, status: int, seconds: float, account: Account, tally: RequestTally) -> None:
    """Log the request, and count it."""
    operation = scope.get("operation")
    problem = scope.get("problem")
    code = problem.code if isinstance(problem, CbemailError) else None
    name = operation.name if operation is not None else "none"
    tally.observe(name, status, seconds, account, code)
    log_request(
        request_id=scope["request_id"],
        session_id=scope.get("session_id"),
        method=scope["method"],
        path=operation.path if operation is not None else "(no route)",
        status=status,
        seconds=seconds,
        code=code,
        account=account,
    )
