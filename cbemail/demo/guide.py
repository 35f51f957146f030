"""What the demo prints once it can be used: where it is, its session, and calls to paste into another terminal."""

import re
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, TextIO

import msgspec

from cbemail.demo.mailhost import Account

_SECONDS = 30  # for each answer, the start of the service included


class _Refused(Exception):
    """The service answered with a problem. The message says with which, and to what."""


def introduce(out: TextIO, port: int, account: Account, imap_port: int, smtp_port: int) -> None:
    """Log in, and print how to go on. A service that ends before it has answered is introduced to nobody."""
    login = {
        "email": account.address,
        "password": account.password,
        "name": "Robin Hale",
        "imap": {"host": "127.0.0.1", "port": imap_port, "security": "none"},
        "smtp": {"host": "127.0.0.1", "port": smtp_port, "security": "none"},
    }
    try:
        session = _ask(port, "POST", "/api/sessions", msgspec.json.encode(login))
        bearer = f"Bearer {session['token']}"
        page = _ask(port, "GET", "/api/mailbox/messages?limit=2", Authorization=bearer)
    except (_Refused, TimeoutError) as exc:
        sys.stderr.write(f"cbemail: the demo cannot log in to its own mailbox: {exc}\n")
        return
    except (OSError, HTTPException):
        return
    uids = [str(message["uid"]) for message in page["messages"]]
    values = {
        "<url>": f"http://127.0.0.1:{port}",
        "<address>": account.address,
        "<password>": account.password,
        "<imap>": f"127.0.0.1:{imap_port}",
        "<smtp>": f"127.0.0.1:{smtp_port}",
        "<session>": session["session_id"],
        "<hours>": str(session["expires_in"] // 3600),
        "<token>": session["token"],
    }
    if uids:
        values |= {"<newest>": uids[0], "<other>": uids[-1]}
    out.write(render(values))
    out.flush()


def render(values: Mapping[str, str]) -> str:
    """The page with these values, without the paragraphs that need another: an empty INBOX has nothing to read."""
    page = _PAGE
    for name, value in values.items():
        page = page.replace(name, value)
    return "\n\n".join(part for part in page.split("\n\n") if not _UNKNOWN.search(part))


def _ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> dict[str, Any]:
    """What the service answers. Its port is listened on before it starts: an early question waits until it can."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        answer: dict[str, Any] = msgspec.json.decode(response.read())
    finally:
        connection.close()
    if response.status >= 300:
        raise _Refused(f"{method} {path} was answered with {response.status} ({answer['code']})")
    return answer


_UNKNOWN = re.compile(r"<[a-z]+>")

# Lines without a space in front are for a shell, as they are. `zsh` takes no comments, so there are none.
_PAGE = r"""cbemail demo: the service, a mail host and a mailbox with some mail, all in this process.
It answers to this machine only, and no mail leaves it: whatever is sent, to whomever, comes to its own INBOX.

  Start page     <url>/
  Documentation  <url>/docs
  Mailbox        <address>, password <password>
                 IMAP <imap>, SMTP <smtp>, both without TLS
  Session        <session>
  Token          in the first line below; good for <hours> hours, or until the demo ends

Paste these into another terminal, the first one first. With | python3 -m json.tool behind, JSON is easier to read.

  Where, and who:
export CBEMAIL=<url> TOKEN=<token>

  The newest five messages:
curl -sS -H "Authorization: Bearer $TOKEN" "$CBEMAIL/api/mailbox/messages?limit=5"

  Read the newest:
curl -sS -H "Authorization: Bearer $TOKEN" "$CBEMAIL/api/mailbox/messages/<newest>"

  Search:
curl -sS -H "Authorization: Bearer $TOKEN" --get --data-urlencode 'q=from:mina has:attachment' "$CBEMAIL/api/mailbox/messages"

  Send, then look into INBOX and Sent:
curl -sS -H "Authorization: Bearer $TOKEN" --json '{"to": "mina@lighthouse.example", "subject": "Hello", "body": "Sent from the demo."}' "$CBEMAIL/api/send"

  Send a mail merge, two messages a second:
BATCH=$(curl -sS -H "Authorization: Bearer $TOKEN" --json '{"template": {"subject": "{{ name }}, your ticket", "body": "Dear {{ name }}, your place in the tower is number {{ place }}."}, "recipients": [{"to": "ann@visitors.example", "variables": {"name": "Ann", "place": 1}}, {"to": "ben@visitors.example", "variables": {"name": "Ben", "place": 2}}, {"to": "cleo@visitors.example", "variables": {"name": "Cleo", "place": 3}}, {"to": "nobody@visitors.example", "variables": {"name": "Dan", "place": 4}}], "rate_per_minute": 120}' "$CBEMAIL/api/send/batch" | sed 's/^{"id":"\([^"]*\)".*/\1/')

  Watch its progress, until it is done:
curl -sS -N -H "Authorization: Bearer $TOKEN" "$CBEMAIL/api/send/batch/$BATCH/events"

  What became of each of its messages (nobody@ is always refused here):
curl -sS -H "Authorization: Bearer $TOKEN" -H 'Accept: text/csv' "$CBEMAIL/api/send/batch/$BATCH/messages"

  Delete a message, to the trash:
curl -sS -H "Authorization: Bearer $TOKEN" -X DELETE "$CBEMAIL/api/mailbox/messages/<other>"

Ctrl-C ends the demo.
"""
