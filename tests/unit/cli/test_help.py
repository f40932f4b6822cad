"""Every verb's help ends with examples, and each of them is something the verb understands."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from libs.cli.app import app
from libs.cli.context import SERVICES
from libs.local.supervisor import ROOT

HEAD = "\b\nExamples:\n"


def verbs(group: Any, name: str = "almoner") -> Iterator[tuple[str, Any]]:
    for one, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{name} {one}")
        else:
            yield f"{name} {one}", command


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_examples_which_parse(name: str) -> None:
    command = VERBS[name]
    epilog = command.epilog or ""
    assert epilog.startswith(HEAD), f"{name} has no examples"
    lines = [line.strip() for line in epilog.removeprefix(HEAD).splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        verb = shlex.split(name)
        assert words[: len(verb)] == verb, line
        with command.make_context(name, words[len(verb) :]) as context:  # raises what the user would be told
            assert context.command is command


def test_every_verb_that_changes_something_prints_for_programs_as_well() -> None:
    """Whoever changes something says on whose behalf. Of zones and notices it is said in text alone."""
    options = {name.removeprefix("almoner "): {one.name for one in command.params} for name, command in VERBS.items()}
    changing = {name for name, given in options.items() if "who" in given} | {"submit"}
    assert {"retry", "settle-unknown", "statement submit", "dlq discard", "tick"} <= changing
    assert [name for name in sorted(changing) if "output" not in options[name]] == []


def test_an_example_with_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        VERBS["almoner retry"].make_context("retry", ["--no-such-option"])


def test_nobody_is_paid_again_without_a_reason() -> None:
    with pytest.raises(Exception, match="why"):
        VERBS["almoner repay"].make_context("repay", ["RUN-1", "--reversed", "--yes"])


def complete(words: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "libs.cli"],
        cwd=ROOT,
        env={
            **os.environ,
            "_ALMONER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
            **env,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_shell_completes_verbs_services_and_stages_without_a_stack() -> None:
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "ALMONER_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert complete("almoner fail", **nowhere) == ["failures"]
    assert complete("almoner pause ", **nowhere) == list(SERVICES)
    assert complete("almoner pause funds di", **nowhere) == ["dispatch"]
    assert complete("almoner dlq re", **nowhere) == ["redrive"]


def test_completing_loads_nothing_that_is_slow() -> None:
    """Whoever presses Tab waits for all that `app` imports."""
    code = "import sys; import libs.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"pydantic", "confluent_kafka", "psycopg2", "sqlalchemy", "httpx", "rich"}
