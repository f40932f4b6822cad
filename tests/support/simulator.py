"""A simulated counterpart as a real process: start, stop, kill, and start again with what it has stored."""

import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import httpx

from libs.local.client import NO_CERTIFICATES
from tests.support import forked

LIMIT_SECONDS = 30


class SimulatorProcess:
    """`python -m libs.local.NAME`, on a free port which it keeps over restarts."""

    def __init__(self, name: Literal["bank", "mapper", "novu", "mail"], data: Path) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self._log = data / "log"
        self._reserved = socket.socket()  # as long as we live, or somebody's connection may get the port meanwhile
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        port = self._reserved.getsockname()[1]
        if sys.platform != "linux":  # where no second socket may be bound to it, though nobody listens
            self._reserved.close()
        self._start = f"libs.local.{name}", ["--data", str(data), "--port", str(port)]
        self.base_url = f"http://127.0.0.1:{port}"
        self.process: BaseProcess | None = None

    def start(self) -> None:
        """Returns when it is ready. Raises RuntimeError with its log when it ended or took too long."""
        self.process = forked.start(*self._start, {}, self._log)
        give_up_at = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < give_up_at and self.process.is_alive():
            try:
                if httpx.get(f"{self.base_url}/healthz", trust_env=False, verify=NO_CERTIFICATES).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"{self._start} did not become ready:\n{self._log.read_text()}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self._end(self.process)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self._end(self.process)

    def _end(self, process: BaseProcess) -> int:
        process.join(LIMIT_SECONDS)
        assert process.exitcode is not None, f"{self._start} did not end:\n{self._log.read_text()}"
        self.process = None
        return process.exitcode

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
        self._reserved.close()
