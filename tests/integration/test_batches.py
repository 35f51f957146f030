"""`/api/send/batch`, from the request to what arrives: the forms it takes, what it refuses, and what it keeps apart."""

from __future__ import annotations

import base64
import csv
import email
import email.policy
import io
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tests.fakes.scripted_smtp import Captured, ScriptedSmtp
from tests.fakes.smtp_sink import SmtpSink
from tests.integration import merges
from tests.integration.conftest import Mailbox, credentials, logged_in, serving
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import problem
from tests.integration.postfix import Postfix
from tests.integration.service import ServiceProcess

COLUMNS = ("to", "name", "code", "note", "cc", "bcc", "key")
TEMPLATE = {
    "subject": "{{ name }}, your code {{ code }}",
    "body": "Dear {{ name }},\n\n{{ note }}\n.\n{{ code }}\n",
    "html": "<p>Dear <b>{{ name }}</b>, {{ note }}: {{ code }}</p>",
    "headers": {"X-Customer": "{{ name }} <{{ code }}>"},
    "attachments": [
        {
            "filename": "Brief {{ code }} für {{ name }}.txt",
            "content": base64.b64encode(b"the same for all").decode(),
        }
    ],
}


@pytest.fixture
async def scripted(
    base_url: str, dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session whose SMTP server is the scripted one."""
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with logged_in(base_url, body) as mailbox:
        yield mailbox


def people(domain: str) -> list[dict[str, str]]:
    """Recipients whose values are not to be trusted with each other, nor with any format on the way."""
    values = [
        ("Ann", "a1", "plain"),
        ("Jörg Müller-Lüdenscheidt", "b2", "Grüße, 你好 🎈"),
        ('Bob "the, builder"; Jr', "c3", "two\nlines, and 'quotes'"),
        ("<script>alert(1)</script>", "d4", "{{ code }} {% if x %} a & b < c"),
        ("=1+1", "e5", "Subject: no\n.\nFrom here"),
    ]
    return [
        {
            "to": f"p{index}@{domain}",
            "name": name,
            "code": code,
            "note": note,
            "cc": f"Cc {index} <cc{index}@{domain}>",
            "bcc": f"bcc{index}@{domain}",
            "key": f"K{index}",
        }
        for index, (name, code, note) in enumerate(values)
    ]


def variables(person: dict[str, str]) -> dict[str, str]:
    return {name: person[name] for name in ("to", "name", "code", "note")}


def recipient(person: dict[str, str]) -> dict[str, Any]:
    """A person as JSON has them."""
    whom = {name: person[name] for name in ("to", "cc", "bcc", "key")}
    return whom | {"variables": variables(person)}


def as_csv(rows: Iterable[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_ndjson(rows: Iterable[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(recipient(row)).encode() + b"\n" for row in rows)


def as_parquet(rows: Iterable[dict[str, str]], path: Path) -> bytes:
    """Written by DuckDB, as those who have their customers in tables would."""
    columns = ", ".join(f'"{name}" varchar' for name in COLUMNS)
    with duckdb.connect() as database:
        database.execute(f"create table people ({columns})")
        for row in rows:
            database.execute(
                "insert into people values (?, ?, ?, ?, ?, ?, ?)", [row[name] for name in COLUMNS]
            )
        database.execute(f"copy people to '{path}' (format parquet)")
    return path.read_bytes()


def form(
    batch: dict[str, Any], content: bytes, media_type: str = "text/csv", filename: str = "people"
) -> dict[str, tuple[str | None, bytes | str, str]]:
    """A multipart body, as httpx takes it."""
    return {
        "batch": (None, json.dumps(batch), "application/json"),
        "recipients": (filename, content, media_type),
    }


async def posted(mailbox: Mailbox, kind: str, domain: str, tmp_path: Path) -> httpx.Response:
    """The batch of `people`, in one of the forms it may come in."""
    rows, client = people(domain), mailbox.client
    batch = {"template": TEMPLATE}
    match kind:
        case "json":
            body = batch | {"recipients": [recipient(row) for row in rows]}
            return await client.post(merges.BATCHES, json=body)
        case "csv":
            return await client.post(merges.BATCHES, files=form(batch, as_csv(rows)))
        case "ndjson":
            ndjson = form(batch, as_ndjson(rows), "application/x-ndjson")
            return await client.post(merges.BATCHES, files=ndjson)
        case _:
            content = as_parquet(rows, tmp_path / "people.parquet")
            parquet = form(batch, content, "application/vnd.apache.parquet")
            return await client.post(merges.BATCHES, files=parquet)


def parsed(captured: Captured) -> EmailMessage:
    """What arrived, read by a parser that is not ours."""
    message = email.message_from_bytes(captured.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    content: str = part.get_content()
    return content.replace("\r\n", "\n")


# ---- what arrives


@pytest.mark.parametrize("kind", ["json", "csv", "ndjson", "parquet"])
async def test_every_recipient_gets_the_message_with_their_own_values_whatever_the_form(
    mailbox: Mailbox, postfix: Postfix, tmp_path: Path, kind: str
) -> None:
    domain = f"{secrets.token_hex(4)}.example"

    response = await posted(mailbox, kind, domain, tmp_path)
    done = await merges.until(mailbox, response.json())

    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"{merges.BATCHES}/{done['id']}"
    assert done["counts"] == dict.fromkeys(done["counts"], 0) | {"total": 15, "sent": 15}
    for index, person in enumerate(people(domain)):
        for role in ("p", "cc", "bcc"):
            [captured] = postfix.wait_for(f"{role}{index}@{domain}")
            message = parsed(captured)
            assert message["Subject"] == f"{person['name']}, your code {person['code']}"
            assert [a.addr_spec for a in message["To"].addresses] == [person["to"]]
            assert str(message["Cc"]) == person["cc"]
            assert message["Bcc"] is None
            assert message["From"].addresses[0].addr_spec == mailbox.user
            assert message["X-Customer"] == f"{person['name']} <{person['code']}>"
            assert text_of(message, "plain").rstrip() == (
                f"Dear {person['name']},\n\n{person['note']}\n.\n{person['code']}"
            )
            [attachment] = message.iter_attachments()
            assert attachment.get_filename() == f"Brief {person['code']} für {person['name']}.txt"
            assert attachment.get_content().rstrip() == "the same for all"


async def test_values_are_text_in_html(mailbox: Mailbox, postfix: Postfix, tmp_path: Path) -> None:
    domain = f"{secrets.token_hex(4)}.example"

    await merges.until(mailbox, (await posted(mailbox, "json", domain, tmp_path)).json())

    html = text_of(parsed(postfix.wait_for(f"p3@{domain}")[0]), "html")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ code }} {% if x %} a &amp; b &lt; c: d4" in html
    assert "<script>" not in html


async def test_messages_one_by_one_are_each_sent_as_they_are(
    mailbox: Mailbox, postfix: Postfix
) -> None:
    domain = f"{secrets.token_hex(4)}.example"
    messages = [
        {
            "to": f"m{index}@{domain}",
            "subject": f"Number {index}",
            "body": "Not a template: {{ name }}",
            "headers": {"X-Number": str(index)},
        }
        for index in range(3)
    ]

    batch = await merges.started(mailbox, {"messages": messages, "name": "One by one"})
    done = await merges.until(mailbox, batch)

    assert (done["name"], done["counts"]["sent"]) == ("One by one", 3)
    for index in range(3):
        [captured] = postfix.wait_for(f"m{index}@{domain}")
        message = parsed(captured)
        assert (message["Subject"], message["X-Number"]) == (f"Number {index}", str(index))
        assert text_of(message, "plain").rstrip() == "Not a template: {{ name }}"


async def test_a_message_has_an_id_of_its_own_which_the_report_knows(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    batch = await merges.started(scripted, merges.merge(5))
    await merges.until(scripted, batch)

    rows = await merges.report(scripted, batch)
    arrived = {message.recipients[0]: parsed(message) for message in smtp_server.messages}
    assert {to: message["Message-ID"] for to, message in arrived.items()} == {
        row["to"]: row["message_id"] for row in rows
    }
    assert len({row["message_id"] for row in rows}) == 5
    assert len({row["id"] for row in rows}) == 5


async def test_no_message_of_ten_thousand_holds_anothers_secret_through_three_kills(
    environ: dict[str, str], dovecot: Dovecot, tmp_path: Path
) -> None:
    rows = [
        {"to": f"r{index}@example.org", "code": f"tok{secrets.token_hex(8)}"}
        for index in range(10_000)
    ]
    own = {row["to"]: row["code"] for row in rows}
    template = {
        "subject": "Yours: {{ code }}",
        "body": "It is\n{{ code }}\nand no other.\n",
        "html": "<p>It is\n<b>{{ code }}</b>\nand no other.</p>",
        "attachments": [
            {"filename": "{{ code }}.txt", "content": base64.b64encode(b"all").decode()}
        ],
    }
    upload = form({"template": template}, as_csv(rows, ("to", "code")))

    with SmtpSink(tmp_path) as sink, ServiceProcess(tmp_path, environ) as service:
        account = credentials(dovecot.fresh_user(), dovecot, sink.port, "none")
        async with logged_in(service.url, account) as mailbox:
            response = await mailbox.client.post(merges.BATCHES, files=upload)
            batch = response.json()
            for sent in (1_000, 4_000, 7_000):
                await merges.until_counts(mailbox, batch, at_least(sent))
                service.kill()
                service.start()
            done = await merges.until(mailbox, batch, within=120)
            report = await merges.report(mailbox, batch)
        arrived = sink.messages()

    assert response.status_code == 202, response.text
    states = merges.balance(report, arrived, own)
    assert done["counts"]["total"] == 10_000
    assert states["sent"] + states["uncertain"] == 10_000
    for message in arrived:
        [to] = message.recipients
        found = re.findall(rb"tok[0-9a-f]{16}", message.content)
        assert set(found) == {own[to].encode()}, f"{to} got somebody else's"
        assert len(found) >= 4, "a place of the template is without its value"
    for message in arrived[::100]:
        code, read = own[message.recipients[0]], parsed(message)
        assert read["Subject"] == f"Yours: {code}"
        assert [part.get_filename() for part in read.iter_attachments()] == [f"{code}.txt"]


def at_least(sent: int) -> Any:
    return lambda batch: batch["counts"]["sent"] + batch["counts"]["uncertain"] >= sent


# ---- dry runs


async def test_a_dry_run_shows_what_would_be_and_queues_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    body = merges.merge(7, dry_run=True)
    body["recipients"][3]["to"] = "nobody"

    response = await scripted.post(merges.BATCHES, body)
    batches = (await scripted.get(merges.BATCHES)).json()["batches"]

    assert response.status_code == 200, response.text
    found = response.json()
    assert found["counts"] == dict.fromkeys(found["counts"], 0) | {
        "total": 7,
        "queued": 6,
        "rejected": 1,
    }
    assert [(row["index"], row["to"], row["code"]) for row in found["rejected"]] == [
        (3, "nobody", "invalid-address")
    ]
    assert [message["index"] for message in found["messages"]] == [0, 1, 2, 4, 5]
    first = found["messages"][0]
    assert first["subject"] == "Hello N0"
    assert first["text"].startswith("Dear N0,\n\nyour token: t0x")
    assert first["to"] == [{"name": None, "address": "r0@example.org"}]
    assert batches == []
    assert smtp_server.messages == []


async def test_a_dry_run_of_a_file_names_every_rejection(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    rows = [{"to": f"bad{index}", "name": "n", "token": "t"} for index in range(300)]
    rows.append({"to": "good@example.org", "name": "n", "token": "t"})
    batch = {"template": merges.TEMPLATE, "dry_run": True}
    upload = form(batch, as_csv(rows, ("to", "name", "token")))

    response = await scripted.client.post(merges.BATCHES, files=upload)

    assert response.status_code == 200, response.text
    assert len(response.json()["rejected"]) == 300
    assert response.json()["counts"]["queued"] == 1
    assert smtp_server.messages == []


async def test_a_dry_run_shows_messages_that_come_one_by_one(scripted: Mailbox) -> None:
    message = {"to": "a@example.org", "subject": "s", "html": "<p>Hello <b>there</b></p>"}

    response = await scripted.post(merges.BATCHES, {"messages": [message], "dry_run": True})

    [shown] = response.json()["messages"]
    assert (shown["subject"], shown["html"]) == ("s", message["html"])
    assert "Hello there" in shown["text"]


async def test_a_dry_run_takes_no_key(scripted: Mailbox) -> None:
    scripted.client.headers["Idempotency-Key"] = "for-later"

    dry = await scripted.post(merges.BATCHES, merges.merge(1, dry_run=True))
    wet = await scripted.post(merges.BATCHES, merges.merge(1))

    assert (dry.status_code, wet.status_code) == (200, 202)
    assert "idempotency-replayed" not in wet.headers


# ---- recipients that cannot be sent to


WRONG = [
    ({"to": "no at sign"}, "no at sign", "invalid-address"),
    ({"to": "a@b.co,c@d.co"}, "a@b.co,c@d.co", "invalid-address"),
    ({"to": []}, "", "invalid-recipient"),
    ({"to": "x@example.org", "cc": "no"}, "x@example.org", "invalid-address"),
    ({"to": "x@example.org", "bcc": ["b@c.de", "no"]}, "x@example.org", "invalid-address"),
    ({"to": "x@example.org", "variables": {"name": "n"}}, "x@example.org", "missing-variable"),
    ({"to": "x@example.org", "nmae": "typo"}, "x@example.org", "invalid-recipient"),
    ({"to": "x@example.org", "key": "k" * 201}, "x@example.org", "invalid-recipient"),
    (
        {"to": "x@example.org", "variables": {"name": "a\r\nBcc: evil@example.org", "token": ""}},
        "x@example.org",
        "invalid-variables",
    ),
    (
        {"to": "x@example.org", "variables": {"name": "n", "token": "x" * 70_000}},
        "x@example.org",
        "too-large",
    ),
]


@pytest.mark.parametrize(("entry", "to", "code"), WRONG)
async def test_a_recipient_that_cannot_be_sent_to_is_left_out_and_said_why(
    scripted: Mailbox, smtp_server: ScriptedSmtp, entry: dict[str, Any], to: str, code: str
) -> None:
    body = merges.merge(2)
    body["recipients"].insert(1, {"variables": {"name": "n", "token": "t"}} | entry)

    batch = await merges.started(scripted, body)
    done = await merges.until(scripted, batch)
    rows = await merges.report(scripted, batch)

    [rejection] = batch["rejected"]
    assert (rejection["index"], rejection["to"], rejection["code"]) == (1, to, code)
    assert re.fullmatch(r"[A-Z].*\.", rejection["detail"], re.DOTALL)
    assert done["counts"] | {"total": 3, "sent": 2, "rejected": 1} == done["counts"]
    assert done["rejected"] == [rejection]
    assert [row["state"] for row in rows] == ["sent", "rejected", "sent"]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert sorted(m.recipients[0] for m in smtp_server.messages) == [
        "r0@example.org",
        "r1@example.org",
    ]


async def test_a_missing_variable_is_named(scripted: Mailbox) -> None:
    body = merges.merge(2)
    body["recipients"][1]["variables"] = {"nmae": "Ann"}

    batch = await merges.started(scripted, body)

    assert batch["rejected"][0]["detail"] == "The variables name, token are missing."


async def test_of_many_rejections_the_first_hundred_are_shown_and_all_can_be_listed(
    scripted: Mailbox,
) -> None:
    body = merges.merge(1)
    body["recipients"] += [{"to": f"bad{index}"} for index in range(150)]

    batch = await merges.started(scripted, body)
    path = f"{merges.BATCHES}/{batch['id']}/messages"
    page = await scripted.get(path, state="rejected", limit=200)

    assert [row["index"] for row in batch["rejected"]] == list(range(1, 101))
    assert batch["counts"]["rejected"] == 150
    assert sum(batch["counts"].values()) == 2 * batch["counts"]["total"] == 302
    assert [row["index"] for row in page.json()["messages"]] == list(range(1, 151))
    assert {row["detail"] for row in page.json()["messages"]} == {
        row["detail"] for row in batch["rejected"]
    }


async def test_with_reject_one_wrong_recipient_stores_nothing(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    body = merges.merge(3, on_invalid="reject")
    body["recipients"][1]["to"] = "nobody"

    response = await scripted.post(merges.BATCHES, body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    assert [error["pointer"] for error in response.json()["errors"]] == ["#/recipients/1"]
    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []
    assert smtp_server.messages == []


async def test_what_reject_says_is_a_sentence(scripted: Mailbox) -> None:
    body = merges.merge(3, on_invalid="reject")
    body["recipients"][1]["to"] = "nobody"

    response = await scripted.post(merges.BATCHES, body)

    assert problem(response) == (422, "invalid-request", ["#/recipients/1"])


async def test_with_reject_a_good_list_is_sent(scripted: Mailbox) -> None:
    batch = await merges.started(scripted, merges.merge(3, on_invalid="reject"))

    done = await merges.until(scripted, batch)

    assert done["counts"]["sent"] == 3


async def test_nobody_to_send_to_is_refused(scripted: Mailbox) -> None:
    body = merges.merge(2)
    for each in body["recipients"]:
        each["to"] = "nobody"

    response = await scripted.post(merges.BATCHES, body)

    assert problem(response) == (422, "invalid-request", ["#/recipients/0", "#/recipients/1"])
    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []


@pytest.mark.parametrize(
    ("dedupe", "sent"), [({}, 2), ({"dedupe": True}, 2), ({"dedupe": False}, 4)]
)
async def test_an_address_twice_gets_one_message_unless_both_are_wanted(
    scripted: Mailbox, smtp_server: ScriptedSmtp, dedupe: dict[str, bool], sent: int
) -> None:
    body = merges.merge(2, **dedupe)
    body["recipients"] += [
        merges.recipients(1)[0],
        merges.recipients(2)[1] | {"to": "Again <R1@Example.ORG>"},
    ]

    batch = await merges.started(scripted, body)
    done = await merges.until(scripted, batch)

    assert done["counts"]["sent"] == sent == len(smtp_server.messages)
    assert done["counts"]["rejected"] == 4 - sent
    assert {each["code"] for each in done["rejected"]} <= {"duplicate"}
    assert [each["index"] for each in done["rejected"]] == [2, 3][: 4 - sent]


# ---- templates


@pytest.mark.parametrize(
    ("part", "pointer"),
    [
        ({"subject": "{{ name"}, "#/template/subject"),
        ({"body": "{% if name %} and no end"}, "#/template/body"),
        ({"html": "{{ name | nosuchfilter }}"}, "#/template/html"),
        ({"headers": {"X-A": "{{ }}"}}, "#/template/headers/X-A"),
        ({"headers": {"Bcc": "x@example.org"}}, "#/template/headers/Bcc"),
        (
            {"attachments": [{"filename": "{{ a b }}.txt", "content": ""}]},
            "#/template/attachments/0/filename",
        ),
        ({"attachments": [{"filename": "a", "content": "!"}]}, "#/template/attachments/0/content"),
        ({"from": "other@example.org"}, "#/template/from"),
        ({"reply_to": ["ok@example.org", "no"]}, "#/template/reply_to/1"),
        ({"to": "x@example.org"}, "#/template/to"),
        ({"text": "x", "body": "y"}, "#/template/text"),
        ({"boddy": "x"}, "#/template/boddy"),
    ],
)
async def test_what_is_wrong_with_a_template_is_pointed_at(
    scripted: Mailbox, part: dict[str, Any], pointer: str
) -> None:
    body = merges.merge(1)
    body["template"] = {"subject": "s"} | part

    as_json = await scripted.post(merges.BATCHES, body)
    upload = form({"template": body["template"]}, b"to,name\na@example.org,n\n")
    as_form = await scripted.client.post(merges.BATCHES, files=upload)

    assert problem(as_json) == (422, "invalid-request", [pointer])
    assert problem(as_form) == (422, "invalid-request", [pointer])
    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, []),
        ({"template": {}, "messages": [{"to": "a@b.co"}]}, []),
        ({"template": {"subject": "s"}}, ["#/recipients"]),
        ({"recipients": [{"to": "a@b.co"}]}, ["#/template"]),
        ({"template": {}, "recipients": []}, ["#/recipients"]),
        ({"messages": []}, ["#/messages"]),
        ({"messages": [{"to": "a@b.co"}, {"too": "a@b.co"}]}, ["#/messages/1/too"]),
        (
            {"messages": [{"to": "a@b.co", "send_at": "2040-01-01T00:00:00Z"}]},
            ["#/messages/0/send_at"],
        ),
        ({"messages": [{"to": "a@b.co"}], "name": "a\nb"}, ["#/name"]),
        ({"messages": [{"to": "a@b.co"}], "rate_per_minute": 0}, ["#/rate_per_minute"]),
        ({"messages": [{"to": "a@b.co"}], "max_attempts": 21}, ["#/max_attempts"]),
        ({"messages": [{"to": "a@b.co"}], "on_invalid": "fail"}, ["#/on_invalid"]),
        ({"messages": [{"to": "a@b.co"}], "on_uncertain": "maybe"}, ["#/on_uncertain"]),
        ({"messages": [{"to": "a@b.co"}], "send_at": "tomorrow"}, ["#/send_at"]),
        ({"messages": [{"to": "a@b.co"}], "sendat": 1}, ["#/sendat"]),
    ],
)
async def test_what_is_wrong_with_a_batch_is_pointed_at(
    scripted: Mailbox, body: dict[str, Any], pointers: list[str]
) -> None:
    response = await scripted.post(merges.BATCHES, body)

    assert problem(response) == (422, "invalid-request", pointers)


# ---- files


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("text/csv", b"name,token\nAnn,t\n"),
        ("text/csv", b"to,email,name,token\na@b.co,a@b.co,n,t\n"),
        ("text/csv", b"to,name,name,token\na@b.co,n,m,t\n"),
        ("text/csv", b""),
        ("text/csv", b"to,name,token\n"),
        ("text/csv", b'to,name,token\na@b.co,"never closed,t\nb@b.co,n,t\n'),
        ("text/csv", b"to,name,token\na@b.co,n,t,one too many\n"),
        ("text/csv", "to,name,token\na@b.co,n,t\n".encode("utf-16")),
        ("text/csv", b"to,name,token\na@b.co,J\xf6rg,t\n"),
        ("text/csv", ("to," + ",".join(f"c{i}" for i in range(300)) + "\n").encode()),
        ("application/x-ndjson", b"\n\n"),
        ("application/vnd.apache.parquet", b"to,name,token\na@b.co,n,t\n"),
        ("application/vnd.apache.parquet", b"PAR1" + bytes(100) + b"PAR1"),
    ],
)
async def test_a_file_that_is_not_certain_is_refused_whole(
    scripted: Mailbox, smtp_server: ScriptedSmtp, media_type: str, content: bytes
) -> None:
    upload = form({"template": merges.TEMPLATE}, content, media_type)

    response = await scripted.client.post(merges.BATCHES, files=upload)

    assert problem(response) == (422, "invalid-request", ["#/recipients"])
    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []
    assert smtp_server.messages == []


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfto,name,token\r\na@b.co,n,t\r\n",
        b"Email;Key;name;token\na@b.co;k;n;t\n",
        b"token\tname\tTO\nt\tn\ta@b.co\n",
        b'"to","name","token","unused"\n"A <a@b.co>","n","t","x"',
    ],
)
async def test_tables_as_spreadsheets_write_them_are_taken(
    scripted: Mailbox, smtp_server: ScriptedSmtp, content: bytes
) -> None:
    upload = form({"template": merges.TEMPLATE}, content)

    response = await scripted.client.post(merges.BATCHES, files=upload)
    await merges.until(scripted, response.json())

    assert response.status_code == 202, response.text
    [message] = smtp_server.messages
    assert message.recipients == ["a@b.co"]
    assert parsed(message)["Subject"] == "Hello n"


async def test_a_line_of_ndjson_that_is_none_is_left_out_alone(scripted: Mailbox) -> None:
    lines = as_ndjson(people("example.org")[:1]) + b"{broken\n" + b'["a@b.co"]\n'
    upload = form({"template": TEMPLATE}, lines, "application/x-ndjson")

    response = await scripted.client.post(merges.BATCHES, files=upload)

    assert response.status_code == 202, response.text
    assert [each["index"] for each in response.json()["rejected"]] == [1, 2]
    assert response.json()["counts"]["rejected"] == 2


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ({"batch": (None, "{}", "application/json")}, 422, "invalid-request"),
        ({"recipients": ("a.csv", b"to\na@b.co\n", "text/csv")}, 422, "invalid-request"),
        (form({"template": {}, "recipients": []}, b"to\na@b.co\n"), 422, "invalid-request"),
        (form({"template": {}, "messages": []}, b"to\na@b.co\n"), 422, "invalid-request"),
        (form({}, b"to\na@b.co\n"), 422, "invalid-request"),
        (form({"template": {}}, b"to\na@b.co\n", "application/pdf"), 415, "unsupported-media-type"),
        (
            form({"template": {}}, b"to\na@b.co\n") | {"more": (None, "x", "text/plain")},
            422,
            "invalid-request",
        ),
    ],
)
async def test_a_form_is_its_two_parts_and_no_other(
    scripted: Mailbox, parts: dict[str, Any], status: int, code: str
) -> None:
    response = await scripted.client.post(merges.BATCHES, files=parts)

    assert problem(response)[:2] == (status, code)


async def test_a_batch_is_json_or_a_form(scripted: Mailbox) -> None:
    response = await scripted.client.post(
        merges.BATCHES, content=b"to\na@b.co\n", headers={"Content-Type": "text/csv"}
    )

    assert problem(response)[:2] == (415, "unsupported-media-type")


# ---- limits


@pytest.fixture
async def narrow(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> AsyncIterator[Mailbox]:
    """A session where messages may be one megabyte large, and batches two."""
    body = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with (
        serving(environ | {"MAX_BATCH_MB": "2", "MAX_MESSAGE_MB": "1"}) as base_url,
        logged_in(base_url, body) as mailbox,
    ):
        yield mailbox


async def test_a_batch_that_is_too_large_is_refused_in_either_form(narrow: Mailbox) -> None:
    row = b"a@b.co,n," + b"t" * 10_000 + b"\n"
    upload = form({"template": merges.TEMPLATE}, b"to,name,token\n" + row * 220)

    as_json = await narrow.post(merges.BATCHES, merges.merge(40_000))
    as_form = await narrow.client.post(merges.BATCHES, files=upload)

    assert problem(as_json)[:2] == (413, "payload-too-large")
    assert problem(as_form)[:2] == (413, "payload-too-large")
    assert (await narrow.get(merges.BATCHES)).json()["batches"] == []


async def test_a_message_that_is_too_large_fails_no_other(
    narrow: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    large = {"to": "l@example.org", "subject": "s", "body": ("x" * 70 + "\n") * 15_000}
    small = {"to": "s@example.org", "subject": "s", "body": "x"}

    batch = await merges.started(narrow, {"messages": [large, small]})
    done = await merges.until(narrow, batch)

    assert [(each["index"], each["code"]) for each in done["rejected"]] == [
        (0, "payload-too-large")
    ]
    assert [m.recipients for m in smtp_server.messages] == [["s@example.org"]]


async def test_a_template_that_makes_too_large_messages_is_refused(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    content = base64.b64encode(bytes(3 * 1024 * 1024)).decode()
    body = merges.merge(1)
    body["template"] = {"subject": "s", "attachments": [{"filename": "a", "content": content}]}

    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with (
        serving(environ | {"MAX_MESSAGE_MB": "1"}) as base_url,
        logged_in(base_url, account) as mailbox,
    ):
        response = await mailbox.post(merges.BATCHES, body)

    assert problem(response)[:2] == (413, "payload-too-large")


async def test_half_a_million_recipients_are_taken_and_no_more(scripted: Mailbox) -> None:
    batch = {"template": {"subject": "s"}, "recipients": [0] * 500_001}

    in_json = await scripted.post(merges.BATCHES, batch)
    upload = form(
        {"template": {"subject": "s"}, "dedupe": False, "on_invalid": "reject"},
        b"to\n" + b"a@b.co\n" * 500_001,
    )
    in_file = await scripted.client.post(merges.BATCHES, files=upload)

    assert problem(in_json) == (422, "invalid-request", ["#/recipients"])
    assert problem(in_file) == (422, "invalid-request", ["#/recipients"])
    assert (await scripted.get(merges.BATCHES)).json()["batches"] == []


# ---- keys


async def test_a_key_repeats_the_answer_of_a_batch_and_sends_once(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "once"

    first = await scripted.post(merges.BATCHES, merges.merge(2))
    await merges.until(scripted, first.json())
    again = await scripted.client.post(
        merges.BATCHES,
        content=json.dumps(merges.merge(2), indent=3, sort_keys=True),
        headers={"Content-Type": "application/json"},
    )
    other = await scripted.post(merges.BATCHES, merges.merge(3))

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert problem(other)[:2] == (422, "idempotency-mismatch")
    assert len(smtp_server.messages) == 2


async def test_a_key_knows_the_octets_of_a_file(
    scripted: Mailbox, smtp_server: ScriptedSmtp
) -> None:
    scripted.client.headers["Idempotency-Key"] = "file"
    batch = {"template": merges.TEMPLATE}

    answers = [
        await scripted.client.post(merges.BATCHES, files=form(batch, content))
        for content in (
            b"to,name,token\na@b.co,n,t\n",
            b"to,name,token\na@b.co,n,t\n",
            b"to,name,token\na@b.co,n,T\n",
        )
    ]
    await merges.until(scripted, answers[0].json())

    assert [answer.status_code for answer in answers] == [202, 202, 422]
    assert answers[1].json()["id"] == answers[0].json()["id"]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert len(smtp_server.messages) == 1


async def test_a_key_survives_a_restart_and_belongs_to_its_session(
    environ: dict[str, str], dovecot: Dovecot, smtp_server: ScriptedSmtp
) -> None:
    account = credentials(dovecot.fresh_user(), dovecot, smtp_server.port, "starttls")
    async with serving(environ) as base_url, logged_in(base_url, account) as mailbox:
        mailbox.client.headers["Idempotency-Key"] = "lasting"
        first = await mailbox.post(merges.BATCHES, merges.merge(2))
        await merges.until(mailbox, first.json())
        headers = mailbox.client.headers

    async with serving(environ) as base_url:
        async with httpx.AsyncClient(base_url=base_url, headers=headers, trust_env=False) as same:
            again = await same.post(merges.BATCHES, json=merges.merge(2))
        async with logged_in(base_url, account) as stranger:
            stranger.client.headers["Idempotency-Key"] = "lasting"
            new = await stranger.post(merges.BATCHES, merges.merge(1))
            await merges.until(stranger, new.json())

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in new.headers
    assert len(smtp_server.messages) == 3


async def test_a_key_of_what_was_refused_is_free_again(scripted: Mailbox) -> None:
    scripted.client.headers["Idempotency-Key"] = "free"
    wrong = merges.merge(1, on_invalid="reject")
    wrong["recipients"][0]["to"] = "nobody"

    refused = await scripted.post(merges.BATCHES, wrong)
    accepted = await scripted.post(merges.BATCHES, merges.merge(1))

    assert (refused.status_code, accepted.status_code) == (422, 202)
