"""Processor time of servers, which unlike a rate does not depend on who else is running."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _TIMES = 1, slice(11, 15)  # in /proc/PID/stat, behind the name: proc(5)


def family_seconds(pid: int) -> float:
    """What a process, those it started that still run, and those it has waited for have used so far."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            stat = (directory / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended, and been waited for
        fields = stat.rpartition(")")[2].split()
        parents[int(directory.name)] = int(fields[_PARENT])
        ticks[int(directory.name)] = sum(map(int, fields[_TIMES]))
    return sum(used for each, used in ticks.items() if _descends(each, pid, parents)) / _TICKS


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor
