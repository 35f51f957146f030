"""The error tree and the table of problems: nothing that can go wrong lacks a name, a status or an explanation."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cbemail import errors
from cbemail.api.problems import INTERNAL_CODE, PROBLEMS, ProblemDocument, problem_response
from cbemail.errors import CbemailError, FieldError, Refusal

PRODUCT = sorted((Path(errors.__file__).parent).rglob("*.py"))
TREE = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, CbemailError)
]
CODED = [kind for kind in TREE if "code" in vars(kind)]


def made(kind: type[CbemailError]) -> CbemailError:
    """An error of this class, of which some take more than a sentence."""
    if issubclass(kind, errors.MethodNotAllowed):
        return kind("A sentence.", allowed="GET, HEAD")
    if issubclass(kind, errors.RecipientsRejected):
        return kind("A sentence.", [Refusal("joe@example.org", 550, "5.1.1", "Gone.")])
    return kind("A sentence.")


def named(kind: type[CbemailError]) -> str:
    return kind.__name__


# ---- the tree and the table


def test_every_leaf_of_the_tree_has_a_code() -> None:
    leaves = [kind for kind in TREE if not kind.__subclasses__()]

    assert [kind for kind in leaves if not hasattr(kind, "code")] == []


def test_no_two_errors_have_the_same_code() -> None:
    codes = [kind.code for kind in CODED] + [INTERNAL_CODE]

    assert len(codes) == len(set(codes))
    assert [code for code in codes if not re.fullmatch(r"[a-z]+(-[a-z]+)*", code)] == []


def test_every_error_has_a_row_of_its_own() -> None:
    assert PROBLEMS.keys() == set(CODED)


def test_a_more_special_error_elsewhere_is_shown_as_the_one_it_is_a_kind_of() -> None:
    class Special(errors.UpstreamUnavailable):
        pass

    response = problem_response(Special("A sentence."), "req_1")

    assert response.status_code == 503


@pytest.mark.parametrize("kind", CODED, ids=named)
def test_an_error_is_shown_in_the_one_shape_there_is(kind: type[CbemailError]) -> None:
    response = problem_response(made(kind), "req_1")

    document = msgspec.json.decode(response.body, type=ProblemDocument, strict=True)
    assert response.media_type == "application/problem+json"
    assert response.status_code == document.status == PROBLEMS[kind].status
    assert document.type == f"/problems/{kind.code}"
    assert (document.code, document.detail) == (kind.code, "A sentence.")
    assert (document.title, document.request_id) == (PROBLEMS[kind].title, "req_1")


@pytest.mark.parametrize("kind", CODED, ids=named)
def test_an_error_carries_the_headers_its_status_asks_for(kind: type[CbemailError]) -> None:
    response = problem_response(made(kind), "req_1")

    status = response.status_code
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert ("allow" in response.headers) == (status == 405)
    if status in {429, 503}:
        assert int(response.headers["retry-after"]) > 0


def test_the_time_to_wait_is_the_errors_own() -> None:
    error = errors.Overloaded("A sentence.", retry_after=17)

    assert problem_response(error, "req_1").headers["retry-after"] == "17"


def test_wrong_values_and_refused_recipients_are_listed() -> None:
    wrong = errors.InvalidRequest("Two are wrong.", [FieldError("#/to/0", "This one.")])

    shown = msgspec.json.decode(problem_response(wrong, "req_1").body)
    refused = msgspec.json.decode(problem_response(made(errors.RecipientsRejected), "req_1").body)

    assert shown["errors"] == [{"pointer": "#/to/0", "detail": "This one."}]
    assert refused["rejected"] == [
        {"address": "joe@example.org", "status": 550, "enhanced": "5.1.1", "detail": "Gone."}
    ]


def test_of_a_defect_of_ours_nothing_is_told() -> None:
    response = problem_response(None, "req_1")

    assert response.status_code == 500
    assert msgspec.json.decode(response.body)["detail"] == (
        "Something went wrong here. It has been logged."
    )


# ---- sentences


def details(path: Path) -> Iterator[tuple[int, str]]:
    """What the module passes as an error's detail, with … for what is filled in; and the line."""
    names = {kind.__name__ for kind in TREE}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[detail, *_]) if name in names:
                pass
            case ast.Call(func=ast.Attribute(attr="at"), args=[_, detail]):
                pass
            case _:
                continue
        match detail:
            case ast.Constant(value=str(text)):
                yield node.lineno, text
            case ast.JoinedStr(values=parts):
                texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
                yield node.lineno, "".join(map(str, texts))


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(PRODUCT[0].parent)))
def test_every_detail_is_a_sentence(path: Path) -> None:
    sentence = re.compile(r"[A-Z…].*[.…]", re.DOTALL)

    assert [found for found in details(path) if not sentence.fullmatch(found[1])] == []


@pytest.mark.parametrize("kind", CODED, ids=named)
def test_what_an_error_means_is_said_in_sentences(kind: type[CbemailError]) -> None:
    title, meaning = PROBLEMS[kind].title, PROBLEMS[kind].meaning

    assert re.fullmatch(r"[A-Z][^.]+", title)
    assert re.fullmatch(r"[A-Z].+\.", meaning)
