"""A service as a real process: start, freeze, kill, and read what it says."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support import forked

START_SECONDS = 30.0
STOP_SECONDS = 40.0


class Process:
    """`python -m MODULE VERB` with its output in a file. `name` is unique among the processes of a test."""

    def __init__(self, name: str, module: str, verb: str, env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        log.touch()
        self._http_url: str | None = None
        self._child = forked.start(module, [verb], env, log)

    @property
    def pid(self) -> int:
        assert self._child.pid is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.is_alive()

    @property
    def http_url(self) -> str:
        """Base URL of health, metrics and the service's own routes; waits until the process has started."""
        if self._http_url is None:
            self._http_url = f"http://127.0.0.1:{self.started()['port']}"
        return self._http_url

    def at(self, port: int) -> None:
        """Where it serves, known beforehand."""
        self._http_url = f"http://127.0.0.1:{port}"

    def started(self) -> dict[str, Any]:
        """Wait for the log line which says so. Raises AssertionError with the log where it does not come."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            alive = self.alive
            for line in self.logged("started"):
                return line
            if not alive:
                break
            time.sleep(0.02)
        raise AssertionError(f"{self.name} did not start (exit code {self._child.exitcode}):\n{self.log_text()}")

    def ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.http_url + path, trust_env=False, verify=False, timeout=15)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples which have these labels."""
        found = 0.0
        for line in self.get("/metrics").text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{label}="{text}"' in sample for label, text in labels.items()):
                found += float(value)
        return found

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self._child.kill()
        self._child.join(STOP_SECONDS)

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.alive:
            self._child.terminate()
        return self.wait()

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Its exit code (negative: the signal it died of)."""
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise AssertionError(f"{self.name} did not end:\n{self.log_text()}")
        return self._child.exitcode

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        found = []
        for line in self.log_text().splitlines(keepends=True):
            if f'"event": "{event}"' in line and line.endswith("\n"):
                found.append(json.loads(line))
        return found
