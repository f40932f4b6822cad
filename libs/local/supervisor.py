"""One process that owns all others: starts them, restarts what dies, stops all by process id.

    python -m libs.local.supervisor --data DIR [--owned]

Detached (`--owned` absent) it lives until SIGTERM. Owned, its standard input is a pipe held by its owner: when the pipe
closes, for whatever reason, everything is killed and the data folder is removed.

Commands come one per connection, as a line of JSON, over the Unix socket `control_socket(DIR)`; `stack.py` is the
client. What runs can be read from `DIR/state.json`, its output is in `DIR/logs/<name>.log`.
"""

import argparse
import asyncio
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.local.process import before_exec, started_at

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0
SETTLED_SECONDS = 30.0  # who lived this long starts again with the first back-off
KILL_LIMIT_SECONDS = 3.0
# Below the ports that Linux and macOS hand out to outgoing connections, so a free port stays free until it is used.
PORT_RANGE = range(20000, 32000)
LONGEST_SOCKET_FOLDER = 80  # a Unix socket's path has 104 (macOS) or 108 bytes; the name in the folder takes the rest

ROOT = Path(__file__).resolve().parents[2]


def socket_folder(data_dir: Path) -> Path:
    """The private folder of this stack's sockets: the data folder, or a short stand-in where its path is too long."""
    path = data_dir.resolve()
    if len(os.fsencode(path)) > LONGEST_SOCKET_FOLDER:
        path = Path("/tmp") / f"almoner-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"  # noqa: S108
    return path


def control_socket(data_dir: Path) -> Path:
    return socket_folder(data_dir) / "control.sock"


def read_state(data_dir: Path) -> dict[str, Any]:
    """What the last supervisor of this folder wrote; empty if there was none."""
    try:
        state: dict[str, Any] = json.loads((data_dir / "state.json").read_text())
    except FileNotFoundError:
        return {}
    return state


def kill_leftovers(data_dir: Path) -> None:
    """Kill what a dead supervisor left behind (nothing on Linux, where its children die with it) and wait for it."""
    deadline = time.monotonic() + KILL_LIMIT_SECONDS
    for process in reversed(read_state(data_dir).get("processes", [])):
        pid, started = process["pid"], process["started"]
        while pid is not None and started_at(pid) == started and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


@dataclass
class Child:
    """One supervised process, over all its lives."""

    name: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    once: bool = False  # a step that runs to its end, not a service
    unprivileged: bool = False  # as `nobody` when we are root: PostgreSQL refuses to run as root
    stop_signal: int = signal.SIGTERM
    death_signal: int = signal.SIGKILL  # for when the supervisor is dead, or the data goes too
    stop_limit_seconds: float = 10.0
    process: subprocess.Popen[bytes] | None = None
    started: str | None = None
    born: float = 0.0
    restarts: int = 0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    wanted: bool = True
    again: asyncio.TimerHandle | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def status(self) -> dict[str, Any]:
        pid = self.process.pid if self.process and self.alive else None
        return {"name": self.name, "pid": pid, "started": self.started, "alive": self.alive, "restarts": self.restarts}


