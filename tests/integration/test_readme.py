"""The README's first steps, run as they are printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx

from tests.integration.conftest import Mailbox, letter
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix

README = Path(__file__).parents[2] / "README.md"


async def test_the_first_steps_work_as_printed(
    base_url: str, mailbox: Mailbox, dovecot: Dovecot, postfix: Postfix
) -> None:
    [steps] = re.findall(
        r"^```bash\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    await stored(mailbox, "An old letter")
    variables = {
        "CBEMAIL": base_url,
        "EMAIL": mailbox.user,
        "PASSWORD": dovecot.password,
        "IMAP_HOST": "localhost",
        "IMAP_PORT": str(dovecot.imaps_port),
        "SMTP_HOST": "localhost",
        "SMTP_PORT": str(postfix.smtps_port),
    }

    printed = await run(steps, variables)

    sent, found, read, deleted = answers(printed)
    assert steps.count("\n") == 5
    assert (sent["state"], sent["accepted"]) == ("sent", [mailbox.user])
    assert [message["subject"] for message in found["messages"]] == ["An old letter"]
    assert read["subject"] == "An old letter"
    assert (deleted["deleted"], deleted["folder"]) == ("trashed", "Trash")
    assert [m.content for m in postfix.wait_for(mailbox.user) if b"It works." in m.content]


async def stored(mailbox: Mailbox, subject: str) -> httpx.Response:
    headers = {"Content-Type": "message/rfc822"}
    return await mailbox.client.post(
        "/api/mailbox/messages", content=letter(subject), headers=headers
    )


async def run(steps: str, variables: dict[str, str]) -> str:
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", steps,
        env=os.environ | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await shell.communicate()
    assert (shell.returncode, err) == (0, b""), out + err
    return out.decode()


def answers(printed: str) -> list[Any]:
    """JSON documents, one behind the other."""
    found, rest = [], printed.strip()
    while rest:
        answer, end = json.JSONDecoder().raw_decode(rest)
        found.append(answer)
        rest = rest[end:].strip()
    return found
