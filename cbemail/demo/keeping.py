"""What a demo goes by, and with `--keep` goes on from: one file beside the store."""

import secrets
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from cbemail.demo.letters import FOLDERS, ROBIN, letters
from cbemail.demo.mailhost import Account, Letter
from cbemail.settings import SettingsError

_FILE = "demo.msgpack"


class Kept(Struct, frozen=True):
    """The login, the mail, and what sessions of an earlier run rely on: the key, and the mail host's ports."""

    account: Account
    secret_key: str
    imap_port: int
    smtp_port: int
    folders: list[str]
    letters: list[Letter]


def fresh(now: datetime) -> Kept:
    """A mailbox nobody has used yet, with a password of its own. Its ports are any that are free."""
    account = Account(ROBIN.addr_spec, secrets.token_urlsafe(12))
    return Kept(account, secrets.token_urlsafe(48), 0, 0, list(FOLDERS), letters(now))


def load(directory: Path) -> Kept | None:
    """What an earlier run left in the folder, if one did.

    Raises:
        SettingsError: the file cannot be read, or is not what a demo left.
    """
    file = directory / _FILE
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SettingsError(f"{file} cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{file} is damaged: remove it, or keep the demo elsewhere") from exc


def save(directory: Path, kept: Kept) -> None:
    """Replace what the folder has, whole or not at all, readable by its owner only.

    Raises:
        SettingsError: the folder cannot be written to.
    """
    file = directory / _FILE
    draft = file.with_suffix(".new")
    try:
        draft.touch(0o600)
        draft.write_bytes(msgspec.msgpack.encode(kept))
        draft.replace(file)
    except OSError as exc:
        raise SettingsError(f"{file} cannot be written: {exc.strerror}") from exc
