"""The service behind the NGINX of `deploy/nginx`, as it is shipped: what passes, what does not, and what is said."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cbemail.ids import new_session_id
from cbemail.sessions.keys import KeyRing
from cbemail.sessions.tokens import Tokens
from tests.certificates import Certificates
from tests.fakes.recording_http import RecordingHttp
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration import merges
from tests.integration.conftest import SECRET_KEY, Mailbox, credentials, letter, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.front import Front, spoken
from tests.integration.gate import Gate
from tests.integration.servers import free_port, program
from tests.integration.service import ServiceProcess

_PATIENCE = 30  # seconds
_MEGABYTE = 1024 * 1024


@pytest.fixture
def front(base_url: str, certificates: Certificates) -> Iterator[Front]:
    """NGINX before the service."""
    with Front.running(certificates, base_url) as front:
        yield front


@pytest.fixture
async def upstream() -> AsyncIterator[RecordingHttp]:
    async with RecordingHttp() as upstream:
        yield upstream


@pytest.fixture
def before(upstream: RecordingHttp, certificates: Certificates) -> Iterator[Front]:
    """NGINX before a server that writes down what reaches it."""
    with Front.running(certificates, upstream.url) as front:
        yield front


@pytest.fixture
async def client(before: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with before.client() as client:
        yield client


class Curl:
    """`curl`, which speaks HTTP/2, with a session's token."""

    def __init__(self, front: Front, mailbox: Mailbox) -> None:
        self._front = front
        self._token = mailbox.client.headers["authorization"]

    async def start(self, path: str, *options: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            program("curl"),
            *("--silent", "--show-error", "--no-buffer", "--http2", "--max-time", str(_PATIENCE)),
            *("--cacert", str(self._front.certificates.ca_file)),
            *("--header", f"Authorization: {self._token}"),
            *options,
            self._front.url + path,
            stdout=asyncio.subprocess.PIPE,
        )

    async def run(self, path: str, *options: str) -> tuple[str, int, str]:
        """The version of HTTP that was spoken, the status and the body."""
        process = await self.start(path, "--write-out", r"\n%{http_version} %{http_code}", *options)
        said, _ = await process.communicate()
        body, _, told = said.decode().rpartition("\n")
        version, status = told.split()
        return version, int(status), body


async def _raw(front: Front, octets: bytes) -> bytes:
    """All that is answered, until NGINX hangs up."""
    async with spoken(front, octets) as reader:
        return await reader.read()


async def _get(front: Front, path: str) -> bytes:
    """The answer to a path that is not tidied up on its way."""
    return await _raw(
        front, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )


# ---- the service through it


async def test_a_folder_is_listed_over_http_2(
    front: Front, mailbox: Mailbox, dovecot: Dovecot
) -> None:
    version, status, body = await Curl(front, mailbox).run("/api/mailbox/messages?limit=5")

    assert (version, status) == ("2", 200)
    assert json.loads(body)["folder"] == "INBOX"


