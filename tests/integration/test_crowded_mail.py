"""Mail of which a sender has made much: what is remembered of it is bounded by what it takes, and not by how many there are."""

from __future__ import annotations

from pathlib import Path

from tests.integration.conftest import Mailbox, credentials, logged_in
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import MESSAGES, good
from tests.integration.postfix import Postfix
from tests.integration.service import ServiceProcess

LETTERS, PARTS = 200, 900
READ = 40  # of each half, in full
MOST_MB = 45  # that the second half may add: some 18 where all is bounded, 70 and more where rows or pages are not

PART = (
    "--x\r\nContent-Type: application/pdf; name={name}\r\nContent-ID: <{name}@example.org>\r\n"
    "Content-Disposition: attachment; filename={name}\r\n\r\nA\r\n"
)


def crowded_letter() -> bytes:
    parts = "".join(PART.format(name=f"{number}".rjust(150, "n")) for number in range(PARTS))
    head = "Subject: many\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n"
    return f"{head}{parts}--x--\r\n".encode()


async def test_letters_of_very_many_attachments_fill_no_memory(
    tmp_path: Path, environ: dict[str, str], dovecot: Dovecot, postfix: Postfix
) -> None:
    body = credentials(dovecot.fresh_user(), dovecot, postfix.smtps_port)
    dovecot.append(body["email"], *[crowded_letter()] * LETTERS)

    with ServiceProcess(tmp_path, environ) as service:
        async with logged_in(service.url, body) as mailbox:
            cursor = await read_on(mailbox, {})
            before = service.highest_mb
            await read_on(mailbox, {"cursor": cursor})
            grown = service.highest_mb - before

    assert grown < MOST_MB


async def read_on(mailbox: Mailbox, query: dict[str, str]) -> str:
    """List half of the letters, and read some; gives the cursor behind them."""
    uids: list[int] = []
    while len(uids) < LETTERS // 2:
        page = good(await mailbox.get(MESSAGES, limit="10", **query))
        uids += [row["uid"] for row in page["messages"]]
        query = {"cursor": page["next_cursor"]}
    for uid in uids[:READ]:
        good(await mailbox.get(f"{MESSAGES}/{uid}"))
    return query["cursor"]
