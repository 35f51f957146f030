"""What a batch may say: one form or the other, within bounds, and nothing that would be silently ignored."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import structs

from cbemail.api.batch_input import (
    BatchInput,
    FileBatch,
    MergeBatch,
    MessagesBatch,
    Written,
    canonical,
    decode_batch,
    digest_of_lists,
    name_of,
    require_messages_or_recipients,
    require_template_only,
)
from cbemail.api.batch_messages import check_messages
from cbemail.errors import InvalidRequest, MalformedJson

TEMPLATE = {"subject": "{{ x }}"}
RECIPIENTS = [{"to": "ann@example.org", "variables": {"x": 1}}]
MERGE = {"template": TEMPLATE, "recipients": RECIPIENTS}
MESSAGES = {"messages": [{"to": "ann@example.org"}]}


def decoded(body: dict[str, Any]) -> Written:
    batch = decode_batch(json.dumps(body).encode())
    require_messages_or_recipients(batch)
    return batch


@pytest.mark.parametrize("body", [MERGE, MESSAGES, MERGE | {"name": "Büro", "send_at": None}])
def test_either_form_is_taken(body: dict[str, Any]) -> None:
    batch = decoded(body)

    assert name_of(batch) == body.get("name")
    assert len(batch.messages or batch.recipients or []) == 1


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, None),
        (MERGE | MESSAGES, None),
        ({"template": TEMPLATE} | MESSAGES, None),
        ({"recipients": RECIPIENTS}, "#/template"),
        ({"template": TEMPLATE}, "#/recipients"),
        (MERGE | {"recipients": []}, "#/recipients"),
        ({"messages": []}, "#/messages"),
        ({"messages": [{}] * 500_001}, "#/messages"),
        (MERGE | {"nmae": "x"}, "#/nmae"),
        (MERGE | {"id": "bat_1"}, "#/id"),
        (MERGE | {"name": "x" * 201}, "#/name"),
        (MERGE | {"rate_per_minute": 0}, "#/rate_per_minute"),
        (MERGE | {"rate_per_minute": 100_001}, "#/rate_per_minute"),
        (MERGE | {"max_attempts": 21}, "#/max_attempts"),
        (MERGE | {"send_at": "2026-01-01T00:00:00"}, "#/send_at"),
        (MERGE | {"on_invalid": "ignore"}, "#/on_invalid"),
        (MERGE | {"template": {"subject": 1}}, "#/template/subject"),
        (MERGE | {"recipients": {}}, "#/recipients"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_wrong_batch_is_refused_where_it_is_wrong(
    body: dict[str, Any], pointer: str | None
) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        decoded(body)

    assert [error.pointer for error in wrong.value.errors] == ([pointer] if pointer else [])


@pytest.mark.parametrize(
    "field", ["to", "cc", "bcc", "message_id", "reply", "send_at", "save_to_sent"]
)
def test_a_field_that_a_template_cannot_have_says_why(field: str) -> None:
    with pytest.raises(InvalidRequest, match=r"template|message_id") as wrong:
        decoded(MERGE | {"template": {field: None}})

    assert [error.pointer for error in wrong.value.errors] == [f"#/template/{field}"]
    assert "unknown" not in wrong.value.detail


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "a\x7f"])
def test_a_name_is_one_line(name: str) -> None:
    with pytest.raises(InvalidRequest):
        name_of(decoded(MERGE | {"name": name}))


@pytest.mark.parametrize("body", [MERGE, MESSAGES, {}])
def test_with_a_file_there_is_a_template_and_nothing_else(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        require_template_only(decode_batch(json.dumps(body).encode()))

    require_template_only(decode_batch(json.dumps({"template": TEMPLATE}).encode()))


@pytest.mark.parametrize("body", [b"", b"{", b'{"recipients": ' + b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        decode_batch(body)


def test_the_document_knows_the_fields_that_are_decoded() -> None:
    """The schemas are of structs that are not decoded into: they must not come to say anything else."""
    named = {
        field.name
        for form in (MergeBatch, MessagesBatch, FileBatch)
        for field in structs.fields(form)
    }

    assert named == {field.name for field in structs.fields(Written)}
    assert {field.name for field in structs.fields(BatchInput)} < named


# ---- messages


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ({"too": "x"}, "#/messages/1/too"),
        ({"to": 1}, "#/messages/1/to"),
        ({"attachments": [{"filename": 1}]}, "#/messages/1/attachments/0"),
        ({"send_at": "2026-01-01T00:00:00Z"}, "#/messages/1/send_at"),
        ({"save_to_sent": True}, "#/messages/1/save_to_sent"),
        (7, "#/messages/1"),
    ],
    ids=repr,
)
async def test_a_message_that_is_none_is_pointed_at(message: object, pointer: str) -> None:
    batch = decoded({"messages": [{"to": "ann@example.org"}, message]})

    with pytest.raises(InvalidRequest) as wrong:
        await check_messages(batch.messages or [])

    assert wrong.value.errors[0].pointer.startswith(pointer)


# ---- what a key stands for


def meaning(body: str) -> bytes:
    batch = decode_batch(body.encode())
    return canonical(batch) + digest_of_lists(batch)


SAID = (
    '{"template": {"subject": "a"}, "recipients": [{"to": "b", "variables": {"x": 1, "y": "z"}}]}'
)


@pytest.mark.parametrize(
    "again",
    [
        SAID.replace(" ", "\n  "),
        '{"recipients": [{"variables": {"y": "\\u007a", "x": 1}, "to": "b"}], "template": {"subject": "a"}}',
        SAID.replace('"template"', '"dedupe": true, "name": null, "template"'),
    ],
)
def test_the_same_batch_written_otherwise_means_the_same(again: str) -> None:
    assert meaning(again) == meaning(SAID)


@pytest.mark.parametrize(
    "other",
    [
        SAID.replace('"a"', '"b"'),
        SAID.replace("1", "2"),
        SAID.replace("1", "1.0"),
        SAID.replace('"template"', '"dry_run": true, "template"'),
        SAID.replace("}]}", '}, {"to": "c"}]}'),
    ],
)
def test_another_batch_means_something_else(other: str) -> None:
    assert meaning(other) != meaning(SAID)


@pytest.mark.parametrize(
    "item", ['{"to": "\\ud800"}', '{"x": 1e999}', '{"x": ' + "[" * 3000 + "]" * 3000 + "}"]
)
def test_what_cannot_be_read_has_a_meaning_too(item: str) -> None:
    try:
        batch = decode_batch(b'{"recipients": [' + item.encode() + b"]}")
    except MalformedJson:
        return

    assert digest_of_lists(batch) == digest_of_lists(batch)
    assert msgspec.json.encode(batch.recipients)
