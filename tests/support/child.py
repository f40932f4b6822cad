"""python -m tests.support.child MODULE ARGUMENT…: run a module as `python -m` does, in a process that dies with its parent.

However the test session ends, no service is left behind (on Linux; elsewhere the fixtures' own clean-up must do)."""

import os
import runpy
import signal
import sys

from libs.local.process import LIBC, PR_SET_PDEATHSIG

if __name__ == "__main__":
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            sys.exit(1)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
