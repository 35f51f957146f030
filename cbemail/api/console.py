"""`/`: what this is, whether it works, where to go on, and the first five calls."""

from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cbemail.api.elements import Content, Markup, element
from cbemail.api.operation import Call
from cbemail.api.operations import Readiness, readiness_of
from cbemail.api.page import address_of, navigation, page
from cbemail.api.state import Services

# Those of the README: a test holds them together.
SETTING = """\
export EMAIL=joe@example.org PASSWORD='the password'
export IMAP_HOST=imap.example.org IMAP_PORT=993
export SMTP_HOST=smtp.example.org SMTP_PORT=465
"""
STEPS = r"""
TOKEN=$(curl -sS --json '{"email": "'"$EMAIL"'", "password": "'"$PASSWORD"'", "imap": {"host": "'"$IMAP_HOST"'", "port": '"$IMAP_PORT"'}, "smtp": {"host": "'"$SMTP_HOST"'", "port": '"$SMTP_PORT"'}}' "$CBEMAIL/api/sessions" | sed 's/.*"token":"\([^"]*\)".*/\1/')
curl -sS -H "Authorization: Bearer $TOKEN" --json '{"to": "'"$EMAIL"'", "subject": "Hello", "body": "It works."}' "$CBEMAIL/api/send"
curl -sS -H "Authorization: Bearer $TOKEN" --get --data-urlencode 'q=is:unread newer:7d' "$CBEMAIL/api/mailbox/messages"
NEWEST=$(curl -sS -H "Authorization: Bearer $TOKEN" "$CBEMAIL/api/mailbox/messages?limit=1" | sed 's/.*"uid":\([0-9]*\).*/\1/') && curl -sS -H "Authorization: Bearer $TOKEN" "$CBEMAIL/api/mailbox/messages/$NEWEST"
curl -sS -H "Authorization: Bearer $TOKEN" -X DELETE "$CBEMAIL/api/mailbox/messages/$NEWEST"
""".lstrip()


async def get_console(call: Call[object, None]) -> Response:
    """The first page: what this is, whether it works, and the first five calls."""
    return page(
        "cbemail",
        element("h1", "Any mailbox as a REST API"),
        element(
            "p",
            "cbemail logs in to a mailbox's own IMAP and SMTP servers, and lets your program list, "
            "search, read, organise and send its mail with plain JSON over HTTP.",
            class_="lead",
        ),
        _status(readiness_of(call.services)),
        element("p", element("a", "Read and try the API", href="/docs", class_="button")),
        _first_calls(call.request, call.services),
        header=navigation(),
    )


def _status(readiness: Readiness) -> Markup:
    parts = f"store {readiness.store}, outbox {readiness.outbox}, version {version('cbemail')}"
    good = readiness.status == "ready"
    return element(
        "p",
        element("strong", "Ready" if good else "Not ready", class_="good" if good else "bad"),
        f": {parts}.",
        class_="status",
    )


def _first_calls(request: Request[Any], services: Services) -> Content:
    known = element(
        "a", "Gmail, Outlook, iCloud, Yahoo, GMX and some forty more", href="/docs#discover"
    )
    setting = f"export CBEMAIL={address_of(request).url}\n{SETTING}"
    steps = STEPS
    if services.gate.is_set:
        setting += "export GATE_PIN='the PIN'\n"
        steps = STEPS.replace("curl -sS", 'curl -sS -H "X-Gate-PIN: $GATE_PIN"', 1)
    return [
        element("h2", "The first five calls"),
        element(
            "p",
            "Say which mailbox. The servers of ", known, " are known: for them ",
            element("code", "imap"), " and ", element("code", "smtp"), " can be left out.",
        ),
        _shell("Settings", setting),
        element(
            "p", "Log in, send yourself a message, search, read the newest message, and move it to the trash:"
        ),
        _shell("Calls", steps),
    ]  # fmt: skip


def _shell(label: str, lines: str) -> Markup:
    return element("pre", element("code", lines), tabindex=0, aria_label=label, role="region")
