"""A message as an answer lists it: one that could be read, or one that could not."""

from typing import Annotated, Any

from msgspec import Meta

from cbemail.mailbox.summary import Summary, Unreadable

ROW_KINDS = (Summary, Unreadable)

# `Summary | Unreadable`, which msgspec cannot name as a type: nothing in the JSON tells them apart but their fields.
Row = Annotated[
    Any,
    Meta(
        extra_json_schema={
            "oneOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in ROW_KINDS]
        }
    ),
]
