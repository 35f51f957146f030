"""What benches share: a directory for the service, an SMTP server that takes anything, and clients with sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.service import Client, Service
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.conftest import credentials
from tests.integration.dovecot import Dovecot

CLIENTS = 16  # at once, each with a session, and at each mail server a connection, of its own


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SmtpSink]:
    with SmtpSink(
        tmp_path, "-a", dump=False
    ) as sink:  # its AUTH answers with 250, which RFC 4954 does not know
        yield sink


@pytest.fixture
def service(tmp_path: Path, dovecot: Dovecot) -> Iterator[Service]:
    with Service.running(tmp_path, dovecot.ca_file) as service:
        yield service


def account(dovecot: Dovecot, sink: SmtpSink, user: str | None = None) -> dict[str, Any]:
    """The body of `POST /api/sessions` for a user of Dovecot who sends through the sink, which knows no TLS."""
    return credentials(user or dovecot.fresh_user(), dovecot, sink.port, security="none")


@pytest.fixture
def clients(service: Service, dovecot: Dovecot, sink: SmtpSink) -> list[Client]:
    return [service.log_in(account(dovecot, sink)) for _ in range(CLIENTS)]
