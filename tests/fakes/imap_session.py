"""What an IMAP client does to folders, without a socket: a command in, untagged lines and an ending out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.fakes.imap_arguments import Argument, NotUnderstood, list_of, parse_arguments, text_of
from tests.fakes.imap_folders import CannedFolder, CannedMessage

_SYSTEM_FLAGS = "\\Answered \\Flagged \\Deleted \\Seen \\Draft"
_SPECIAL_USES = {"\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash"}
_NEEDED = {  # command -> the capability it comes with
    "ENABLE": "ENABLE",
    "ID": "ID",
    "NAMESPACE": "NAMESPACE",
    "UID EXPUNGE": "UIDPLUS",
    "UID MOVE": "MOVE",
    "UNSELECT": "UNSELECT",
}


class Refused(Exception):
    """Answered NO; the message is the response code and text."""


@dataclass
class Done:
    """Answered OK: the untagged lines before it, and its response code and text."""

    untagged: list[bytes] = field(default_factory=list)
    text: str = "done"


class ImapSession:
    """One client's view: which folder it has selected, and what it has been told is in there."""

    def __init__(
        self, folders: dict[str, CannedFolder], capabilities: list[str], delimiter: str
    ) -> None:
        self._folders = folders
        self._capabilities = capabilities
        self._delimiter = delimiter
        self._selected: CannedFolder | None = None
        self._told: list[CannedMessage] = []
        self._commands: dict[str, Callable[[list[Argument]], Done]] = {
            "NOOP": lambda _: Done(),
            "CHECK": lambda _: Done(),
            "ID": lambda _: Done([b'* ID ("name" "scripted")']),
            "ENABLE": lambda _: Done([b"* ENABLED"]),
            "NAMESPACE": self._namespace,
            "LIST": self._list,
            "STATUS": self._status,
            "CREATE": self._create,
            "DELETE": self._delete,
            "RENAME": self._rename,
            "SUBSCRIBE": lambda _: Done(),
            "UNSUBSCRIBE": lambda _: Done(),
            "SELECT": self._select,
            "EXAMINE": self._select,
            "UNSELECT": self._unselect,
            "CLOSE": self._close,
            "APPEND": self._append,
            "EXPUNGE": self._expunge,
            "UID SEARCH": self._search,
            "UID FETCH": self._fetch,
            "UID STORE": self._store,
            "UID COPY": self._copy,
            "UID MOVE": self._move,
            "UID EXPUNGE": self._expunge,
        }

    def perform(self, command: bytes) -> Done:
        words = parse_arguments(command)
        name = text_of(words.pop(0)).upper()
        if name == "UID":
            name += " " + text_of(words.pop(0)).upper()
        if name not in self._commands or _NEEDED.get(name, "IMAP4rev1") not in self._capabilities:
            raise NotUnderstood(name)
        done = self._commands[name](words)
        done.untagged.extend(self._news())
        return done

    def _news(self) -> Iterable[bytes]:
        """Whatever changed in the selected folder, by this client or another, that it was not told yet."""
        if self._selected is None:
            return
        for number in range(len(self._told), 0, -1):
            if self._told[number - 1] not in self._selected.messages:
                del self._told[number - 1]
                yield b"* %d EXPUNGE" % number
        if len(self._told) != len(self._selected.messages):
            self._told = list(self._selected.messages)
            yield b"* %d EXISTS" % len(self._told)

    def _open(self) -> CannedFolder:
        if self._selected is None:
            raise NotUnderstood("select a folder first")
        return self._selected

    def _folder(self, argument: Argument, code: str = "NONEXISTENT") -> CannedFolder:
        name = _canonical(argument)
        if name not in self._folders:
            raise Refused(f"[{code}] no such mailbox")
        return self._folders[name]

    # ---- folders

    def _namespace(self, _: list[Argument]) -> Done:
        return Done([f'* NAMESPACE (("" "{self._delimiter}")) NIL NIL'.encode()])

    def _list(self, words: list[Argument]) -> Done:
        words = list(words)
        if isinstance(words[0], list):
            self._need("LIST-EXTENDED")
            words.pop(0)
        pattern = text_of(words[0]) + text_of(words[1])
        wanted = [] if len(words) < 4 else list_of(words[3])
        if wanted:
            self._need("LIST-EXTENDED")
        if pattern == "":
            return Done([f'* LIST (\\Noselect) "{self._delimiter}" ""'.encode()])
        status = next((wanted[at + 1] for at, word in enumerate(wanted) if word == "STATUS"), None)
        lines = []
        for name, folder in self._folders.items():
            if _glob(pattern, self._delimiter).fullmatch(name):
                lines.append(self._list_line(name, folder))
                if status is not None and "\\Noselect" not in folder.attributes:
                    self._need("LIST-STATUS")
                    lines.append(_status_line(name, folder, list_of(status)))
        return Done(lines)

    def _list_line(self, name: str, folder: CannedFolder) -> bytes:
        attributes = [
            attribute
            for attribute in folder.attributes
            if attribute not in _SPECIAL_USES or "SPECIAL-USE" in self._capabilities
        ]
        if "CHILDREN" in self._capabilities:
            inside = name + self._delimiter
            parent = any(other.startswith(inside) for other in self._folders)
            attributes.append("\\HasChildren" if parent else "\\HasNoChildren")
        return f'* LIST ({" ".join(attributes)}) "{self._delimiter}" {_quoted(name)}'.encode()

    def _need(self, capability: str) -> None:
        if capability not in self._capabilities:
            raise NotUnderstood(f"no {capability} here")

    def _status(self, words: list[Argument]) -> Done:
        return Done([_status_line(_canonical(words[0]), self._folder(words[0]), list_of(words[1]))])

    def _create(self, words: list[Argument]) -> Done:
        name = _canonical(words[0])
        if name in self._folders:
            raise Refused("[ALREADYEXISTS] mailbox exists")
        self._folders[name] = CannedFolder()
        return Done()

    def _delete(self, words: list[Argument]) -> Done:
        self._folder(words[0])
        del self._folders[_canonical(words[0])]
        return Done()

    def _rename(self, words: list[Argument]) -> Done:
        old, new = _canonical(words[0]), _canonical(words[1])
        self._folder(old)
        if new in self._folders:
            raise Refused("[ALREADYEXISTS] mailbox exists")
        for name in [name for name in self._folders if (name + "/").startswith(old + "/")]:
            self._folders[new + name.removeprefix(old)] = self._folders.pop(name)
        return Done()

    def _select(self, words: list[Argument]) -> Done:
        self._selected = None  # RFC 9051 section 6.3.2: a failed SELECT leaves nothing selected
        folder = self._folder(words[0])
        if "\\Noselect" in folder.attributes:
            raise Refused("[CANNOT] holds no messages")
        self._selected, self._told = folder, list(folder.messages)
        kept = folder.kept_flags or _SYSTEM_FLAGS + " \\*"
        lines = [
            f"* FLAGS ({_SYSTEM_FLAGS})",
            f"* {len(folder.messages)} EXISTS",
            "* 0 RECENT",
            f"* OK [PERMANENTFLAGS ({kept})] kept",
            f"* OK [UIDVALIDITY {folder.uid_validity}] valid",
            f"* OK [UIDNEXT {folder.uid_next}] predicted",
        ]
        return Done([line.encode() for line in lines], "[READ-WRITE] selected")

    def _unselect(self, _: list[Argument]) -> Done:
        self._open()
        self._selected = None
        return Done()

    def _close(self, words: list[Argument]) -> Done:
        self._expunge([])
        return self._unselect(words)

    # ---- messages

    def _append(self, words: list[Argument]) -> Done:
        name, *options, raw = words
        if not isinstance(raw, bytes):
            raise NotUnderstood("a literal was due")
        folder = self._folder(name, "TRYCREATE")
        message = folder.add(raw)
        for option in options:
            if isinstance(option, list):
                message.flags.update(text_of(flag) for flag in option)
            else:
                message.date = text_of(option)
        if "UIDPLUS" not in self._capabilities:
            return Done()
        return Done(text=f"[APPENDUID {folder.uid_validity} {message.uid}] appended")

    def _search(self, words: list[Argument]) -> Done:
        keys = list(words)
        returns: list[Argument] | None = None
        if keys and keys[0] == "RETURN":
            self._need("ESEARCH")
            returns = list_of(keys[1]) or ["ALL"]
            del keys[:2]
        if keys and keys[0] == "CHARSET":
            del keys[:2]
        found = [message.uid for message in self._open().found(keys)]
        if returns is None:
            return Done([" ".join(["* SEARCH", *map(str, found)]).encode()])
        return Done([_esearch_line(found, [text_of(item).upper() for item in returns])])

    def _fetch(self, words: list[Argument]) -> Done:
        items = [text_of(item) for item in list_of(words[1])]
        if "UID" not in items:
            items.insert(0, "UID")
        lines = []
        for message in self._open().chosen(text_of(words[0])):
            values = [message.fetch(item) for item in items]
            number = self._open().messages.index(message) + 1
            lines.append(b"* %d FETCH (%b)" % (number, b" ".join(values)))
        return Done(lines)

    def _store(self, words: list[Argument]) -> Done:
        action = text_of(words[1]).upper()
        flags = {text_of(flag) for flag in list_of(words[2])}
        lines = []
        for message in self._open().chosen(text_of(words[0])):
            match action.removesuffix(".SILENT"):
                case "+FLAGS":
                    message.flags |= flags
                case "-FLAGS":
                    message.flags -= flags
                case "FLAGS":
                    message.flags = set(flags)
                case _:
                    raise NotUnderstood(action)
            number = self._open().messages.index(message) + 1
            shown = message.fetch("UID") + b" " + message.fetch("FLAGS")
            lines.append(b"* %d FETCH (%b)" % (number, shown))
        return Done([] if action.endswith(".SILENT") else lines)

    def _copy(self, words: list[Argument]) -> Done:
        return Done(text=self._duplicate(words)[1])

    def _move(self, words: list[Argument]) -> Done:
        moved, text = self._duplicate(words)
        folder = self._open()
        folder.messages = [message for message in folder.messages if message not in moved]
        # RFC 6851 section 4.3: COPYUID comes before the first EXPUNGE, so untagged.
        return Done([f"* OK {text}".encode()] if moved and text != "done" else [])

    def _duplicate(self, words: list[Argument]) -> tuple[list[CannedMessage], str]:
        target = self._folder(words[1], "TRYCREATE")
        chosen = self._open().chosen(text_of(words[0]))
        copies = [target.take(message) for message in chosen]
        if not chosen or "UIDPLUS" not in self._capabilities:
            return chosen, "done"
        old, new = (",".join(str(message.uid) for message in some) for some in (chosen, copies))
        return chosen, f"[COPYUID {target.uid_validity} {old} {new}] done"

    def _expunge(self, words: list[Argument]) -> Done:
        folder = self._open()
        candidates = folder.chosen(text_of(words[0])) if words else folder.messages
        gone = [message for message in candidates if "\\Deleted" in message.flags]
        folder.messages = [message for message in folder.messages if message not in gone]
        return Done()


