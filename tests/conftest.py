"""Fixtures for every test: a clean environment, servers to talk to, and nothing left behind.

Scripted servers are new for each test; real ones are started once, when the first test asks for them.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest

from tests import leaks
from tests.certificates import Certificates
from tests.fakes.scripted_imap import ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.cyrus import Cyrus
from tests.integration.dovecot import WEAK_CAPABILITIES, Dovecot
from tests.integration.postfix import Postfix

# `make fuzz` picks "fuzz". Examples have no deadline: a machine under load is not a defect.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile("default")

_TESTS = Path(__file__).parent

# What Python, pytest and the servers' programs go by. Whatever else is set could change what a test sees.
_KEPT = {"PATH", "HOME", "USER", "TMPDIR", "TZ", "LANG", "CI", "CBEMAIL_REQUIRE_SERVERS"}
_KEPT_PREFIXES = ("LC_", "PYTHON", "PYTEST_", "COVERAGE_", "HYPOTHESIS_")


@pytest.hookimpl(tryfirst=True)  # before -m deselects by these very markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in ("integration", "bench"):
            if _TESTS / marker in item.path.parents:
                item.add_marker(marker)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No variable that configures the service reaches a test from outside."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name not in _KEPT and not name.startswith(_KEPT_PREFIXES):
                patch.delenv(name)
        yield


# ---- nothing left behind


@pytest.fixture(scope="session")
def umask() -> int:
    """The umask the tests were started with."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@pytest.fixture(autouse=True)
def same_umask(umask: int) -> Iterator[None]:
    """The service makes the umask of its process private; a mail server started later could not read its own files."""
    yield
    os.umask(umask)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> None:
    """An async test fails if a task still runs, or a socket is still open, when all its fixtures are done."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_quiet_loop")  # the first async fixture, so the last to end


@pytest.fixture
async def _quiet_loop() -> AsyncIterator[None]:
    async with leaks.nothing_left_behind():
        yield


# ---- scripted servers


@pytest.fixture
async def imap_server(certificates: Certificates) -> AsyncIterator[ScriptedImap]:
    """A scripted IMAP server that offers STARTTLS."""
    async with ScriptedImap(tls=certificates.server_context()) as server:
        yield server


@pytest.fixture
async def smtp_server(certificates: Certificates) -> AsyncIterator[ScriptedSmtp]:
    """A scripted SMTP server that offers STARTTLS."""
    async with ScriptedSmtp(tls=certificates.server_context()) as server:
        yield server


# ---- real servers


@contextmanager
def _open_directory() -> Iterator[Path]:
    """A short-named temporary directory that other users may enter, as servers started by root need it."""
    directory = Path(tempfile.mkdtemp(prefix="cbemail-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, and one certificate for `localhost` and `127.0.0.1` that every test server uses."""
    return Certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def dovecot(certificates: Certificates) -> Iterator[Dovecot]:
    """Dovecot with all it can do: the reference IMAP server."""
    with _open_directory() as directory, Dovecot.running(directory, certificates) as server:
        yield server


@pytest.fixture(scope="session")
def weak_dovecot(certificates: Certificates) -> Iterator[Dovecot]:
    """Dovecot that offers IMAP4rev1 and nothing else, for the fallbacks."""
    with (
        _open_directory() as directory,
        Dovecot.running(directory, certificates, imap_capability=WEAK_CAPABILITIES) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def condstore_dovecot(certificates: Certificates) -> Iterator[Dovecot]:
    """Dovecot that tells whose flags have changed, but not what was removed."""
    offered = f"{WEAK_CAPABILITIES} CONDSTORE ESEARCH"
    with (
        _open_directory() as directory,
        Dovecot.running(directory, certificates, imap_capability=offered) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def cyrus(certificates: Certificates) -> Iterator[Cyrus]:
    """Cyrus, which does much of what Dovecot does, in its own way."""
    with _open_directory() as directory, Cyrus.running(directory, certificates) as server:
        yield server


@pytest.fixture(scope="session")
def postfix(certificates: Certificates, dovecot: Dovecot) -> Iterator[Postfix]:
    """Postfix with Dovecot's users; every message it takes is captured."""
    with (
        _open_directory() as directory,
        Postfix.running(directory, certificates, dovecot) as server,
    ):
        yield server
