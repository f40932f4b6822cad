"""Processes of services and of the command line, forked from one server for each test session which has the libraries imported already.

Importing them is most of what starting one costs, and the tests start a thousand. Libraries, the contracts and what reads no
environment are shared: all other modules of the project are imported in the new process, with its own environment. However the
test session ends, none is left behind (on Linux; elsewhere the fixtures' own clean-up must do)."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from libs.local.process import LIBC, PR_SET_PDEATHSIG
from libs.local.supervisor import ROOT

# Nobody meets a stranger by TLS here, and to read whom the world trusts costs each process 40 ms.
_NO_STRANGERS = {"SSL_CERT_FILE": "", "SSL_CERT_DIR": os.devnull}
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.support.libraries"])


def start(
    module: str, argv: Sequence[str], env: Mapping[str, str], out: Path, err: Path | None = None, folder: Path = ROOT
) -> BaseProcess:
    """Run `python -m MODULE ARGV` in a folder, with this environment beside the session's; what it prints is appended to `out`, and
    what goes to standard error to `err` where that is given."""
    files = str(out), str(err or out)
    environment = {**os.environ, **_NO_STRANGERS, **env}
    child = _server.Process(target=_run, args=(module, list(argv), environment, files, str(folder)))
    child.start()
    return child


@atexit.register
def _end() -> None:
    """Of whom nobody has ended: this runs before multiprocessing waits for all of them, which serve for ever."""
    for child in multiprocessing.active_children():
        child.kill()


def run(
    module: str, argv: Sequence[str], env: Mapping[str, str], folder: Path = ROOT, together: bool = False
) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end; `together`: what goes to standard error stands among the rest. Raises AssertionError where the end does
    not come."""
    with TemporaryDirectory() as files:
        out, err = Path(files, "out"), Path(files, "err")
        err.touch()
        child = start(module, argv, env, out, None if together else err, folder)
        child.join(120)
        if child.exitcode is None:
            child.kill()
            raise AssertionError(f"{argv} did not end:\n{out.read_text()}\n{err.read_text()}")
        return subprocess.CompletedProcess(argv, child.exitcode, out.read_text(), err.read_text())


def _run(module: str, argv: list[str], env: Mapping[str, str], files: tuple[str, str], folder: str) -> None:
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the server ends with the session
        if os.getppid() == 1:
            sys.exit(1)
    os.setsid()
    appending = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, files[0], appending), (2, files[1], appending)):
        os.dup2(os.open(path, flags, 0o600), fd)
    assert isinstance(sys.stdout, TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # each line stands where it was said, whatever else goes there
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
