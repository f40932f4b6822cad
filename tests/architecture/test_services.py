"""The registry is what the services wire: topics, types, readers and writers."""

import ast
import base64
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from libs.common.commands import with_common
from libs.common.consumer import Routes
from libs.common.contracts.registry import TOPICS, Topic
from libs.common.db import Database
from libs.common.service import Parts

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name for path in (ROOT / "services").glob("*/wiring.py"))
URL = "postgresql+psycopg2://nobody@127.0.0.1:1/none"  # wiring opens no connection

# What each service must be told, beyond what all are told.
NEEDED: dict[str, dict[str, Any]] = {
    "allocation": {"pbms_url": URL},
    "resolution": {"mapper_url": "http://mapper.example.org"},
    "notifications": {
        **dict.fromkeys(("warehouse_channel", "agency_channel", "beneficiary_channel"), "none"),
        "novu_url": "http://novu.example.org",  # whatever is configured is wired
        "smtp_host": "mail.example.org",
        "file_folder": "notices",
    },
    "funds": {
        "banks": {"BANK": {"adapter": "full", "url": "http://bank.example.org"}},
        "sponsors": {"default": {"bank": "BANK", "account": "1"}},
    },
}


def wired(service: str) -> Parts:
    settings = import_module(f"services.{service}.config").Settings(
        database_url=URL,
        seal_keys="k1:" + base64.b64encode(bytes(32)).decode(),
        token_key="a token key for tests only",
        **NEEDED.get(service, {}),
    )
    parts: Parts = import_module(f"services.{service}.wiring").wire(settings, Database(URL, service))
    return parts


def routes(service: str) -> Routes:
    parts = wired(service)
    return with_common(service, parts.routes, parts.stages)


def read_by_services(topic: Topic) -> list[str]:
    return [name for name in topic.consumers if name != "publishers"]


def test_every_service_of_the_registry_exists() -> None:
    named = {topic.owner for topic in TOPICS} | {name for topic in TOPICS for name in read_by_services(topic)}
    assert named == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_the_topics_the_registry_says(service: str) -> None:
    assert routes(service).topics == sorted(topic.name for topic in TOPICS if service in topic.consumers)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_handles_only_types_which_travel_on_their_topic(service: str) -> None:
    travels = {(topic.name, model) for topic in TOPICS for model in topic.types}
    assert routes(service).handlers.keys() <= travels


@pytest.mark.parametrize("service", SERVICES)
def test_what_others_publish_comes_in_by_a_door(service: str) -> None:
    """A fault in what others publish is answered; it is never a dead letter."""
    assert set(routes(service).doors) == {topic.name for topic in TOPICS if topic.door and topic.owner == service}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_type_that_only_services_read_is_handled(topic: Topic) -> None:
    readers = read_by_services(topic)
    if len(readers) < len(topic.consumers) or any(topic.name in routes(reader).doors for reader in readers):
        return  # other systems read the rest; a door looks at every message
    handled = {model for reader in readers for name, model in routes(reader).handlers if name == topic.name}
    assert {model.__name__ for model in topic.types} - {model.__name__ for model in handled} == set()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_emits_every_type_of_its_topics(service: str) -> None:
    """Read from its source: a type which nothing there names is one that readers wait for in vain."""
    named = {
        name
        for path in [*(ROOT / "services" / service).rglob("*.py"), ROOT / "libs" / "common" / "commands.py"]  # for all services
        for node in ast.walk(ast.parse(path.read_text()))
        if (name := getattr(node, "attr", None) or getattr(node, "id", None))
    }
    own = [topic for topic in TOPICS if topic.owner == service and topic.consumers != (service,)]
    assert {model.__name__ for topic in own for model in topic.types} - named == set()


@pytest.mark.parametrize("service", SERVICES)
def test_kinds_of_work_and_jobs_have_names_of_their_own(service: str) -> None:
    """Operators pause a stage by its name, whether it is a kind of call or a job."""
    parts = wired(service)
    names = [callout.kind for callout in parts.callouts] + [job.name for job in parts.jobs]
    assert len(names) == len(set(names))
