"""The real servers of the other integration tests do what those tests take for granted."""

from __future__ import annotations

import imaplib
import os
import smtplib
import socket
import ssl
import time
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.certificates import Certificates
from tests.fakes.smtp_sink import SmtpSink
from tests.integration.dovecot import Dovecot
from tests.integration.postfix import Postfix
from tests.integration.servers import ServerProcess, program, start_server

MESSAGE = b"Subject: hello\r\n\r\nbare\nline feed, \xff and all\r\n"

# ---- Dovecot


@pytest.mark.parametrize("way", ["plain", "starttls", "tls"])
def test_any_user_can_log_in_to_dovecot(
    dovecot: Dovecot, certificates: Certificates, way: str
) -> None:
    context = certificates.client_context()
    if way == "tls":
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
            dovecot.host, dovecot.imaps_port, ssl_context=context
        )
    else:
        client = imaplib.IMAP4(dovecot.host, dovecot.imap_port)

    with client:
        if way == "starttls":
            client.starttls(context)
        status, _ = client.login(dovecot.fresh_user(), dovecot.password)

    assert status == "OK"


def test_dovecot_refuses_a_wrong_password_and_goes_on_listening(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()

    with imaplib.IMAP4(dovecot.host, dovecot.imap_port) as client:
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            client.login(user, "wrong")
        status, _ = client.login(user, dovecot.password)

    assert status == "OK"


def test_a_client_without_the_authority_does_not_trust_dovecot(dovecot: Dovecot) -> None:
    context = ssl.create_default_context()

    with (
        socket.create_connection((dovecot.host, dovecot.imaps_port), timeout=10) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(connection, server_hostname="localhost")


def test_a_fresh_user_has_the_special_use_folders(dovecot: Dovecot) -> None:
    with dovecot.imap(dovecot.fresh_user()) as client:
        _, lines = client.list()

    listed = b"\n".join(line for line in lines if isinstance(line, bytes))
    assert all(b"\\" + use in listed for use in (b"Sent", b"Drafts", b"Trash", b"Junk", b"Archive"))


def test_an_appended_message_is_stored_as_it_was(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()
    dovecot.create_folder(user, "Entwürfe & Co/会议")
    date = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)

    [uid] = dovecot.append(
        user, MESSAGE, folder="Entwürfe & Co/会议", flags=["\\Seen", "$Work"], date=date
    )

    with dovecot.imap(user) as client:
        client.select('"Entw&APw-rfe &- Co/&TxqLrg-"')
        _, data = client.uid("FETCH", str(uid), "(FLAGS INTERNALDATE BODY.PEEK[])")
    assert isinstance(data[0], tuple)
    assert data[0][1] == MESSAGE.replace(b"bare\n", b"bare\r\n")
    assert b"FLAGS (\\Seen \\Recent $Work)" in data[0][0]
    assert b"03-Feb-2026 04:05:06 +0000" in data[0][0]


def test_thousands_of_messages_take_one_append(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()

    uids = dovecot.append(user, *(b"Subject: %d\r\n\r\n" % number for number in range(3000)))

    assert uids == list(range(1, 3001))


def test_a_recreated_folder_has_another_uidvalidity(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()
    dovecot.create_folder(user, "Box")

    with dovecot.imap(user) as client:
        before = client.status("Box", "(UIDVALIDITY)")
        dovecot.recreate_folder(user, "Box")
        after = client.status("Box", "(UIDVALIDITY)")

    assert before != after


def test_folders_and_messages_can_change_behind_a_clients_back(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()
    dovecot.create_folder(user, "Old")
    uids = dovecot.append(user, MESSAGE, MESSAGE, folder="Old")

    dovecot.rename_folder(user, "Old", "New")
    dovecot.expunge(user, "New", uids[:1])

    with dovecot.imap(user) as client:
        assert client.select("Old")[0] == "NO"
        assert client.select("New")[1] == [b"1"]


def test_a_kicked_user_is_disconnected(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()

    client = imaplib.IMAP4(dovecot.host, dovecot.imap_port, timeout=10)
    client.login(user, dovecot.password)
    dovecot.kick(user)
    said = [client.readline(), client.readline()]
    client.shutdown()

    assert said[0].startswith(b"* BYE ")
    assert said[1] == b""


def test_what_a_recorded_user_sends_can_be_read(dovecot: Dovecot) -> None:
    user = dovecot.fresh_user()
    dovecot.record(user)

    with dovecot.imap(user) as client:
        client.select('"no such folder"')

    assert b'SELECT "no such folder"\r\n' in b"".join(dovecot.recorded(user).values())


def test_the_weak_dovecot_offers_nothing_that_is_optional(weak_dovecot: Dovecot) -> None:
    with weak_dovecot.imap(weak_dovecot.fresh_user()) as client:
        _, [*_, offered] = client.capability()

    assert offered == b"IMAP4rev1"


# ---- Postfix


@pytest.mark.parametrize("way", ["plain", "starttls", "tls"])
def test_a_message_submitted_to_postfix_is_captured(
    postfix: Postfix, dovecot: Dovecot, certificates: Certificates, way: str
) -> None:
    context = certificates.client_context()
    sender, recipient, hidden = (dovecot.fresh_user() for _ in range(3))
    if way == "tls":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            postfix.host, postfix.smtps_port, context=context, timeout=10
        )
    else:
        client = smtplib.SMTP(postfix.host, postfix.submission_port, timeout=10)

    with client:
        if way == "starttls":
            client.starttls(context=context)
        client.login(sender, postfix.password)
        client.sendmail(sender, [recipient, hidden], b"Subject: x\r\n\r\n.dot\r\n")

    [message] = postfix.wait_for(recipient)
    assert message.sender == sender
    assert sorted(message.recipients) == sorted([recipient, hidden])
    assert message.content.endswith(b"Subject: x\r\n\r\n.dot\r\n")


def test_postfix_takes_mail_from_and_to_addresses_in_utf8(
    postfix: Postfix, dovecot: Dovecot
) -> None:
    message = EmailMessage()
    message["From"], message["To"] = dovecot.fresh_user(), "jörg@example.test"

    with smtplib.SMTP(postfix.host, postfix.submission_port, timeout=10) as client:
        client.login(dovecot.fresh_user(), postfix.password)
        client.send_message(message)

    [captured] = postfix.wait_for("jörg@example.test")
    assert "SMTPUTF8" in captured.parameters


def test_postfix_relays_for_nobody_who_has_not_logged_in(
    postfix: Postfix, dovecot: Dovecot
) -> None:
    with smtplib.SMTP(postfix.host, postfix.submission_port, timeout=10) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(dovecot.fresh_user(), "wrong")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("a@example.test", "b@example.test", b"Subject: x\r\n\r\n")


# ---- smtp-sink, and servers in general


def test_smtp_sink_keeps_what_it_was_given(tmp_path: Path) -> None:
    with SmtpSink(tmp_path) as sink, smtplib.SMTP(sink.host, sink.port, timeout=10) as client:
        client.sendmail("a@example.test", ["b@example.test", "c@example.test"], MESSAGE)

        [message] = sink.messages()

    assert (message.sender, message.recipients) == (
        "a@example.test",
        ["b@example.test", "c@example.test"],
    )
    assert message.content == MESSAGE.replace(b"bare\n", b"bare\r\n")


def test_smtp_sink_can_take_a_message_and_hang_up(tmp_path: Path) -> None:
    with SmtpSink(tmp_path, "-q", ".") as sink:
        with (
            smtplib.SMTP(sink.host, sink.port, timeout=10) as client,
            pytest.raises(smtplib.SMTPServerDisconnected),
        ):
            client.sendmail("a@example.test", "b@example.test", MESSAGE)

        assert len(sink.messages()) == 1


def test_a_server_that_ends_before_it_is_ready_is_reported_with_its_log() -> None:
    started = time.monotonic()

    with pytest.raises(RuntimeError, match="no such file"):
        ServerProcess([program("sh"), "-c", "echo no such file; exit 1"], ready=b"ready")

    assert time.monotonic() - started < 20, "it waited for a dead server"


def test_a_server_whose_port_was_taken_is_started_with_another() -> None:
    commands = iter(["echo Address already in use; exit 1", "echo listening; exec sleep 60"])

    process = start_server(lambda: [program("sh"), "-c", next(commands)], ready=b"listening")
    process.stop()

    assert process.log == "listening\n"


def test_a_missing_server_skips_unless_servers_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(os.environ, "CBEMAIL_REQUIRE_SERVERS", "0")
    with pytest.raises(pytest.skip.Exception, match="is not installed"):
        program("no-such-server")

    monkeypatch.setitem(os.environ, "CBEMAIL_REQUIRE_SERVERS", "1")
    with pytest.raises(pytest.fail.Exception, match="is not installed"):
        program("no-such-server")
