"""Whatever is asked, the answer keeps the contract: schemathesis asks what the document allows, and what it does not.

The service runs before Dovecot and a scripted submission server. Most requests name what is there, so that they get
past the first check; what one of them removes is made again for the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.config import (
    GenerationConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
)

from cbemail.api.examples import EXAMPLES
from cbemail.api.operation import Operation
from cbemail.api.routes import OPERATIONS
from tests.certificates import Certificates
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import API_KEY, credentials, environment
from tests.integration.dovecot import Dovecot
from tests.integration.service import ServiceProcess

AnyOperation = Operation[Any, Any]
Described = APIOperation[Any, Any, Any, Any]

FUZZING = settings.get_current_profile_name() == "fuzz"  # `make fuzz`
CASES = 10_000 if FUZZING else 2_000
MANIFOLD = 40  # operations that take something, so that they can be asked in more than one way

KEPT = [
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
NAMES_SERVERS = {"create_session"}  # of any caller's choice, and so they may be down
HOSTS = ["127.0.0.1", "127.1", "localhost", "::1", "10.0.0.1", "x\r\n", ""]
ODD_HEADERS = [
    {"Range": "bytes=0-,0-,0-"},
    {"Prefer": "respond-async, wait=-1"},
    {"Prefer": 'wait="0", wait=60'},
    {"Last-Event-ID": "7-done"},
    {"If-None-Match": '*, "", W/"x'},
    {"Idempotency-Key": "k"},
    {"Accept": "text/csv;q=x"},
    {"Expect": "nothing"},
    {"X-Request-ID": "a b\tc"},
]
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
ODD_BODIES = [
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"\xff\xfe", "application/json"),
    (b"[" * 100_000, "application/json"),
    (b'{"to": "\\ud800"}', "application/json"),
    (b"{}", "text/plain"),
    (b"{}", ";"),
    (b"Subject: x\r\n\r\n\0\xff", "message/rfc822"),
    (b"--b", FORM),
    (PART % (b"batch", b"{") + b"--b--\r\n", FORM),
    (PART % (b"recipients", b'to,x\r\n"') + b"--b--\r\n", FORM),
    (PART % (b"batch", b"{}") + PART % (b"recipients", b"\xff\0") + b"--b--\r\n", FORM),
    (PART % (b"batch", b'{"messages": []}') * 2, FORM),
]
WITH_BODY = [operation for operation in OPERATIONS if operation.body is not None]
ODD_UIDS = [
    "0",
    "-1",
    "1.0",
    "x",
    "4294967295",
    "4294967296",
    "9" * 5000,
    "\N{ARABIC-INDIC DIGIT SEVEN}",
]
QUERIES = {"discover": {"email": "joe@gmail.com"}}
WITH_PART = (
    b"Subject: with a part\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nHello.\r\n"
    b"--b\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=a.csv\r\n\r\n1,2\r\n"
    b"--b--\r\n"
)


class Service:
    """A running service, and a session of it. What a path may name is made when it is asked for."""

    def __init__(self, url: str, dovecot: Dovecot, smtp_port: int) -> None:
        self.url = url
        self._dovecot = dovecot
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._user = dovecot.fresh_user()
        self._login = credentials(self._user, dovecot, smtp_port)
        self._numbers = count(1)
        self._session: dict[str, Any] = {}
        self.examples = EXAMPLES | {
            "create_session": self._login,
            "replace_credentials": {"password": dovecot.password},
        }
        [self._asset] = re.findall(r"/assets/(docs[^\"]+)", self._client.get("/docs").text)
        project = ProjectConfig(generation=GenerationConfig(with_security_parameters=False))
        self.schema = schemathesis.openapi.from_dict(
            self._client.get("/openapi.json").json(),
            config=SchemathesisConfig(projects=ProjectsConfig(default=project)),
        )

    def close(self) -> None:
        self._client.close()

    def credentials(self) -> list[dict[str, str]]:
        """The ways to say who asks: a session's token, a service's key; the last is not to."""
        self._need_session()
        session = {"X-Session-ID": self._session["session_id"]}
        token = {"Authorization": f"Bearer {self._session['token']}"}
        key = {"X-API-Key": API_KEY}
        return [token | session, key | session, token, key, {}]

    def described(self, operation: AnyOperation) -> Described:
        return self.schema[operation.path.replace(":path", "")][operation.method]

    def send(self, operation: AnyOperation, octets: bytes, media_type: str) -> httpx.Response:
        """Ask for what is there, with any octets for a body."""
        [headers, *_] = self.credentials()
        path = operation.path.replace(":path", "").format(**self.known(operation.path))
        return self._client.request(
            operation.method, path, content=octets, headers=headers | {"Content-Type": media_type}
        )

    def known(self, path: str) -> dict[str, Any]:
        """Values for the parameters of ``path`` that lead to something."""
        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "{uid}/attachments/{id}": lambda: {"uid": self._message(), "id": "2"},
            "{uid}": lambda: {"uid": self._message()},
            "{path:path}": lambda: {"path": self._folder()},
            "/sessions/{id}": lambda: {"id": self._session["session_id"]},
            "/batch/{id}/events": lambda: {"id": self._batch()},  # or they would go on for a year
            "/batch/{id}": lambda: {"id": self._batch(send_at=self._in_a_week())},
            "/send/{id}": lambda: {"id": self._sending()},
            "{code}": lambda: {"code": "not-found"},
            "{name}": lambda: {"name": self._asset},
        }
        return next((make() for part, make in makers.items() if part in path), {})

    def _need_session(self) -> None:
        if self._session:
            path = f"/api/sessions/{self._session['session_id']}"
            if self._client.get(path, headers={"X-API-Key": API_KEY}).is_success:
                return
        response = self._client.post("/api/sessions", json=self._login)
        assert response.is_success, response.text
        self._session = response.json()

    def _create(self, path: str, body: object) -> dict[str, Any]:
        response = self._client.post(path, json=body, headers=self.credentials()[0])
        assert response.is_success, response.text
        created: dict[str, Any] = response.json()
        return created

    def _message(self) -> int:
        [uid] = self._dovecot.append(self._user, WITH_PART)
        return uid

    def _folder(self) -> str:
        name = f"folder {next(self._numbers)}"
        self._create("/api/mailbox/folders", {"name": name})
        return name

    def _batch(self, **fields: object) -> str:
        batch_id: str = self._create("/api/send/batch", EXAMPLES["send_batch"] | fields)["id"]
        return batch_id

    def _sending(self) -> str:
        later = {"send_at": self._in_a_week()}
        send_id: str = self._create("/api/send", EXAMPLES["send_message"] | later)["id"]
        return send_id

    @staticmethod
    def _in_a_week() -> str:
        return (datetime.now(UTC) + timedelta(days=7)).isoformat()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, dovecot: Dovecot
) -> Iterator[Service]:
    """In a process of its own: Hypothesis wants all the randomness of this one."""
    directory = tmp_path_factory.mktemp("service")
    smtp = ScriptedSmtp(tls=certificates.server_context(), implicit_tls=True)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(smtp),
        ServiceProcess(directory, environment(directory, dovecot.ca_file)) as process,
    ):
        service = Service(process.url, dovecot, smtp.port)
        yield service
        service.close()


# ---- what is asked


def cases(described: Described) -> st.SearchStrategy[Case]:
    """What the document allows, and, where there is anything to get wrong, what it does not."""
    good = described.as_strategy(generation_mode=GenerationMode.POSITIVE)
    bad = described.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return good | bad if takes_something(described) else good


def takes_something(described: Described) -> bool:
    return any(described.iter_parameters()) or bool(described.body)


def deepen(case: Case, service: Service, operation: AnyOperation, data: st.DataObject) -> None:
    """Have the case get past the first check: let it name what is there, and be no odder than in a field or two."""
    if known := service.known(operation.path) if data.draw(st.integers(0, 3)) else {}:
        case.path_parameters = known
    elif "uid" in case.path_parameters:
        case.path_parameters["uid"] = data.draw(st.sampled_from(ODD_UIDS))
    if data.draw(st.booleans()):
        case.query = QUERIES.get(operation.name, {}) | data.draw(some_of(case.query))
    if data.draw(st.integers(0, 3)) == 0:
        case.headers.update(data.draw(st.sampled_from(ODD_HEADERS)))
    if not isinstance(case.body, dict) or case.media_type != "application/json":
        return
    if data.draw(st.booleans()):
        case.body = service.examples[operation.name] | data.draw(some_of(case.body))
    if operation.name == "create_session":
        case.body = {name: with_host(value, data) for name, value in case.body.items()}


def some_of(fields: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sets(st.sampled_from(sorted(fields)), max_size=2) if fields else st.just(set[str]())
    return names.map(lambda chosen: {name: fields[name] for name in sorted(chosen)})


def with_host(server: Any, data: st.DataObject) -> Any:  # any JSON value
    """A mail server whose name is looked up nowhere but here."""
    if not isinstance(server, dict) or not isinstance(server.get("host"), str):
        return server
    return server | {"host": data.draw(st.sampled_from([server["host"], *HOSTS]))}


# ---- what is answered


def check_status(
    operation: AnyOperation, described: Described, response: Response | httpx.Response
) -> None:
    """The status is one that the document names, and none that says the service failed."""
    if response.status_code >= 500:
        assert operation.name in NAMES_SERVERS, response.text
        assert response.json()["code"].startswith("upstream-"), response.text
    assert str(response.status_code) in described.responses.status_codes, response.text


def is_of_no_operation(response: Response) -> bool:
    """A drawn path can be another's, or nobody's: a folder named ``..``, an id with a slash."""
    return response.status_code == 405 or (
        response.status_code == 404 and response.json()["code"] == "not-found"
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_answer_is_one_that_the_document_announces(
    service: Service, operation: AnyOperation
) -> None:
    described = service.described(operation)

    @given(case=cases(described), data=st.data())
    @settings(
        max_examples=CASES // MANIFOLD if takes_something(described) else 1,
        derandomize=not FUZZING,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    def ask(case: Case, data: st.DataObject) -> None:
        headers = data.draw(st.sampled_from(service.credentials()))
        deepen(case, service, operation, data)
        response = case.call(base_url=service.url, headers=headers, allow_redirects=False)

        if not is_of_no_operation(response):
            check_status(operation, described, response)
            case.validate_response(response, checks=KEPT)

    ask()


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda operation: operation.name)
def test_a_body_of_whatever_octets_is_taken_or_refused(
    service: Service, operation: AnyOperation
) -> None:
    described = service.described(operation)

    for octets, media_type in ODD_BODIES:
        response = service.send(operation, octets, media_type)

        check_status(operation, described, response)
        described.validate_response(response)
