"""BODYSTRUCTURE as RFC 9051 7.5.2 has it, where pymap has it otherwise.

pymap counts a part's header into its size, so that every body looks as if it had been cut; and it writes a
disposition with its parameters as one string, in which no client finds the file name.
"""

from pymap.backend.dict import mailbox as storage
from pymap.mime import MessageContent
from pymap.parsing.response.fetch import BodyStructure, ContentBodyStructure


class _LoadedMessage(storage.LoadedMessage):
    @classmethod
    def _get_body_structure(cls, msg: MessageContent) -> BodyStructure:
        structure = super()._get_body_structure(msg)
        if not isinstance(structure, ContentBodyStructure):
            return structure
        structure.size = len(msg.body)
        disposition = structure.content_disposition
        if disposition is not None:
            named = disposition.params.get("filename")
            if named is not None:
                structure.content_type_params = {
                    **(structure.content_type_params or {}),
                    "name": named,
                }
            word = disposition.content_disposition
            structure.content_disposition = word  # type: ignore[assignment]  # it is written as `str` makes it
        return structure


def repair() -> None:
    """Have pymap's messages, from now on, describe themselves in that way."""
    storage.LoadedMessage = _LoadedMessage  # type: ignore[misc]  # the one place where pymap lets it be chosen
