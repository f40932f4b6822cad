"""Processes of services, forked from one server for each test session which has the libraries imported already.

Importing them is most of what starting a service costs, and the tests start hundreds. Only libraries and the contracts are shared:
all other modules of the project are imported in the new process, with its own environment. However the test session ends, no
service is left behind (on Linux; elsewhere the fixtures' own clean-up must do)."""

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

from libs.local.process import LIBC, PR_SET_PDEATHSIG
from libs.local.supervisor import ROOT

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.support.libraries"])


def start(module: str, verb: str, env: Mapping[str, str], log: Path) -> BaseProcess:
    """Run `python -m MODULE VERB`, with this environment beside the session's; what it prints is appended to `log`."""
    child = _server.Process(target=_run, args=(module, verb, {**os.environ, **env}, str(log)))
    child.start()
    return child


def _run(module: str, verb: str, env: Mapping[str, str], log: str) -> None:
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the server ends with the session
        if os.getppid() == 1:
            sys.exit(1)
    os.setsid()
    for fd, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        os.dup2(os.open(path, flags, 0o600), fd)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = [module, verb]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
