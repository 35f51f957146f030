"""Who may do what: every operation, asked by somebody who may not. Made from the table, so that none is left out."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from cbemail.api.operation import Access, Operation
from cbemail.api.routes import OPERATIONS
from cbemail.sessions.keys import KeyRing
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import (
    API_KEY,
    SECRET_KEY,
    Mailbox,
    credentials,
    logged_in,
    serving,
)
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.integration.scripted import scripted_credentials

GUARDED = [operation for operation in OPERATIONS if operation.access is not Access.OPEN]
OF_A_SESSION = [operation for operation in OPERATIONS if "/api/sessions/{id}" in operation.path]
OF_A_MAILBOX = [operation for operation in OPERATIONS if operation.access is Access.MAILBOX]
OF_THE_SENT = [
    operation for operation in OF_A_MAILBOX if "{id}" in operation.path.partition("/send/")[2]
]
OF_SERVICES = [each for each in OPERATIONS if each.access in {Access.SERVICE, Access.OPERATOR}]
GATED = [operation for operation in OPERATIONS if operation.gated]
Answers = dict[str, httpx.Response]
NOBODY = "ses_0000000000000000"
BATCH = {"template": {"body": "For you."}, "recipients": [{"to": "ann@example.org"}]}


async def ask_each(
    client: httpx.AsyncClient,
    operations: Sequence[Operation],
    session_id: str,
    headers: dict[str, str] | None = None,
) -> dict[str, httpx.Response]:
    """Call each operation for a session. Bodies are empty: who may not ask is told so before that matters."""
    answers = {}
    for operation in operations:
        path = operation.path.replace("{path:path}", "INBOX").replace("{uid}", "1")
        path = path.replace("/sessions/{id}", f"/sessions/{session_id}").replace("{id}", "1")
        answers[operation.name] = await client.request(operation.method, path, headers=headers)
    return answers


def outcomes(answers: Answers) -> dict[str, tuple[int, str]]:
    return {name: (each.status_code, each.json()["code"]) for name, each in answers.items()}


def bodies(answers: Answers) -> dict[str, dict[str, Any]]:
    return {name: without_id(response) for name, response in answers.items()}


def without_id(response: httpx.Response) -> dict[str, Any]:
    return {key: value for key, value in response.json().items() if key != "request_id"}


@pytest.fixture
async def other(base_url: str, dovecot: Dovecot, postfix: Postfix) -> AsyncIterator[Mailbox]:
    """A second session, of another user."""
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


# ---- nobody, and those who only say so


async def test_without_a_credential_nothing_is_told(client: httpx.AsyncClient) -> None:
    answers = await ask_each(client, GUARDED, NOBODY)

    assert outcomes(answers) == dict.fromkeys(answers, (401, "unauthenticated"))
    for response in answers.values():
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_wrong_key_opens_nothing(client: httpx.AsyncClient) -> None:
    answers = await ask_each(client, GUARDED, NOBODY, {"X-API-Key": API_KEY + "x"})

    assert outcomes(answers) == dict.fromkeys(answers, (401, "unauthenticated"))


async def test_what_is_for_services_takes_no_token(mailbox: Mailbox) -> None:
    answers = await ask_each(mailbox.client, OF_SERVICES, mailbox.session_id)

    assert outcomes(answers) == dict.fromkeys(answers, (401, "unauthenticated"))


async def test_what_is_behind_the_gate_needs_its_pin(environ: dict[str, str]) -> None:
    async with (
        serving(environ | {"GATE_PIN": "135790"}) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        answers = await ask_each(client, GATED, NOBODY, {"Authorization": "Bearer x"})

    assert outcomes(answers) == dict.fromkeys(answers, (403, "pin-required"))


# ---- another's session


async def test_another_session_is_not_there(mailbox: Mailbox, other: Mailbox) -> None:
    others = await ask_each(mailbox.client, OF_A_SESSION, other.session_id)
    nobodys = await ask_each(mailbox.client, OF_A_SESSION, NOBODY)

    assert outcomes(others) == dict.fromkeys(others, (404, "session-not-found"))
    assert bodies(others) == bodies(nobodys)
    assert (await other.get(f"/api/sessions/{other.session_id}")).status_code == 200


async def test_a_token_cannot_name_another_session(mailbox: Mailbox, other: Mailbox) -> None:
    header = {"X-Session-ID": other.session_id}

    others = await ask_each(mailbox.client, OF_A_MAILBOX, NOBODY, header)
    nobodys = await ask_each(mailbox.client, OF_A_MAILBOX, NOBODY, {"X-Session-ID": NOBODY})

    assert outcomes(others) == dict.fromkeys(others, (404, "session-not-found"))
    assert bodies(others) == bodies(nobodys)


async def test_a_key_must_name_a_session_that_is_there(client: httpx.AsyncClient) -> None:
    key = {"X-API-Key": API_KEY}

    unnamed = await ask_each(client, OF_A_MAILBOX, NOBODY, key)
    nobodys = await ask_each(client, OF_A_MAILBOX, NOBODY, key | {"X-Session-ID": NOBODY})

    assert outcomes(unnamed) == dict.fromkeys(unnamed, (400, "session-required"))
    assert outcomes(nobodys) == dict.fromkeys(nobodys, (404, "session-not-found"))


async def test_what_another_session_sent_is_not_there(mailbox: Mailbox, other: Mailbox) -> None:
    """All of it waits to be sent, so that its own session could stop it."""
    later = {"send_at": (datetime.now(UTC) + timedelta(days=7)).isoformat()}
    sent = await other.post("/api/send", {"to": "ann@example.org", "body": "For Ann."} | later)
    batch = await other.post("/api/send/batch", BATCH | later)
    theirs = {"/api/send/{id}": sent.json()["id"], "/api/send/batch/{id}": batch.json()["id"]}

    for operation in OF_THE_SENT:
        start = operation.path.partition("}")[0] + "}"
        others, nobodys = [
            await mailbox.client.request(operation.method, operation.path.replace("{id}", each))
            for each in (theirs[start], theirs[start][:4] + "0000")
        ]

        assert others.status_code == nobodys.status_code == 404, operation.name
        assert without_id(others) == without_id(nobodys)
    for path, each in theirs.items():
        state = (await other.get(path.replace("{id}", each))).json()["state"]
        assert state in {"queued", "scheduled"}


async def test_what_another_session_has_is_in_no_list(mailbox: Mailbox, other: Mailbox) -> None:
    await other.post("/api/send/batch", BATCH)

    assert (await mailbox.get("/api/send/batch")).json()["batches"] == []
    assert len((await other.get("/api/send/batch")).json()["batches"]) == 1


async def test_the_same_idempotency_key_of_another_session_is_another(
    mailbox: Mailbox, other: Mailbox
) -> None:
    letter = {"to": "ann@example.org", "body": "For Ann."}
    key = {"Idempotency-Key": "letter-7"}

    others = await other.client.post("/api/send", json=letter, headers=key)
    own = await mailbox.client.post("/api/send", json=letter, headers=key)

    assert others.status_code == own.status_code == 200
    assert "idempotency-replayed" not in own.headers
    assert own.json()["id"] != others.json()["id"]


async def test_a_refresh_token_is_good_for_its_own_session_only(
    mailbox: Mailbox, other: Mailbox, client: httpx.AsyncClient
) -> None:
    response = await client.post(
        f"/api/sessions/{mailbox.session_id}/token", json={"refresh_token": other.refresh_token}
    )

    assert response.status_code == 401
    assert (await mailbox.get(f"/api/sessions/{mailbox.session_id}")).status_code == 200


# ---- a session that has ended


async def test_a_session_that_ended_is_gone_at_once_for_whoever_asks(
    mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    await mailbox.delete(f"/api/sessions/{mailbox.session_id}")
    key = {"X-API-Key": API_KEY, "X-Session-ID": mailbox.session_id}

    by_token = await ask_each(mailbox.client, GUARDED, mailbox.session_id)
    by_key = await ask_each(client, [*OF_A_SESSION, *OF_A_MAILBOX], mailbox.session_id, key)

    assert outcomes(by_token) == dict.fromkeys(by_token, (401, "unauthenticated"))
    assert outcomes(by_key) == dict.fromkeys(by_key, (404, "session-not-found"))


# ---- forged tokens

Forge = Callable[[dict[str, Any], dict[str, Any]], str]
KEY = KeyRing([SECRET_KEY]).keys("access-token")[0]


def encoded(content: object) -> str:
    octets = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def decoded(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return content


def put_together(header: object, claims: object, key: bytes = KEY, digest: str = "sha256") -> str:
    signed = f"{encoded(header)}.{encoded(claims)}"
    return f"{signed}.{encoded(hmac.digest(key, signed.encode(), digest))}"


def without_signature(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return put_together(header | {"alg": "none"}, claims).rpartition(".")[0] + "."


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


FORGERIES: dict[str, Forge] = {
    "no algorithm": without_signature,
    "another algorithm": lambda h, c: put_together(h | {"alg": "HS384"}, c, digest="sha384"),
    "the secret itself as key": lambda h, c: put_together(h, c, SECRET_KEY.encode()),
    "an empty key": lambda h, c: put_together(h, c, b""),
    "a key file": lambda h, c: put_together(h | {"kid": "../../dev/null"}, c, b""),
    "a key of its own": lambda h, c: put_together(h | {"jwk": {"kty": "oct"}}, c),
    "a critical extension": lambda h, c: put_together(h | {"crit": ["b64"], "b64": False}, c),
    "another type": lambda h, c: put_together(h | {"typ": "JWT"}, c),
    "no end": lambda h, c: put_together(h, without(c, "exp")),
    "an end that is text": lambda h, c: put_together(h, c | {"exp": str(c["exp"])}),
    "no session": lambda h, c: put_together(h, without(c, "session_id")),
    "nobody's session": lambda h, c: put_together(h, c | {"session_id": NOBODY}),
    "another audience": lambda h, c: put_together(h, c | {"aud": "another"}),
    "another issuer": lambda h, c: put_together(h, c | {"iss": "another"}),
    "issued in the future": lambda h, c: put_together(h, c | {"iat": int(time.time()) + 3600}),
    "no claims": lambda h, c: put_together(h, []),
    "no JSON": lambda h, c: put_together(h, b"\xff"),
    "five parts": lambda h, c: put_together(h, c) + ".x.y",
    "long": lambda h, c: put_together(h, c | {"x": "y" * 8000}),
}


async def test_a_forged_token_opens_nothing(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    good = mailbox.client.headers["Authorization"].removeprefix("Bearer ")
    header, claims, _ = good.split(".")
    answers = {}

    for name, forge in FORGERIES.items():
        token = forge(decoded(header), decoded(claims))
        answers[name] = await client.get(
            f"/api/sessions/{mailbox.session_id}", headers={"Authorization": f"Bearer {token}"}
        )

    assert outcomes(answers) == dict.fromkeys(answers, (401, "unauthenticated"))
    for response in answers.values():
        assert response.json()["detail"].startswith("The token is not valid")


async def test_the_forger_could_make_a_good_one_with_the_key(
    mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    """Or the test above would pass whatever the service did."""
    good = mailbox.client.headers["Authorization"].removeprefix("Bearer ")
    header, claims, _ = good.split(".")
    spelt = f"{header}.{claims}"
    token = f"{spelt}.{encoded(hmac.digest(KEY, spelt.encode(), 'sha256'))}"

    response = await client.get(
        f"/api/sessions/{mailbox.session_id}", headers={"Authorization": f"Bearer {token}"}
    )

    assert response.status_code == 200


async def test_a_token_that_has_expired_says_so(
    mailbox: Mailbox, client: httpx.AsyncClient
) -> None:
    good = mailbox.client.headers["Authorization"].removeprefix("Bearer ")
    header, claims, _ = good.split(".")
    spelt = f"{header}.{encoded(decoded(claims) | {'iat': 1, 'exp': 2})}"
    token = f"{spelt}.{encoded(hmac.digest(KEY, spelt.encode(), 'sha256'))}"

    response = await client.get(
        f"/api/sessions/{mailbox.session_id}", headers={"Authorization": f"Bearer {token}"}
    )

    assert response.status_code == 401
    assert response.json()["code"] == "token-expired"
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


# ---- credentials, oddly given

UNCLEAR: list[list[tuple[str, str]]] = [
    [("X-API-Key", "")],
    [("X-API-Key", API_KEY), ("X-API-Key", API_KEY)],
    [("X-API-Key", API_KEY), ("Authorization", "Bearer x")],
    [("X-API-Key", f"{API_KEY},{API_KEY}")],
    [("X-API-Key", API_KEY[:-1])],
    [("X-API-Key", API_KEY.upper())],
    [("X-API-Key", "x" * 30_000)],
    [("X-API-Key", "\xe9")],
    [("Authorization", "")],
    [("Authorization", "Bearer")],
    [("Authorization", f"Bearer {API_KEY}")],
    [("Authorization", f"Basic {API_KEY}")],
    [("Cookie", f"token={API_KEY}")],
]


async def test_a_credential_that_is_not_clear_is_none(client: httpx.AsyncClient) -> None:
    answers = {}

    for headers in UNCLEAR:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        answers[repr(headers)[:60]] = await client.get("/api/sessions", headers=raw)

    assert outcomes(answers) == dict.fromkeys(answers, (401, "unauthenticated"))


async def test_a_credential_in_the_url_is_none(mailbox: Mailbox, client: httpx.AsyncClient) -> None:
    token = mailbox.client.headers["Authorization"].removeprefix("Bearer ")

    response = await client.get(
        f"/api/sessions/{mailbox.session_id}", params={"access_token": token}
    )

    assert response.status_code == 401


async def test_a_wrong_password_and_an_unknown_user_look_the_same(
    client: httpx.AsyncClient, imap_server: ScriptedImap, smtp_server: ScriptedSmtp
) -> None:
    for command in ("LOGIN", "AUTHENTICATE"):
        imap_server.on(
            command,
            b"{tag} NO [AUTHENTICATIONFAILED] wrong password for joe\r\n",
            b"{tag} NO no such user\r\n",
        )
    body = scripted_credentials(imap_server, smtp_server)

    wrong = await client.post("/api/sessions", json=body)
    unknown = await client.post("/api/sessions", json=body)

    assert (wrong.status_code, wrong.json()["code"]) == (401, "credentials-rejected")
    assert without_id(wrong) == without_id(unknown)
    assert imap_server.count("LOGIN") + imap_server.count("AUTHENTICATE") == 2