def _canonical(argument: Argument) -> str:
    """INBOX is one mailbox, however it is written (RFC 9051 section 5.1)."""
    name = text_of(argument)
    return "INBOX" if name.upper() == "INBOX" else name


def _glob(pattern: str, delimiter: str) -> re.Pattern[str]:
    inside = f"[^{re.escape(delimiter)}]*"
    return re.compile("".join({"*": ".*", "%": inside}.get(c, re.escape(c)) for c in pattern))


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _status_line(name: str, folder: CannedFolder, items: list[Argument]) -> bytes:
    known = {
        "MESSAGES": len(folder.messages),
        "UNSEEN": sum("\\Seen" not in message.flags for message in folder.messages),
        "RECENT": 0,
        "UIDNEXT": folder.uid_next,
        "UIDVALIDITY": folder.uid_validity,
    }
    names = [text_of(item).upper() for item in items]
    if unknown := set(names) - set(known):
        raise NotUnderstood(", ".join(unknown))
    pairs = " ".join(f"{item} {known[item]}" for item in names)
    return f"* STATUS {_quoted(name)} ({pairs})".encode()


def _esearch_line(found: list[int], returns: list[str]) -> bytes:
    """RFC 4731 section 3.1: of an empty result only COUNT is said."""
    said = {
        "MIN": f"MIN {found[0]}" if found else "",
        "MAX": f"MAX {found[-1]}" if found else "",
        "ALL": "ALL " + ",".join(map(str, found)) if found else "",
        "COUNT": f"COUNT {len(found)}",
    }
    return " ".join(["* ESEARCH UID", *filter(None, (said[item] for item in returns))]).encode()