class Supervisor:
    """Starts, restarts and stops processes. Single-threaded: the parent-death signal is tied to the forking thread."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.logs = data_dir / "logs"
        self.logs.mkdir(exist_ok=True)
        self.children: dict[str, Child] = {}  # in order of start
        self.addresses: dict[str, str] = {}
        self.remembered_ports: dict[str, int] = read_state(data_dir).get("ports", {})
        self.ports: dict[str, int] = {}
        self.closing = asyncio.Event()

    # Commands; each returns its answer.

    async def do_start(self, **spec: Any) -> dict[str, Any]:
        if self.closing.is_set():
            raise RuntimeError("shutting down")
        name = spec["name"]
        if (old := self.children.pop(name, None)) and (old.alive or old.again):
            self.children[name] = old
            raise RuntimeError(f"{name} runs already")
        child = self.children[name] = Child(**spec)
        try:
            self.spawn(child)
        except OSError:
            del self.children[name]
            raise
        if not child.once:
            return child.status()
        await child.ended.wait()
        del self.children[name]
        assert child.process is not None
        return {"code": child.process.returncode}

    async def do_stop(self, name: str, kill: bool) -> dict[str, Any]:
        child = self.named(name)
        await self.stop(child, signal.SIGKILL if kill else child.stop_signal)
        return child.status()

    async def do_restart(self, name: str) -> dict[str, Any]:
        child = self.named(name)
        await self.stop(child, child.stop_signal)
        child.wanted, child.backoff_seconds = True, FIRST_BACKOFF_SECONDS
        self.spawn(child)
        return child.status()

    async def do_status(self) -> dict[str, Any]:
        return self.state()

    async def do_port(self, name: str) -> dict[str, Any]:
        if name not in self.ports:
            known = self.remembered_ports.get(name)
            self.ports[name] = known if known and is_free(known) else self.pick_port()
            self.write_state()
        return {"port": self.ports[name]}

    async def do_publish(self, **addresses: str) -> dict[str, Any]:
        self.addresses.update(addresses)
        self.write_state()
        return {}

    # What the commands are made of.

    def named(self, name: str) -> Child:
        if name not in self.children:
            raise RuntimeError(f"no process is called {name}")
        return self.children[name]

    def pick_port(self) -> int:
        taken = {*self.ports.values(), *self.remembered_ports.values()}
        for _ in range(1000):
            port = PORT_RANGE[secrets.randbelow(len(PORT_RANGE))]
            if port not in taken and is_free(port):
                return port
        raise RuntimeError(f"no free port between {PORT_RANGE.start} and {PORT_RANGE.stop}")

    def spawn(self, child: Child) -> None:
        child.again = None
        child.ended.clear()
        with (self.logs / f"{child.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.argv,
                env={**os.environ, **child.env},
                cwd=child.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the whole foreground group; only we order the stop
                preexec_fn=before_exec(child.death_signal, child.unprivileged),  # noqa: PLW1509 - one thread
            )
        child.born = time.monotonic()
        child.started = started_at(child.process.pid)
        self.write_state()

    def reap(self) -> None:
        """Collect who ended (on SIGCHLD) and plan the next life of those who should not have."""
        for child in list(self.children.values()):
            if not child.alive or child.process is None or child.process.poll() is None:
                continue
            child.ended.set()
            if child.wanted and not child.once and not self.closing.is_set():
                if time.monotonic() - child.born >= SETTLED_SECONDS:
                    child.backoff_seconds = FIRST_BACKOFF_SECONDS
                log(f"{child.name} ended with {child.process.returncode}; again in {child.backoff_seconds:.1f} s")
                child.again = asyncio.get_running_loop().call_later(child.backoff_seconds, self.respawn, child)
                child.backoff_seconds = min(2 * child.backoff_seconds, MAX_BACKOFF_SECONDS)
            self.write_state()

    def respawn(self, child: Child) -> None:
        child.restarts += 1
        self.spawn(child)

    async def stop(self, child: Child, with_signal: int) -> None:
        child.wanted = False
        if child.again:
            child.again.cancel()
            child.again = None
        for sent, limit_seconds in ((with_signal, child.stop_limit_seconds), (signal.SIGKILL, KILL_LIMIT_SECONDS)):
            if child.process is None or not child.alive:
                return
            with suppress(ProcessLookupError):
                (os.killpg if sent == signal.SIGKILL else os.kill)(child.process.pid, sent)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.ended.wait(), limit_seconds)
                return
            log(f"{child.name} did not end within {limit_seconds} s of signal {sent}")

    async def stop_all(self) -> None:
        """End everything in the reverse order of its start, each with its limit."""
        for child in reversed(list(self.children.values())):
            await self.stop(child, child.stop_signal)

    async def kill_all(self) -> None:
        """End everything at once; for stacks whose data goes too."""
        for child in self.children.values():
            child.stop_limit_seconds = KILL_LIMIT_SECONDS
        await asyncio.gather(*(self.stop(child, child.death_signal) for child in self.children.values()))

    def state(self) -> dict[str, Any]:
        return {
            "supervisor": {"pid": os.getpid(), "started": started_at(os.getpid())},
            "addresses": self.addresses,
            "ports": {**self.remembered_ports, **self.ports},
            "processes": [child.status() for child in self.children.values()],
        }

    def write_state(self) -> None:
        draft = self.data_dir / "state.json.new"
        draft.write_text(json.dumps(self.state(), indent=1))
        draft.replace(self.data_dir / "state.json")

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer: dict[str, Any]
        try:
            command = json.loads(await reader.readline())
            answer = await getattr(self, f"do_{command.pop('do')}")(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with suppress(ConnectionError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
            writer.close()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def log(message: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), message, file=sys.stderr, flush=True)


async def supervise(data_dir: Path, owned: bool) -> None:
    kill_leftovers(data_dir)
    supervisor = Supervisor(data_dir)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, supervisor.reap)
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop_signal, supervisor.closing.set)
    if owned:
        loop.add_reader(0, lambda: None if os.read(0, 4096) else supervisor.closing.set())
    path = control_socket(data_dir)
    path.unlink(missing_ok=True)
    supervisor.write_state()
    server = await asyncio.start_unix_server(supervisor.answer, path, limit=1 << 20)
    await supervisor.closing.wait()
    await (supervisor.kill_all() if owned else supervisor.stop_all())
    server.close()
    path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--owned", action="store_true")
    arguments = parser.parse_args()
    data_dir = arguments.data.resolve()
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another supervisor owns {data_dir}")
        sockets = socket_folder(data_dir)
        sockets.mkdir(mode=0o700, exist_ok=True)
        if sockets.stat().st_uid != os.getuid():
            sys.exit(f"{sockets} belongs to another user")
        asyncio.run(supervise(data_dir, arguments.owned))
    for folder, is_passing in ((sockets, sockets != data_dir), (data_dir, arguments.owned)):
        if is_passing:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