async def test_progress_arrives_as_it_happens_over_http_2(
    front: Front, base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    gate = Gate(smtp_server)
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with logged_in(base_url, account) as mailbox:
        batch = await merges.started(mailbox, merges.merge(3))

        watching = await Curl(front, mailbox).start(f"{merges.BATCHES}/{batch['id']}/events")
        seen = [await _sent(watching)]
        for _ in range(2):
            gate.let()
            while (sent := await _sent(watching)) == seen[-1]:
                pass
            seen.append(sent)
        gate.open()
        await watching.communicate()

    assert seen == [0, 1, 2], "an event was held back"


async def _sent(watching: asyncio.subprocess.Process) -> int:
    assert watching.stdout is not None
    async with asyncio.timeout(_PATIENCE):
        while not (line := await watching.stdout.readline()).startswith(b"data:"):
            assert line, "the stream ended"
    sent: int = json.loads(line.removeprefix(b"data:"))["counts"]["sent"]
    return sent


async def test_a_message_of_25_megabytes_is_stored(
    front: Front, mailbox: Mailbox, tmp_path: Path
) -> None:
    file = tmp_path / "large.eml"
    line = "x" * 62 + "\r\n"
    header = len(letter("large", ""))
    file.write_bytes(letter("large", line * ((25 * _MEGABYTE - header) // len(line))))

    _, status, body = await Curl(front, mailbox).run(
        "/api/mailbox/messages?folder=INBOX",
        *("--header", "Content-Type: message/rfc822", "--data-binary", f"@{file}"),
    )
    page = await mailbox.get("/api/mailbox/messages")

    assert status == 201, body
    assert page.json()["messages"][0]["size"] == file.stat().st_size


async def test_a_service_that_restarts_is_told_of_and_found_again(
    environ: dict[str, str], tmp_path: Path, certificates: Certificates
) -> None:
    with (
        ServiceProcess(tmp_path, environ) as service,
        Front.running(certificates, service.url) as front,
    ):
        async with front.client() as client:
            first = await client.get("/healthz")
            await asyncio.to_thread(service.stop)
            between = await client.get("/healthz")
            await asyncio.to_thread(service.start)
            again = await client.get("/healthz")

    assert (first.status_code, between.status_code, again.status_code) == (200, 503, 200)
    assert between.headers["content-type"] == "application/problem+json"
    assert between.headers["retry-after"] == "5"
    assert between.json()["code"] == "overloaded"


# ---- what is refused


@pytest.mark.parametrize(("path", "most"), [("/api/send", 39), ("/api/send/batch", 512)])
async def test_a_body_that_no_call_takes_is_refused_before_it_is_sent(
    before: Front, upstream: RecordingHttp, path: str, most: int
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "

    async with spoken(before, f"{head}{most * _MEGABYTE + 1}\r\n\r\n".encode()) as reader:
        answer = await reader.readuntil(b'"payload-too-large"')

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert upstream.requests == []


async def test_a_page_moves_to_tls_and_a_call_in_the_clear_is_refused(
    before: Front, upstream: RecordingHttp
) -> None:
    clear = f"http://127.0.0.1:{before.http_port}"
    async with httpx.AsyncClient(trust_env=False) as client:
        page = await client.get(clear + "/docs?x=1")
        call = await client.post(clear + "/api/sessions", json={})

    assert (page.status_code, page.headers["location"]) == (301, "https://localhost/docs?x=1")
    assert (call.status_code, call.json()["code"]) == (403, "tls-required")
    assert upstream.requests == []


async def test_another_name_is_shown_no_certificate(before: Front) -> None:
    with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
        async with spoken(before, b"", name="other.example.org"):
            pass


@pytest.mark.parametrize(
    "start",
    [
        "GET / HTTP/1.1\r\nHost: other.example.org\r\n",
        "GET https://other.example.org/ HTTP/1.1\r\nHost: localhost\r\n",
    ],
    ids=["Host", "absolute"],
)
async def test_a_host_that_is_not_the_one_of_tls_gets_no_further(
    before: Front, upstream: RecordingHttp, start: str
) -> None:
    answer = await _raw(before, f"{start}Connection: close\r\n\r\n".encode())

    assert answer.startswith(b"HTTP/1.1 421 ")
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/%6detrics?x", "/api/../metrics"])
async def test_figures_are_not_for_the_outside(
    before: Front, upstream: RecordingHttp, path: str
) -> None:
    answer = await _get(before, path)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert upstream.requests == []


# Each is followed by a request that must not be seen as one of its own (RFC 9112 section 11.2).
_HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
_AMBIGUOUS = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 44\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a folded line": b"X-Folded: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "line feeds only": b"Content-Length: 0\nTransfer-Encoding: chunked\n\n0\n\n",
    "a chunk that ends wrongly": b"Transfer-Encoding: chunked\r\n\r\n1\r\nZZZ0\r\n\r\n",
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nx\r\n\r\n",
    "a huge chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n",
    "a bare carriage return": b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("ambiguous", _AMBIGUOUS.values(), ids=_AMBIGUOUS)
async def test_an_ambiguous_body_hides_no_request(
    before: Front, upstream: RecordingHttp, ambiguous: bytes
) -> None:
    """Whatever NGINX makes of it, the service sees it end where NGINX does: what follows is the client's to answer for."""
    start = b"POST /api/send HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"

    answer = await _raw(before, start + ambiguous + _HIDDEN)

    assert answer.count(b"HTTP/1.1 ") == 1
    assert not [line for line in upstream.lines if "smuggled" in line]


# ---- what the service is told


async def test_what_a_client_says_of_itself_is_replaced_by_what_is_seen(
    client: httpx.AsyncClient, upstream: RecordingHttp
) -> None:
    lies = {
        "X-Forwarded-For": "192.0.2.1, 192.0.2.2",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "other.example.org",
        "X-Real-IP": "192.0.2.3",
        "Forwarded": "for=192.0.2.4",
        "Connection": "X-Forwarded-For, keep-alive",
    }

    await client.get("/api/sessions", headers=lies)

    [request] = upstream.requests
    told = {name: request.fields.get(name.lower()) for name in lies}
    assert told == {
        "X-Forwarded-For": ["127.0.0.1"],
        "X-Forwarded-Proto": ["https"],
        "X-Forwarded-Host": None,
        "X-Real-IP": None,
        "Forwarded": None,
        "Connection": None,
    }


async def test_a_call_bears_one_id_in_both_logs_and_its_path_in_neither(
    upstream: RecordingHttp, certificates: Certificates
) -> None:
    with Front.running(certificates, upstream.url) as front:
        async with front.client() as client:
            for id_of_client in ("mine-1", "not sane!"):
                headers = {"X-Request-ID": id_of_client}
                await client.get("/api/discover?email=joe@example.org", headers=headers)

    calls = front.calls()
    ids = [request.fields["x-request-id"] for request in upstream.requests]
    assert ids == [[call["request_id"]] for call in calls]
    assert ids[0] == ["mine-1"]
    assert ids[1][0].startswith("req_")
    assert "discover" not in json.dumps(calls)


async def test_an_answer_tells_browsers_to_stay_with_tls_and_nobody_the_version(
    client: httpx.AsyncClient,
) -> None:
    answers = [await client.get("/healthz"), await client.get("/metrics")]

    assert [answer.headers["server"] for answer in answers] == ["nginx", "nginx"]
    assert {answer.headers["strict-transport-security"] for answer in answers} == {
        "max-age=63072000"
    }


@pytest.mark.parametrize(
    ("path", "passed"),
    [
        ("/api/mailbox/folders/a%2Fb%20c", "/api/mailbox/folders/a%2Fb%20c"),
        ("/api/mailbox/folders/x/../../../../gate", "/gate"),
        ("/%67ate?next=/docs", "/gate?next=/docs"),
        ("//healthz", "/healthz"),
        ("/docs/../assets/pages.css", "/assets/pages.css"),
    ],
)
async def test_a_path_reaches_the_service_as_it_was_written_unless_it_is_open_to_all(
    before: Front, upstream: RecordingHttp, path: str, passed: str
) -> None:
    await _get(before, path)

    assert upstream.lines == [f"GET {passed} HTTP/1.1"]


# ---- replicas


async def test_a_session_stays_with_one_replica_whatever_token_it_shows(
    upstream: RecordingHttp, certificates: Certificates
) -> None:
    tokens = Tokens(KeyRing([SECRET_KEY]), expire_minutes=30, refresh_days=30)
    sessions = [new_session_id() for _ in range(21)]  # odd, so that taking turns would show
    async with RecordingHttp() as other:
        with Front.running(certificates, upstream.url, other.url) as front:
            async with front.client() as client:
                for session in sessions * 2:
                    bearer = {"Authorization": f"Bearer {tokens.issue(session).token}"}
                    await client.get(f"/api/sessions/{session}", headers=bearer)

    assert not set(upstream.lines) & set(other.lines)
    assert min(len(upstream.lines), len(other.lines)) >= 4, "one of them has nearly all"


@pytest.mark.parametrize(("method", "tries"), [("GET", 2), ("POST", 1), ("PATCH", 1)])
async def test_only_what_may_be_repeated_is_tried_at_another_replica(
    upstream: RecordingHttp, certificates: Certificates, method: str, tries: int
) -> None:
    async with RecordingHttp() as other:
        with Front.running(certificates, upstream.url, other.url) as front:
            async with front.client() as client:
                answer = await client.request(method, "/api/cut")

    assert upstream.lines + other.lines == [f"{method} /api/cut HTTP/1.1"] * tries
    assert answer.status_code == 503


async def test_a_replica_that_is_down_is_passed_over_even_by_a_post(
    upstream: RecordingHttp, certificates: Certificates
) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    with Front.running(certificates, upstream.url, down) as front:
        async with front.client() as client:
            statuses = {
                (await client.post("/api/send", headers={"X-Session-ID": f"ses_{n}"})).status_code
                for n in range(8)
            }

    assert statuses == {200}
    assert len(upstream.lines) == 8
