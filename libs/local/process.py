"""What the supervisor needs of the operating system: which process is which, and how a child is born."""

import ctypes
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_SECUREBITS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 28, 47, 2
SECBIT_NO_SETUID_FIXUP = 4  # capabilities stay when the user changes, and access(2) respects them
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def started_at(pid: int) -> str | None:
    """When a process started, in the system's own words; None if it is gone. With the pid this identifies a process."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def before_exec(death_signal: int, unprivileged: bool) -> Callable[[], None]:
    """What a child does between fork and exec: give up root if asked to, and bind its life to its parent's (Linux).

    The death signal comes when the forking *thread* ends, so fork in the main one.
    """
    parent = os.getpid()
    drop = unprivileged and os.geteuid() == 0
    uid, gid = unprivileged_user()

    def prepare() -> None:
        if drop:
            drop_root(uid, gid)
        if sys.platform == "linux":  # after the change of user, which would clear it
            LIBC.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def unprivileged_user() -> tuple[int, int]:
    """(uid, gid) of the user whom root's database runs as; ourselves when we are not root."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def drop_root(uid: int, gid: int) -> None:
    """Become an ordinary user who may still pass through root's private folders.

    A checkout in a private folder (mode 0700) is closed to any other user. Opening those folders to the world
    would be the alternative; keeping this one capability (Linux) leaves them as they are.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if sys.platform == "linux":
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        bit = 1 << CAP_DAC_OVERRIDE
        LIBC.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0))
        LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
