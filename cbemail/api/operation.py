"""One operation of the API: what it takes, what it answers, and how a request becomes a call of its handler.

A handler is typed by its operation, and the dispatcher decodes what the operation says. So the OpenAPI document, which
is made from the same operations, cannot say anything else than what happens.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from enum import Enum
from math import inf
from typing import Any, Generic, TypeVar

import msgspec
from anyio import CancelScope
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cbemail.api import auth
from cbemail.api.bodies import LARGE, Bodies
from cbemail.api.codec import (
    announced_length,
    decode_json,
    decode_query,
    read_chunks,
    require_json,
)
from cbemail.api.problems import problem_response
from cbemail.api.state import Services, State
from cbemail.errors import CbemailError, MessageNotFound, RequestTimeout, UpstreamTimeout
from cbemail.ids import RequestId, SessionId
from cbemail.imap.protocol import Uid
from cbemail.store.records import SessionRecord

log = logging.getLogger(__name__)

Q = TypeVar("Q")
B = TypeVar("B")

REQUEST_SECONDS = 60.0
UPLOAD_SECONDS = 900.0  # for a large body over a slow line
_UID = re.compile(r"[0-9]{1,10}", re.ASCII)
SMALL_BODY = 1024 * 1024  # octets; requests that carry no message


class Access(Enum):
    """Who may call an operation."""

    OPEN = "anybody"
    MAILBOX = "a session's token, or an API key with X-Session-ID"
    SESSION = "the token of the session in the path, or an API key"
    SERVICE = "an API key"
    OPERATOR = "an API key; where none are set, whoever calls from this machine"


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of an operation that takes none."""


class Call(Generic[Q, B]):
    """One request, decoded: its session (None where access is open), query, body and path parameters."""

    __slots__ = ("body", "query", "request", "services", "session_or_none")

    def __init__(
        self,
        request: Request[State],
        services: Services,
        session: SessionRecord | None,
        query: Q,
        body: B,
    ) -> None:
        self.request = request
        self.services = services
        self.session_or_none = session
        self.query = query
        self.body = body

    @property
    def session(self) -> SessionRecord:
        """The session the call is for; only for operations whose access gives one."""
        assert self.session_or_none is not None  # noqa: S101 - the operation's access says so
        return self.session_or_none

    def path(self, name: str) -> str:
        value: str = self.request.path_params[name]
        return value

    @property
    def uid(self) -> Uid:
        """The message that the path names. What is no 32-bit number names none (RFC 9051 section 2.3.1.1)."""
        text = self.path("uid")
        if not _UID.fullmatch(text) or not 0 < int(text) < 2**32:
            raise MessageNotFound("A message is named by its UID, a number from 1 to 4294967295.")
        return Uid(int(text))


class Raw(msgspec.Struct, frozen=True):
    """A body taken as octets; the handler looks at its media type."""

    data: bytes


