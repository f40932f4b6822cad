"""The embedded stack: what it starts, what it survives, and that it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from libs.local import kafka, postgres
from libs.local.process import started_at
from libs.local.stack import SIMULATORS, Stack, StackError, attach, down, owned, up
from libs.local.supervisor import ROOT, read_state, socket_folder

GONE_LIMIT_SECONDS = 60
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); "
    "print('ready', flush=True)\nwhile True: time.sleep(1)",
]
OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
from libs.local.stack import owned
with owned(name="test") as stack:
    stack.start("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    print(stack.data_dir, flush=True)
    time.sleep(600)
"""

SESSION = """
import sys
from pathlib import Path
from tests.support.simulator import SimulatorProcess
from tests.support import forked

folder = Path(sys.argv[1])
(folder / "log").touch()
simulator = SimulatorProcess("mapper", folder)
simulator.start()
child = forked.start("http.server", ["0"], {}, folder / "log")
print(child.pid, simulator.process.pid, flush=True)
sys.stdin.read()
"""


shared = pytest.mark.xdist_group(__name__)  # one stack for all whom any stack serves


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the embedded stack, whatever the environment offers to others."""
    monkeypatch.delenv("ALMONER_KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("ALMONER_KAFKA_BOOTSTRAP_SERVERS", raising=False)
        environment.delenv("DATABASE_URL", raising=False)
        with owned(name="test") as stack:
            yield stack


def processes(data_dir: Path) -> dict[int, str]:
    """pid → start time of the supervisor, its children and theirs (PostgreSQL's workers)."""
    state = read_state(data_dir)
    pids = [state["supervisor"]["pid"]] + [process["pid"] for process in state["processes"] if process["pid"]]
    for pid in pids[1:]:
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {pid: started for pid in pids if (started := started_at(pid))}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + GONE_LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def assert_gone(found: dict[int, str]) -> None:
    assert len(found) > 5, "supervisor, broker, database and its workers"
    until(lambda: all(started_at(pid) != started for pid, started in found.items()), f"still running: {found}")


def value(database_url: str, statement: str) -> object:
    connection = postgres.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def pid_of(stack: Stack, name: str) -> int | None:
    return next(process.pid for process in stack.status() if process.name == name)


def test_owned_stack_leaves_no_process_and_no_folder() -> None:
    with owned(simulators=True, name="test") as stack:
        stack.start("sleeper", SLEEPER)
        found = processes(stack.data_dir)
        assert {process.name for process in stack.status()} == {"broker", "database", *SIMULATORS, "sleeper"}
        assert all(process.alive and process.restarts == 0 for process in stack.status())
        for simulator in SIMULATORS.values():
            assert httpx.get(f"{stack.env[simulator]}/healthz", timeout=20).status_code == 200
    assert_gone(found)
    assert not stack.data_dir.exists()


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert owner.stdout is not None
    data_dir = Path(owner.stdout.readline().strip())
    assert data_dir.name.startswith("almoner-test-")
    return owner, data_dir


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_owned_stack_ends_with_its_parent(end: signal.Signals) -> None:
    owner, data_dir = start_owner()
    with owner:
        found = processes(data_dir)
        os.killpg(owner.pid, end)  # the whole foreground group, as Ctrl-C does
        owner.wait(GONE_LIMIT_SECONDS)
    assert_gone(found)
    until(lambda: not data_dir.exists(), f"{data_dir} is still there")


def test_failed_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_cache(tmp_path / "almoner").write_bytes(b"not what was locked")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(kafka.JarError), owned(name="failed"):
        pass
    assert not list(tmp_path.glob("almoner-failed-*"))


def test_killed_supervisor_takes_everything_along() -> None:
    with owned(name="test") as stack:
        stack.start("sleeper", SLEEPER)
        found = processes(stack.data_dir)
        os.kill(read_state(stack.data_dir)["supervisor"]["pid"], signal.SIGKILL)
        assert_gone(found)
        with pytest.raises(StackError, match="no supervisor answers"):
            stack.status()
    assert not stack.data_dir.exists()


@shared
def test_broker_takes_large_messages_and_serves_consumer_groups(stack: Stack) -> None:
    broker: dict[str, str | int | float | bool] = {"bootstrap.servers": stack.addresses.kafka}
    admin = AdminClient(broker)
    admin.create_topics([NewTopic("test.large.v1", 1, 1)])["test.large.v1"].result(60)
    body = os.urandom(3_900_000)
    producer = Producer({**broker, "acks": "all", "message.max.bytes": kafka.MAX_MESSAGE_BYTES})
    producer.produce("test.large.v1", body)
    assert producer.flush(60) == 0
    group = {"group.id": "test", "group.protocol": "consumer", "auto.offset.reset": "earliest"}
    consumer = Consumer({**broker, **group})
    consumer.subscribe(["test.large.v1"])
    try:
        message = consumer.poll(60)
        assert message is not None
        assert message.value() == body
    finally:
        consumer.close()


@shared
def test_database_is_durable_and_complete(stack: Stack) -> None:
    url = stack.addresses.database_url
    assert postgres.durability(url) == {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    assert value(url, "SHOW server_version_num") >= "180000"  # type: ignore[operator]
    assert value(url, "SHOW listen_addresses") == ""
    assert value(url, "SELECT count(*) > 0 FROM pg_stat_statements") is True
    value(url, "CREATE EXTENSION btree_gist")


@shared
def test_undurable_database_is_refused(stack: Stack) -> None:
    url = stack.addresses.database_url
    value(url, "ALTER DATABASE almoner SET synchronous_commit = off")
    try:
        with pytest.raises(RuntimeError, match="not durable"):
            postgres.wait_until_ready(socket_folder(stack.data_dir) / "pg", 20)
    finally:
        value(url, "ALTER DATABASE almoner RESET synchronous_commit")


@shared
def test_killed_child_starts_again_with_its_data(stack: Stack) -> None:
    url = stack.addresses.database_url
    value(url, "CREATE TABLE survivor AS SELECT 42 AS answer")
    pid = pid_of(stack, "database")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid_of(stack, "database") not in (None, pid), "the database did not come back")
    postgres.wait_until_ready(socket_folder(stack.data_dir) / "pg", 60)
    assert value(url, "SELECT answer FROM survivor") == 42
    state = json.loads((stack.data_dir / "state.json").read_text())
    assert next(process["restarts"] for process in state["processes"] if process["name"] == "database") >= 1


@shared
def test_crash_loop_backs_off_and_is_counted(stack: Stack) -> None:
    stack.start("crasher", [sys.executable, "-c", "print('again'); raise SystemExit(3)"])
    until(lambda: stack.log("crasher").read_text().count("again") >= 3, "no restarts")
    stack.stop("crasher")
    lives = stack.log("crasher").read_text().count("again")
    crasher = next(process for process in stack.status() if process.name == "crasher")
    assert not crasher.alive
    assert crasher.restarts in (lives - 1, lives), "the last life may have ended before its first word"
    waits = [line for line in stack.log("supervisor").read_text().splitlines() if "crasher ended with 3" in line]
    assert [line.rpartition("again in ")[2] for line in waits[:2]] == ["0.2 s", "0.4 s"]
    time.sleep(1)
    assert stack.log("crasher").read_text().count("again") == lives, "stopped means stopped"


@shared
def test_stop_asks_first_and_kill_does_not(stack: Stack) -> None:
    stack._start("stubborn", STUBBORN, {}, stop_limit_seconds=2)
    until(lambda: "ready" in stack.log("stubborn").read_text(), "it did not start")
    with pytest.raises(StackError, match="runs already"):
        stack.start("stubborn", STUBBORN)
    stack.stop("stubborn", kill=True)
    assert "asked" not in stack.log("stubborn").read_text()
    stack.restart("stubborn")
    until(lambda: stack.log("stubborn").read_text().count("ready") == 2, "it did not start again")
    stack.stop("stubborn")
    assert "asked" in stack.log("stubborn").read_text()
    assert pid_of(stack, "stubborn") is None


@shared
def test_services_get_the_addresses(stack: Stack) -> None:
    show = [sys.executable, "-c", "import os, time; print(dict(os.environ), flush=True); time.sleep(600)"]
    stack.start("show", show, env={"ALMONER_TEST_NAME": "given"})
    until(lambda: "given" in stack.log("show").read_text(), "no output")
    stack.stop("show", kill=True)
    shown = stack.log("show").read_text()
    assert stack.addresses.kafka in shown
    assert stack.addresses.database_url in shown


@shared
def test_unknown_program_is_reported(stack: Stack) -> None:
    with pytest.raises(StackError, match="no-such-program"):
        stack.start("missing", ["no-such-program"])


@shared
def test_environment_wins(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALMONER_KAFKA_BOOTSTRAP_SERVERS", stack.addresses.kafka)
    monkeypatch.setenv("DATABASE_URL", stack.addresses.database_url)
    with owned(name="test") as other:
        assert other.addresses == stack.addresses
        assert other.status() == []


def test_detached_stack_lives_until_down_and_remembers(tmp_path: Path) -> None:
    data_dir = tmp_path / ("a folder whose path is longer than a socket's may be " * 2)
    assert attach(data_dir) is None
    first = up(data_dir, simulators=False)
    try:
        found = processes(data_dir)
        ports = {name: first.free_port(name) for name in ("broker", "controller", "funds")}
        value(first.addresses.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        again = up(data_dir, simulators=False)
        assert again.addresses == first.addresses
        assert processes(data_dir).keys() & found.keys() >= {process.pid for process in first.status()}
    finally:
        down(data_dir)
    assert_gone(found)
    assert attach(data_dir) is None
    down(data_dir)  # again: nothing to do

    second = up(data_dir, simulators=False)
    try:
        assert {name: second.free_port(name) for name in ports} == ports
        assert value(second.addresses.database_url, "SELECT answer FROM kept") == 42
    finally:
        down(data_dir)
    assert data_dir.exists()
    assert not socket_folder(data_dir).exists()


@shared
def test_a_taken_port_is_replaced(stack: Stack) -> None:
    assert stack.free_port("one") == stack.free_port("one")
    assert stack.free_port("one") != stack.free_port("two")


def copy_cache(cache: Path) -> Path:
    """A full cache of jars in another folder; the first of them, for the test to spoil."""
    folder = cache / f"kafka-{kafka.VERSION}"
    folder.mkdir(parents=True)
    return [Path(shutil.copy(jar, folder)) for jar in kafka.jars()][0]  # noqa: RUF015 - all must be copied


def test_wrong_jar_is_refused(tmp_path: Path) -> None:
    victim = copy_cache(tmp_path)
    assert [path.name for path in kafka.jars(tmp_path)] == list(kafka.read_lock())
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(kafka.JarError, match=victim.name):
        kafka.jars(tmp_path)


def test_wrong_download_never_reaches_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jars.lock").write_text(f"{'0' * 64}  some.jar\n")

    def deliver(scratch: Path) -> list[Path]:
        (scratch / "some.jar").write_bytes(b"not what was locked")
        return [scratch / "some.jar"]

    monkeypatch.setattr(kafka, "download", deliver)
    with pytest.raises(kafka.JarError, match=r"some\.jar"):
        kafka.jars(tmp_path / "cache", tmp_path / "jars.lock")
    assert not list((tmp_path / "cache").rglob("*.jar"))


def test_full_cache_needs_no_resolver() -> None:
    kafka.jars()
    script = "import sys; from libs.local import kafka; kafka.jars(); sys.exit('jgo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the fixtures' own clean-up must do")
@pytest.mark.parametrize("end", ["killed", "with nobody to end them"])
def test_services_and_simulators_which_a_session_of_tests_has_started_end_with_it(tmp_path: Path, end: str) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert session.stdin is not None
        assert session.stdout is not None
        started = [int(pid) for pid in session.stdout.readline().split()]
        assert len(started) == 2
        assert all(started_at(pid) for pid in started)
        until(lambda: "Serving" in (tmp_path / "log").read_text(), "its service")
        os.kill(started[0], signal.SIGSTOP)
        if end != "killed":
            session.stdin.close()  # which is what a worker sees whose controller was killed
            session.wait(30)
    finally:
        session.kill()
        session.wait()
    until(lambda: not any(started_at(pid) for pid in started), "their end")
