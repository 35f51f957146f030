"""A client that keeps a copy of a folder in step, by nothing but `GET /api/mailbox/changes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.integration.conftest import Mailbox
from tests.integration.dovecot import Dovecot
from tests.integration.mailboxes import MESSAGES, good

CHANGES = "/api/mailbox/changes"


@dataclass
class Follower:
    """``copy`` is what it was told: the flags of each message by UID. ``strays`` counts what was told as removed, and was
    not there: messages that went in the very moment in which they would have been told."""

    mailbox: Mailbox
    folder: str = "INBOX"
    limit: int = 200
    state: str | None = None
    copy: dict[int, set[str]] = field(default_factory=dict)
    resets: int = 0
    strays: int = 0

    async def begin(self) -> None:
        """Take the state, then list what is there."""
        first = await self.ask()
        assert (first["new"], first["flags"], first["removed"]) == ([], [], [])
        self.state = first["state"]
        page = good(await self.mailbox.get(MESSAGES, folder=self.folder, limit=200))
        self.copy = {row["uid"]: set(row["flags"]) for row in page["messages"]}

    async def ask(self, **params: Any) -> dict[str, Any]:
        """An answer, which may yet be lost on its way."""
        params |= {"folder": self.folder, "limit": self.limit}
        if self.state is not None:
            params["since"] = self.state
        return good(await self.mailbox.get(CHANGES, **params))

    def take(self, answer: dict[str, Any]) -> None:
        """Bring the copy up to date. What comes must be news, and of what is known."""
        if answer["reset"]:
            self.resets += 1
            self.copy.clear()
        uids = [row["uid"] for row in answer["new"]]
        assert uids == sorted(set(uids))
        assert self.copy.keys().isdisjoint(uids), "told as new twice"
        for uid in answer["removed"]:
            self.strays += self.copy.pop(uid, None) is None
        for change in answer["flags"]:
            assert change["uid"] in self.copy, "flags of what is not there"
            self.copy[change["uid"]] = set(change["flags"])
        self.copy |= {
            row["uid"]: set(row.get("flags", [row.get("error")])) for row in answer["new"]
        }
        self.state = answer["state"]

    async def follow(self) -> dict[str, Any]:
        """Ask, and take the answer."""
        answer = await self.ask()
        self.take(answer)
        return answer

    async def catch_up(self) -> None:
        """Ask until there is no more."""
        while (await self.follow())["more"]:
            pass


def truth(server: Dovecot, user: str, folder: str = "INBOX") -> dict[int, set[str]]:
    """The flags of each message that is really there."""
    said = server.doveadm(
        *("-f", "tab", "fetch", "-u", user, "uid flags", "mailbox", folder, "all")
    )
    rows = (line.split("\t") for line in said.splitlines()[1:])
    return {int(uid): set(flags.split()) - {"\\Recent"} for uid, flags in rows}
