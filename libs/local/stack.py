"""The embedded stack: broker, database, simulators and any services, under one supervisor.

    with owned() as stack:                      # a temporary data folder; ends with this process, however it ends
        stack.start("funds", [sys.executable, "-m", "services.funds", "run"])

    up(Path(".almoner/up"))                     # detached, until down(); attach() finds it again

Addresses in the environment win: `ALMONER_KAFKA_BOOTSTRAP_SERVERS` and `DATABASE_URL`, where set, are used as they are
and that part isn't started.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.local import kafka, postgres
from libs.local.process import started_at
from libs.local.supervisor import ROOT, control_socket, kill_leftovers, read_state, socket_folder

SUPERVISOR = [sys.executable, "-m", "libs.local.supervisor"]
READY_LIMIT_SECONDS = 60.0
STOP_LIMIT_SECONDS = 30.0
KAFKA_VARIABLE = "ALMONER_KAFKA_BOOTSTRAP_SERVERS"
DATABASE_VARIABLE = "DATABASE_URL"
SIMULATORS = {
    "bank": "ALMONER_BANK_URL",
    "mapper": "ALMONER_MAPPER_URL",
    "novu": "ALMONER_NOVU_URL",
    "mail": "ALMONER_MAIL_URL",
}


class StackError(RuntimeError):
    """The stack could not do what it was asked; the message says what to look at."""


@dataclass(frozen=True)
class Addresses:
    kafka: str  # bootstrap servers, host:port
    database_url: str  # SQLAlchemy URL; embedded: the superuser, database `almoner`
    bank_url: str = ""  # empty without simulators
    mapper_url: str = ""
    novu_url: str = ""
    mail_url: str = ""  # of the mail server's admin, who knows its port


@dataclass(frozen=True)
class ProcessStatus:
    name: str
    pid: int | None  # None while it isn't running
    alive: bool
    restarts: int


class Stack:
    """A running stack: where it is, and what runs in it. Safe to use from several threads and processes."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()

    @property
    def addresses(self) -> Addresses:
        return Addresses(**self._ask("status")["addresses"])

    @property
    def env(self) -> dict[str, str]:
        """The variables that lead a service to this stack; `start` sets them by itself."""
        addresses = self.addresses
        found = {KAFKA_VARIABLE: addresses.kafka, DATABASE_VARIABLE: addresses.database_url}
        urls = {variable: str(getattr(addresses, f"{name}_url")) for name, variable in SIMULATORS.items()}
        return found | {variable: url for variable, url in urls.items() if url}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start a process that is kept running until it is stopped. `cwd` is the root of the checkout by default.

        `env` is added to the supervisor's own environment and to `self.env`.
        """
        self._start(name, argv, {**self.env, **(env or {})}, cwd)

    def stop(self, name: str, kill: bool = False) -> None:
        """Stop a process and wait for its end: SIGTERM, then SIGKILL after its limit; SIGKILL at once with `kill`."""
        self._ask("stop", name=name, kill=kill)

    def restart(self, name: str) -> None:
        """Stop a process and start it again as it was started before; also one that is stopped."""
        self._ask("restart", name=name)

    def status(self) -> list[ProcessStatus]:
        """All processes, in the order of their first start."""
        processes = self._ask("status")["processes"]
        return [ProcessStatus(p["name"], p["pid"], p["alive"], p["restarts"]) for p in processes]

    def free_port(self, name: str) -> int:
        """A free TCP port, the same each time for the same name, also in the stack's next life if it is still free."""
        port: int = self._ask("port", name=name)["port"]
        return port

    def log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"

    def _start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None, **more: Any
    ) -> dict[str, Any]:
        spec = {"name": name, "argv": list(argv), "env": dict(env), "cwd": str(cwd or ROOT)}
        return self._ask("start", **spec, **more)

    def _run(self, name: str, argv: Sequence[str], **more: Any) -> None:
        if self._start(name, argv, {}, once=True, **more)["code"] != 0:
            raise StackError(f"{name} failed:\n{tail(self.log(name))}")

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command to the supervisor. Raises StackError when it refuses, or is not there."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(READY_LIMIT_SECONDS)
                connection.connect(str(control_socket(self.data_dir)))
                connection.sendall(json.dumps({"do": command, **arguments}).encode() + b"\n")
                with connection.makefile() as answers:
                    answer: dict[str, Any] = json.loads(answers.readline() or '{"error": "it ended"}')
        except OSError as error:
            raise StackError(f"no supervisor answers in {self.data_dir}: {error}") from error
        if "error" in answer:
            raise StackError(f"{command} {arguments.get('name', '')}: {answer['error']}")
        return answer


