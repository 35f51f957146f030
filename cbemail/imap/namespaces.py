"""Below which name an account's folders are (RFC 2342): at most servers below none, at some below ``INBOX.``."""

from msgspec import Struct

from cbemail.imap import utf7
from cbemail.imap.connection import ImapConnection
from cbemail.imap.protocol import INBOX, FolderPath, ImapSyntaxError, Untagged, Value
from cbemail.imap.values import read_list
from cbemail.imap.wire import Command

_NAMESPACE = Command("NAMESPACE")


class Namespaces(Struct, frozen=True):
    """What the paths of an account's ``own`` folders begin with, and those of folders that it shares with others."""

    own: str = ""
    shared: tuple[str, ...] = ()

    def place(self, path: FolderPath) -> FolderPath:
        """Where a new folder goes that a client names so: below the own prefix, unless the name says where it is.

        >>> mine = Namespaces("INBOX.", ("user.",))
        >>> mine.place(FolderPath("Work.2026")), mine.place(FolderPath("INBOX.Work"))
        ('INBOX.Work.2026', 'INBOX.Work')
        """
        if path == INBOX or any(path.startswith(p) for p in (self.own, *self.shared) if p):
            return path
        return FolderPath(self.own + path)


async def ask_namespaces(connection: ImapConnection) -> Namespaces:
    """The namespaces of the account; where a server does not tell, or nonsense, it has but one, without a prefix."""
    if "NAMESPACE" in connection.capabilities:
        (completion,) = await connection.run(_NAMESPACE)
        for told in completion.untagged("NAMESPACE"):
            try:
                return namespaces_data(told)
            except ImapSyntaxError:
                break
    return Namespaces()


def namespaces_data(untagged: Untagged) -> Namespaces:
    """Read a NAMESPACE response: the personal, other users' and shared namespaces, each a list or NIL.

    Raises:
        ImapSyntaxError: it is none.
    """
    own, *shared = [_prefixes(value) for value in untagged.values] or [[]]
    return Namespaces(own[0] if own else "", tuple(p for prefixes in shared for p in prefixes))


def _prefixes(value: Value) -> list[str]:
    found = []
    for namespace in read_list(value):
        prefix, *_ = read_list(namespace) or [None]
        if not isinstance(prefix, bytes):
            raise ImapSyntaxError("a namespace has no prefix")
        found.append(utf7.decode(prefix))
    return found
