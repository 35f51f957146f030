"""A session at the scripted servers, for what real ones would never do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes.scripted_imap import PASSWORD, ScriptedImap
from tests.fakes.scripted_smtp import ScriptedSmtp
from tests.integration.conftest import Mailbox, letter, logged_in


def scripted_credentials(imap: ScriptedImap, smtp: ScriptedSmtp) -> dict[str, Any]:
    """The body of `POST /api/sessions` for the two servers."""
    return {
        "email": "joe@example.org",
        "password": PASSWORD,
        "imap": {"host": "localhost", "port": imap.port, "security": "starttls"},
        "smtp": {"host": "localhost", "port": smtp.port, "security": "starttls"},
    }


@asynccontextmanager
async def scripted_mailbox(
    base_url: str, imap: ScriptedImap, smtp: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session, with message 7 in its INBOX."""
    imap.folders["INBOX"].add(letter("seven"), uid=7)
    async with logged_in(base_url, scripted_credentials(imap, smtp)) as mailbox:
        yield mailbox