class Upload:
    """The body of a request, as it comes. A handler that takes one of these reads it itself, at its own pace.

    What is held of a large one takes room in memory, which is given back when the request is over. Only when it has read all of it is there a watch for the client hanging up; before that, reading says so.
    """

    __slots__ = ("_bodies", "_held", "_request", "complete")

    def __init__(self, request: Request[Any], bodies: Bodies) -> None:
        self._request = request
        self._bodies = bodies
        self._held = 0
        self.complete = asyncio.Event()

    async def chunks(self, limit: int) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece; PayloadTooLarge once it is larger than ``limit`` octets."""
        async with aclosing(read_chunks(self._request, limit)) as chunks:
            async for chunk in chunks:
                yield chunk
        self.complete.set()

    async def octets(self, limit: int) -> bytearray:
        """All of the body, held once: it grows where it is, rather than being joined from pieces.

        Raises:
            PayloadTooLarge: it is larger than ``limit`` octets.
            Overloaded: it is large, and others hold all the room there is for such.
        """
        announced = announced_length(self._request)
        if announced <= limit:
            await self.hold(announced)
        body = bytearray()
        async for chunk in self.chunks(limit):
            if len(body) + len(chunk) > max(LARGE, announced):
                await self.hold(limit)  # nobody said how large it would get
            body += chunk
        return body

    async def hold(self, octets: int) -> None:
        """Have room for so many octets of it, all at once: two that had half of it would wait for each other."""
        if octets > LARGE and not self._held:
            await self._bodies.take(octets)
            self._held = octets

    def release(self) -> None:
        """Give the room back: nothing of the body is held any more."""
        held, self._held = self._held, 0
        if held:
            self._bodies.give(held)


class Answer(msgspec.Struct, frozen=True):
    """One good answer, for the OpenAPI document: a struct as JSON, or octets of a media type."""

    description: str
    content: Any = None  # a type, for JSON, or a union of types
    media_type: str | None = None  # where it is not JSON; None without content is no body at all
    also: tuple[str, ...] = ()  # more media types, for those who ask for them
    refers_to: tuple[type, ...] = ()  # structs that the content's schema names by reference only


_OCTETS = {Raw, Upload}  # bodies that are not decoded before the handler is called


def _show_problem(error: CbemailError | None, request: Request[Any]) -> Response:
    return problem_response(error, request_id_of(request.scope))


class Operation(Generic[Q, B]):
    """An ASGI application that serves one method of one path.

    Args:
        endpoint: the handler.
        gated: it is for those who have passed the gate, where there is one.
        optional_access: whose credential it looks at, where it is open to those who bring another proof.
        query: the struct of its query parameters.
        body: the struct of its JSON body, `Raw` for octets, `Upload` for a stream of them, or None.
        media: the media types of a `Raw` or `Upload` body; a struct, or a union of structs, where it has a schema.
        headers: the header parameters that are its own, for the OpenAPI document.
        answers: what it answers when all is well, by status.
        errors: the kinds of error it can end in, beyond those that any call of its access can.
        max_body: octets, from the services' settings.
        seconds: how long it may take; None for one that streams at the client's pace.
        prompt: it answers from memory, so that a client has no time to hang up in.
        shared: whether a query asks for a read of the mailbox, answered in JSON, which those who ask for it at once may
            share, and those who allow an older answer may have from memory (`answers`).
        show_error: how its errors are shown, where that is not as problem documents only.
    """

    def __init__(
        self,
        method: str,
        path: str,
        endpoint: Callable[[Call[Q, B]], Awaitable[Response]],
        *,
        access: Access,
        gated: bool = False,
        optional_access: Access | None = None,
        answers: Mapping[int, Answer],
        query: type[Q] = Nothing,  # type: ignore[assignment]  # the default of a generic argument
        body: type[B] | None = None,
        body_optional: bool = False,
        media: Mapping[str, Any] | None = None,
        errors: tuple[type[CbemailError], ...] = (),
        headers: tuple[Mapping[str, Any], ...] = (),
        tag: str,
        max_body: Callable[[Services], int] = lambda _: SMALL_BODY,
        seconds: float | None = REQUEST_SECONDS,
        prompt: bool = False,
        shared: Callable[[Q], bool] | None = None,
        show_error: Callable[[CbemailError | None, Request[Any]], Response] = _show_problem,
    ) -> None:
        self.method = method
        self.path = path
        self.endpoint = endpoint
        self.access = access
        self.gated = gated
        self.optional_access = optional_access
        self.answers = answers
        self.query = query
        self.body = body
        self.body_optional = body_optional
        self.media = media or ({"application/json": body} if body is not None else {})
        self.errors = errors
        self.headers = headers
        self.tag = tag
        self._max_body = max_body
        self._seconds = inf if seconds is None else seconds
        self._prompt = prompt
        self._shared = shared
        self._show_error = show_error
        self._no_query = None if _needs_some(query) else query()
        self._decoder = (
            msgspec.json.Decoder(body) if body is not None and body not in _OCTETS else None
        )

    @property
    def name(self) -> str:
        return self.endpoint.__name__

    @property
    def is_shared(self) -> bool:
        return self._shared is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. A client that hangs up cancels it; a handler that must finish shields what it must."""
        scope["operation"] = self
        services: Services = scope["state"]["services"]
        request = Request[State](scope, receive)
        admitted: SessionId | None = None
        try:
            session = self._authorise(request, services)
            if session is not None:
                services.limits.admit(session.id, scope)
                admitted = session.id
            kept = self._from_memory(request, services, session)
            if kept is not None:
                await kept(scope, receive, send)
            elif self._prompt:
                await self._serve(request, services, session, send, None)
            else:
                await self._serve_in_time(request, services, session, send)
        except CbemailError as error:
            await self._fail(error, scope, receive, send)
        except ClientDisconnect:
            log.debug("the client left before its request was complete")
        except Exception:
            log.exception("%s %s failed", self.method, self.path)
            await self._fail(None, scope, receive, send)
        finally:
            if admitted is not None:
                services.limits.leave(admitted)

    async def _serve_in_time(
        self,
        request: Request[State],
        services: Services,
        session: SessionRecord | None,
        send: Send,
    ) -> None:
        loop = asyncio.get_running_loop()
        with CancelScope(deadline=loop.time() + self._seconds) as cancel:
            await self._serve(request, services, session, send, cancel)
        if cancel.cancelled_caught and loop.time() >= cancel.deadline:
            raise _too_late(request.scope)

    async def _serve(
        self,
        request: Request[State],
        services: Services,
        session: SessionRecord | None,
        send: Send,
        cancel: CancelScope | None,
    ) -> None:
        """Call the handler and give its answer. A client that hangs up meanwhile ends ``cancel``, where there is one."""
        hang_up: asyncio.Task[None] | None = None
        receive = request.receive
        upload = Upload(request, services.bodies) if self.body is not None else None
        try:
            call = await self._decode(request, services, session, upload)
            if cancel is not None:
                read = call.body.complete if isinstance(call.body, Upload) else None
                hang_up = asyncio.create_task(_cancel_on_disconnect(receive, cancel, read))
            response = await self._respond(call)
            await response(request.scope, receive, send)
        finally:
            if hang_up is not None:
                hang_up.cancel()
            if upload is not None:
                upload.release()

    async def _decode(
        self,
        request: Request[State],
        services: Services,
        session: SessionRecord | None,
        upload: Upload | None,
    ) -> Call[Q, B]:
        query = self._no_query
        if query is None or request.scope["query_string"]:
            query = decode_query(request.query_params, self.query)
        body = await self._read_body(request, services, upload)
        return Call(request, services, session, query, body)

    def _from_memory(
        self, request: Request[State], services: Services, session: SessionRecord | None
    ) -> Response | None:
        if self._shared is None or session is None:
            return None
        return services.answers.kept(request, session.id)

    async def _respond(self, call: Call[Q, B]) -> Response:
        if self._shared is None or not self._shared(call.query):
            return await self.endpoint(call)
        answers = call.services.answers
        return await answers.shared(call.request, call.session.id, lambda: self.endpoint(call))

    def _authorise(self, request: Request[State], services: Services) -> SessionRecord | None:
        if self.gated:
            auth.pass_gate(request, services)
        match self.access:
            case Access.MAILBOX:
                session = auth.session_for_mailbox(request, services)
            case Access.SESSION:
                session = auth.session_in_path(request, services)
            case Access.SERVICE:
                auth.require_service(request, services)
                return None
            case Access.OPERATOR:
                auth.require_operator(request, services)
                return None
            case _:
                return None
        request.scope["session_id"] = session.id
        return session

    async def _read_body(
        self, request: Request[State], services: Services, upload: Upload | None
    ) -> B:
        if self.body is None or upload is None:
            return None  # type: ignore[return-value]  # B is None then
        if self.body is Upload:
            return upload  # type: ignore[return-value]  # B is Upload then
        data = await upload.octets(self._max_body(services))
        if self._decoder is None:
            return Raw(bytes(data))  # type: ignore[return-value]  # B is Raw then
        if not data and self.body_optional:
            return self.body()
        require_json(request)
        return decode_json(data, self._decoder)

    async def _fail(
        self, error: CbemailError | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope.get("response_started"):
            # Half an answer is out. Ending the connection is the one way to say that the rest will not come.
            raise ConnectionAbortedError("the response could not be finished") from error
        scope["problem"] = error
        await self._show_error(error, Request(scope))(scope, receive, send)


def request_id_of(scope: Scope) -> RequestId:
    """The id `middleware` gave the request."""
    return RequestId(scope["request_id"])


def _too_late(scope: Scope) -> CbemailError:
    """Whose fault it is that the time is up."""
    if scope.get("body_awaited"):
        return RequestTimeout("The body of the request was not complete in time.")
    return UpstreamTimeout("The request took too long and was given up.", retry_after=5)


def _needs_some(query: type[Any]) -> bool:
    """Whether a query struct has a field that must be given."""
    return any(field.required for field in msgspec.structs.fields(query))


async def _cancel_on_disconnect(
    receive: Receive, cancel: CancelScope, read: asyncio.Event | None
) -> None:
    """``read`` is set once the body is: until then what there is to receive is somebody else's."""
    if read is not None:
        await read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel.cancel()
