"""What processes use, read from /proc: peak memory and CPU seconds by role."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.local.stack import Stack

ROLES = ("ingestion", "resolution", "funds", "scheduler", "bank", "mapper", "bench")  # of digital cash
INFRASTRUCTURE = ("broker", "database")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Used:
    """One process: its peak of resident memory, and CPU seconds within the measured time."""

    role: str
    peak_bytes: int
    first_cpu_seconds: float
    last_cpu_seconds: float


class Usage:
    """Looks at /proc now and then (peaks are the kernel's own); restarts, replicas and children of a role add up."""

    def __init__(self, stack: Stack, roles: Sequence[str] = ROLES) -> None:
        self._stack = stack
        self._roles = roles
        self._seen: dict[tuple[int, str], Used] = {}
        self._infrastructure: dict[str, int] = dict.fromkeys(INFRASTRUCTURE, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Usage":
        self._look(first=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def report(self) -> dict[str, Any]:
        """peak_rss_mb and cpu_seconds by role, infra_rss_mb by part."""
        peaks = {role: sum(one.peak_bytes for one in self._seen.values() if one.role == role) for role in self._roles}
        cpu = {
            role: sum(one.last_cpu_seconds - one.first_cpu_seconds for one in self._seen.values() if one.role == role)
            for role in self._roles
        }
        return {
            "peak_rss_mb": {role: round(size / 1e6, 1) for role, size in peaks.items()},
            "cpu_seconds": {role: round(seconds, 2) for role, seconds in cpu.items()},
            "infra_rss_mb": {part: round(size / 1e6, 1) for part, size in self._infrastructure.items()},
        }

    def _watch(self) -> None:
        while not self._stop.wait(5.0):  # what is looked at more often is slowed by it
            self._look()

    def _look(self, *, first: bool = False) -> None:
        children = family()
        named = {process.name: process.pid for process in self._stack.status() if process.pid}
        named["bench-1"] = os.getpid()
        for name, pid in named.items():
            role = name.partition("-")[0]
            pids = [pid] if role == "bench" else descendants(pid, children)
            if role in INFRASTRUCTURE:
                size = sum(proportional_bytes(one) for one in pids)
                self._infrastructure[role] = max(self._infrastructure[role], size)
            elif role in self._roles:
                for one in pids:
                    self._count(role, one, first)

    def _count(self, role: str, pid: int, first: bool) -> None:
        found = stat(pid)
        if found is None:
            return
        started, cpu_seconds, peak_bytes = found
        # What was born within the measured time has used nothing before.
        used = self._seen.setdefault((pid, started), Used(role, 0, cpu_seconds if first else 0.0, cpu_seconds))
        used.last_cpu_seconds = cpu_seconds
        used.peak_bytes = max(used.peak_bytes, peak_bytes)


def stat(pid: int) -> tuple[str, float, int] | None:
    """(start time, CPU seconds, peak of resident bytes) of a process; None once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    peak_bytes = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)
    return fields[19], (int(fields[11]) + int(fields[12])) / _TICKS, peak_bytes


def proportional_bytes(pid: int) -> int:
    """Memory of a process in which what it shares counts in part: PostgreSQL's buffers belong to all of its processes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def family() -> Mapping[int, list[int]]:
    """Parent -> children, of all processes."""
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ProcessLookupError, IndexError):
                continue
            found.setdefault(parent, []).append(int(folder.name))
    return found


def descendants(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    return [pid, *(one for child in children.get(pid, []) for one in descendants(child, children))]