@contextmanager
def owned(*, simulators: bool = False, name: str = "stack", parent: Path | None = None) -> Iterator[Stack]:
    """A stack in a temporary folder (in `parent`) that ends with this process, also when it is killed; nothing is left behind."""
    data_dir = Path(tempfile.mkdtemp(prefix=f"almoner-{name}-", dir=parent))
    supervisor = None
    try:
        supervisor = spawn_supervisor(data_dir, owned=True)
        stack = Stack(data_dir)
        compose(stack, supervisor, simulators)
        yield stack
    finally:
        if supervisor:
            assert supervisor.stdin is not None
            supervisor.stdin.close()  # the one way in which an owned stack ends
            try:
                supervisor.wait(STOP_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()
        clean_up(data_dir)


def up(data_dir: Path, *, simulators: bool = True) -> Stack:
    """Start a detached stack, or what is missing of the one that runs already. Ends what it began if it fails."""
    if stack := attach(data_dir):
        compose(stack, None, simulators)
        return stack
    stack = Stack(data_dir)
    supervisor = spawn_supervisor(stack.data_dir, owned=False)
    try:
        compose(stack, supervisor, simulators)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise
    return stack


def down(data_dir: Path) -> None:
    """Stop a detached stack in the reverse order of its start; the data stays. Does nothing if none runs."""
    if attach(data_dir):
        supervisor = read_state(data_dir)["supervisor"]
        os.kill(supervisor["pid"], signal.SIGTERM)
        while started_at(supervisor["pid"]) == supervisor["started"]:
            time.sleep(0.02)
    kill_leftovers(data_dir)


def attach(data_dir: Path) -> Stack | None:
    """The detached stack that runs in this folder, or None."""
    stack = Stack(data_dir)
    if not (stack.data_dir / "state.json").exists():
        return None
    try:
        stack.status()
    except StackError:
        return None
    return stack


def spawn_supervisor(data_dir: Path, *, owned: bool) -> subprocess.Popen[bytes]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data_dir / "logs").mkdir(exist_ok=True)
    with (data_dir / "logs" / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [*SUPERVISOR, "--data", str(data_dir), *(["--owned"] if owned else [])],
            cwd=ROOT,
            stdin=subprocess.PIPE if owned else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def compose(stack: Stack, supervisor: subprocess.Popen[bytes] | None, simulators: bool) -> None:
    """Start broker and database side by side, then the simulators; whatever runs already is left alone."""
    deadline = time.monotonic() + STOP_LIMIT_SECONDS
    while attach(stack.data_dir) is None:
        if (supervisor and supervisor.poll() is not None) or time.monotonic() > deadline:
            raise StackError(f"the supervisor did not start:\n{tail(stack.log('supervisor'))}")
        time.sleep(0.01)
    running = {process.name for process in stack.status()}
    pool = ThreadPoolExecutor()
    try:
        broker = pool.submit(start_broker, stack, running)
        database = pool.submit(start_database, stack, running)
        stack._ask("publish", kafka=broker.result(), database_url=database.result())
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C nobody waits for a start that is given up
    if simulators:
        with ThreadPoolExecutor() as side_by_side:
            urls = side_by_side.map(lambda name: start_simulator(stack, name, running), SIMULATORS)
            stack._ask("publish", **{f"{name}_url": url for name, url in zip(SIMULATORS, urls, strict=True)})


def start_broker(stack: Stack, running: set[str]) -> str:
    """Bootstrap servers of the environment's broker, or of ours once it is ready."""
    if given := os.environ.get(KAFKA_VARIABLE):
        return given
    port = stack.free_port("broker")
    if "broker" not in running:
        class_path = kafka.jars()
        folder = stack.data_dir / "broker"
        properties = kafka.write_properties(folder, port, stack.free_port("controller"))
        if not (folder / "logs" / "meta.properties").exists():
            stack._run("broker-format", kafka.format_argv(class_path, properties))
        stack._start("broker", kafka.server_argv(class_path, properties), {}, stop_limit_seconds=20)
    wait(stack, "broker", lambda limit: kafka.wait_until_ready(port, limit))
    return f"127.0.0.1:{port}"


def start_database(stack: Stack, running: set[str]) -> str:
    """URL of the environment's database, or of ours once it is ready and known to be durable."""
    if given := os.environ.get(DATABASE_VARIABLE):
        return given
    folder, sockets = stack.data_dir / "database", socket_folder(stack.data_dir) / "pg"
    if "database" not in running:
        if not (folder / "PG_VERSION").exists():
            # SIGTERM when it is given up: it takes its children and their shared memory along.
            stack._run("database-init", postgres.initdb_argv(folder), unprivileged=True, death_signal=signal.SIGTERM)
        stack._start(
            "database",
            postgres.server_argv(folder, sockets),
            {},
            unprivileged=True,
            stop_signal=signal.SIGINT,  # "fast": SIGTERM would wait for every client to leave
            death_signal=signal.SIGQUIT,  # ends its own children and shared memory at once, which SIGKILL would leave
            stop_limit_seconds=20,
        )
    wait(stack, "database", lambda limit: postgres.wait_until_ready(sockets, limit))
    return postgres.url(sockets)


def start_simulator(stack: Stack, name: str, running: set[str]) -> str:
    """URL of a simulator, once it answers."""
    port = stack.free_port(name)
    url = f"http://127.0.0.1:{port}"
    if name not in running:
        data = stack.data_dir / name
        data.mkdir(exist_ok=True)
        stack._start(name, [sys.executable, "-m", f"libs.local.{name}", "--data", str(data), "--port", str(port)], {})

    def healthy(limit_seconds: float) -> None:
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=1):  # noqa: S310
                return
            time.sleep(0.02)
        raise TimeoutError(f"{url} is not healthy")

    wait(stack, name, healthy)
    return url


def wait(stack: Stack, name: str, ready: Callable[[float], None]) -> None:
    """Wait until `ready` returns; it raises TimeoutError after the seconds given. Gives up early on a crash loop."""
    deadline = time.monotonic() + READY_LIMIT_SECONDS
    while True:
        try:
            return ready(1.0)
        except TimeoutError as error:
            restarts = next(process.restarts for process in stack.status() if process.name == name)
            if restarts > 2 or time.monotonic() > deadline:
                raise StackError(f"{name} did not become ready ({error}):\n{tail(stack.log(name))}") from error


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else f"no {log}"


def clean_up(data_dir: Path) -> None:
    """What a supervisor that was itself killed could not do."""
    if data_dir.exists():
        kill_leftovers(data_dir)
        shutil.rmtree(socket_folder(data_dir), ignore_errors=True)
        shutil.rmtree(data_dir, ignore_errors=True)
