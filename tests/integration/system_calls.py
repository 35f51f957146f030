"""What a process asked the kernel for, in the order of it: `strace`, and how its log is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.servers import program

_CALLS = "read,recvfrom,write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync"
_LINE = re.compile(r"(?P<thread>\d+) +(?P<call>.*)")
_SYNC = re.compile(r"(?:fsync|fdatasync)\(\d+<(?P<path>[^>]*)>")
_WRITE = re.compile(r"(?:write|writev|pwrite64)\(\d+<(?P<path>[^>]*)>")


def traced(log: Path) -> Sequence[str]:
    """What a command is put behind to have its reads, writes and syncs in ``log``.

    The command stays the direct child of who starts it (``-D``), and takes signals as it would without.
    """
    strace = [program("strace"), "-D", "-f", "--seccomp-bpf", "-y", "-s", "40", "-o", str(log)]
    return [*strace, "-e", f"trace={_CALLS}", "-e", "signal=none"]


def events(log: Path, store: Path, request: str, answer: str) -> Iterator[str]:
    """What happened, in order: ``asked`` and ``answered`` where octets begin as ``request`` and ``answer`` do, and of
    the store and the files next to it ``written`` and ``synced``. A write counts as it begins, a sync once it is done.
    """
    syncing: set[str] = set()  # threads that wait for one of the store
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        thread, call = match["thread"], match["call"]
        if f'"{request}' in call:
            yield "asked"
        elif f'"{answer}' in call:
            yield "answered"
        elif (write := _WRITE.match(call)) and write["path"].startswith(str(store)):
            yield "written"
        elif (sync := _SYNC.match(call)) and sync["path"].startswith(str(store)):
            syncing.add(thread)
        if thread in syncing and call.endswith("= 0"):
            syncing.remove(thread)
            yield "synced"
