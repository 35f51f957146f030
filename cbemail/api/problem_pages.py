"""Problems for people: what each code means and what to do, and the errors of pages, as pages."""

from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from cbemail.api.codec import json_response
from cbemail.api.elements import Content, element
from cbemail.api.gate_page import gate_page
from cbemail.api.markdown import inline
from cbemail.api.operation import Call, request_id_of
from cbemail.api.page import navigation, page, prefers_page
from cbemail.api.preferences import preferred
from cbemail.api.problems import (
    INTERNAL,
    INTERNAL_CODE,
    PROBLEMS,
    Problem,
    problem_of,
    problem_response,
)
from cbemail.errors import CbemailError, PinRequired, RateLimited, RouteNotFound


class Explanation(Struct, frozen=True):
    """``retryable``: the same request may succeed later."""

    code: str
    title: str
    status: int
    meaning: str
    remedy: str
    retryable: bool


def _explanation(code: str, row: Problem, *, retryable: bool) -> Explanation:
    return Explanation(code, row.title, row.status, row.meaning, row.remedy, retryable)


EXPLANATIONS = {
    kind.code: _explanation(kind.code, row, retryable=kind.retryable)
    for kind, row in PROBLEMS.items()
} | {INTERNAL_CODE: _explanation(INTERNAL_CODE, INTERNAL, retryable=False)}


async def explain_problem(call: Call[object, None]) -> Response:
    """What a problem's `type` leads to: what it means and what to do, as a page or as JSON."""
    found = EXPLANATIONS.get(call.path("code"))
    if found is None:
        raise RouteNotFound("There is no problem of that code.")
    if preferred(call.request, ("text/html", "application/json")) == "application/json":
        return json_response(found)
    return page(
        found.title,
        element("h1", found.title),
        element(
            "p",
            element("code", found.code),
            f" · HTTP status {found.status}",
            " · the same request may succeed later" if found.retryable else None,
            class_="note",
        ),
        element("h2", "What it means"),
        element("p", inline(found.meaning)),
        element("h2", "What to do"),
        element("p", inline(found.remedy)),
        header=navigation(),
    )


def show_error(error: CbemailError | None, request: Request[Any]) -> Response:
    """An error of a page: for a browser as a page, the form of the gate where that is what is missing."""
    problem = problem_response(error, request_id_of(request.scope))
    if not prefers_page(request):
        return problem
    if error is not None and isinstance(error, PinRequired | RateLimited):
        shown = gate_page(request, status=problem.status_code, complaint=_complaint(error, request))
    else:
        shown = _error_page(error, problem.status_code)
    for name in {"retry-after", "allow"}.intersection(problem.headers):
        shown.headers[name] = problem.headers[name]
    return shown


def _complaint(error: CbemailError, request: Request[Any]) -> str | None:
    """Nothing is wrong yet where a page has only been asked for."""
    return (
        None
        if request.method in {"GET", "HEAD"} and isinstance(error, PinRequired)
        else error.detail
    )


def _error_page(error: CbemailError | None, status: int) -> Response:
    row = INTERNAL if error is None else problem_of(type(error))
    sentence: Content = row.meaning if error is None else error.detail
    return page(
        row.title,
        element("h1", row.title),
        element("p", sentence),
        element("p", element("a", "To the first page", href="/")),
        status=status,
    )
