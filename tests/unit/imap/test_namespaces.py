"""Where an account's folders are, and what is believed of servers that do not know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbemail.imap.connection import ImapConnection
from cbemail.imap.namespaces import Namespaces, ask_namespaces, namespaces_data
from cbemail.imap.parser import parse_response
from cbemail.imap.protocol import FolderPath, ImapSyntaxError, Untagged
from tests.fakes.scripted_imap import WEAK_CAPABILITIES, ScriptedImap
from tests.unit.imap.conftest import Open

TOLD = {
    "Dovecot": (b'(("" "/")) NIL NIL', Namespaces()),
    "Courier": (
        b'(("INBOX." ".")) NIL (("#shared." ".")("shared." "."))',
        Namespaces("INBOX.", ("#shared.", "shared.")),
    ),
    "Cyrus": (b'(("INBOX." ".")) (("user." ".")) (("" "."))', Namespaces("INBOX.", ("user.", ""))),
    "an extension": (b'(("" "/" "X-PARAM" ("a" "b"))) NIL NIL', Namespaces()),
    "an encoded name": (
        b'(("" "/")) NIL (("&ANY-ffentlich/" "/"))',
        Namespaces("", ("Öffentlich/",)),
    ),
    "nothing": (b"NIL NIL NIL", Namespaces()),
    "not even that": (b"", Namespaces()),
}


def read(values: bytes) -> Namespaces:
    told = parse_response([b"* NAMESPACE " + values])
    assert isinstance(told, Untagged)
    return namespaces_data(told)


@pytest.mark.parametrize("server", TOLD)
def test_what_servers_tell_is_read(server: str) -> None:
    said, namespaces = TOLD[server]

    assert read(said) == namespaces


@given(st.lists(st.recursive(st.none() | st.binary(), st.lists, max_leaves=9)))
def test_whatever_is_told_is_read_or_refused(values: list[object]) -> None:
    try:
        found = namespaces_data(Untagged("NAMESPACE", None, values))
    except ImapSyntaxError:
        return
    assert isinstance(found, Namespaces)


PLACES = {
    "Work": "INBOX.Work",
    "Work.2026": "INBOX.Work.2026",
    "INBOX.Work": "INBOX.Work",
    "INBOXES": "INBOX.INBOXES",
    "INBOX": "INBOX",
    "user.ann.Work": "user.ann.Work",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_folder_goes_where_the_accounts_folders_are(name: str) -> None:
    namespaces = Namespaces("INBOX.", ("user.", ""))

    assert namespaces.place(FolderPath(name)) == PLACES[name]


@pytest.mark.parametrize(
    "answer", [b"{tag} NO not now\r\n", b"* NAMESPACE (7)\r\n{tag} OK\r\n", b"{tag} OK\r\n"]
)
async def test_a_server_that_does_not_tell_has_no_prefix(
    imap_server: ScriptedImap, imap: ImapConnection, answer: bytes
) -> None:
    imap_server.on("NAMESPACE", answer)

    assert await ask_namespaces(imap) == Namespaces()


async def test_a_server_without_namespaces_is_not_asked_for_them(
    imap_server: ScriptedImap, open_to: Open
) -> None:
    imap_server.capabilities = list(WEAK_CAPABILITIES)

    assert await ask_namespaces(await open_to(imap_server)) == Namespaces()
    assert imap_server.count("NAMESPACE") == 0
