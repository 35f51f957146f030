"""Paths of this API that other answers hold."""

from urllib.parse import quote

from cbemail.imap.protocol import FolderPath, Uid


def message_url(folder: FolderPath, uid: Uid) -> str:
    """Where a message can be fetched.

    >>> message_url(FolderPath("Drafts"), Uid(7))
    '/api/mailbox/messages/7?folder=Drafts'
    """
    return f"/api/mailbox/messages/{uid}?folder={quote(folder, safe='')}"


def send_url(send_id: str) -> str:
    """Where a message that was sent, or is to be, can be asked for."""
    return f"/api/send/{send_id}"


def batch_url(batch_id: str) -> str:
    """Where a batch can be asked for."""
    return f"/api/send/batch/{batch_id}"


def part_url(folder: FolderPath, uid: Uid, part_id: str, _content_id: str) -> str:
    """Where a part can be fetched: what a ``cid:`` in a message's HTML becomes.

    >>> part_url(FolderPath("Büro"), Uid(7), "1.2", "logo@example.org")
    '/api/mailbox/messages/7/attachments/1.2?folder=B%C3%BCro'
    """
    return f"/api/mailbox/messages/{uid}/attachments/{part_id}?folder={quote(folder, safe='')}"


def content_id_url(_folder: FolderPath, _uid: Uid, _part_id: str, content_id: str) -> str:
    """A part as a message refers to it: the ``cid:`` stays, for HTML that is sent on together with the part."""
    return f"cid:{content_id}"
