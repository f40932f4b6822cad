"""docs/cli.md is true: its commands run in order on real services, and say what it says that they say.

With ALMONER_WRITE_TRANSCRIPT=1 (`make transcript`) the document is written anew instead, from what the commands say now.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import timedelta
from difflib import unified_diff

import pytest
import typer

from libs.cli import sample
from libs.cli.app import app
from libs.common.clock import utc_now
from libs.common.contracts.ingestion import BatchCut
from libs.local import mt940
from libs.local.reference import Place, Reference
from libs.local.supervisor import ROOT
from tests.faults.bookkeeping import idle
from tests.integration.cli.conftest import CURRENCY, SPONSOR, TOKEN, Town, places
from tests.support import forked

DOCUMENT = ROOT / "docs" / "cli.md"
WRITE = "ALMONER_WRITE_TRANSCRIPT"
OF_A_STACK = {
    "up",
    "down",
    "demo",
    "demo-goods",
    "bench",
    "simulate people",
    "simulate places",
    "simulate reverse",
    "simulate lost-answer",
}  # of a stack of their own
PEOPLE = list(sample.people(20))


@pytest.fixture
def limits() -> dict[str, str]:
    return {"ALMONER_RESOLUTION_RESOLVE_MAX_ATTEMPTS": "2", "ALMONER_RESOLUTION_RESOLVE_BACKOFF_FIRST_SECONDS": "0.05"}


# --- What happens between the commands: the document's comments -------------------------------------------------------


class Stage:
    """The town, and what the story's comments do to it or wait for."""

    def __init__(self, town: Town, reference: Reference) -> None:
        self.town = town
        self.reference = reference
        today = utc_now().date()
        self.variables = {"TODAY": today.isoformat(), "NEXT_WEEK": (today + timedelta(days=7)).isoformat()}
        five = {"number_of_disbursements": 5, "number_of_beneficiaries": 4, "total": "20000.00"}
        (town.folder / "five.json").write_text(json.dumps(five))
        sample.write(town.folder / "people.csv", 20)
        sample.write(town.folder / "three.csv", 3)
        sample.write_goods(town.folder / "rice.csv", 3)
        people = {person for _, person, _, _ in sample.people(3)}
        self.town.mapper.put_people((person, sample.address(person)) for person in sorted(people))

    def directions(self) -> dict[str, Callable[[], object]]:
        town = self.town
        return {
            "the mapper knows all but two of twenty people": lambda: self.known(PEOPLE[:18]),
            "resolution reads no more": lambda: town.world.until(self.resolution_paused),
            "all but resolution have done their part": self.others_are_done,
            "one of the two is added to the mapper": lambda: self.known(PEOPLE[18:19]),
            "nineteen are confirmed": lambda: self.until("funds", "SELECT 1 FROM ops_envelopes WHERE confirmed = 19"),
            "RUN-1 is settled": self.settled_and_told,
            "RUN-2 has arrived at funds": self.arrived,
            "the mapper is away": lambda: town.mapper.add_fault("down"),
            "the mapper was asked in vain": self.call_in_error,
            "it was asked in vain again": self.call_in_error,
            "the mapper is back": town.mapper.delete_faults,
            "the plain bank blocks and its answer is lost": lambda: town.bank.add_fault(
                "timeout_after", profile="example", path="/block_funds", count=1
            ),
            "the block is unknown": self.unknown_block,
            "the bank gives one payment of RUN-3 back": self.give_back,
            "it is paid": lambda: self.until(
                "funds",
                "SELECT 1 FROM ops_repayments r JOIN ops_envelopes e USING (envelope_id) WHERE e.confirmed = 3 AND e.state = 'SETTLED'",
            ),
            "a message nobody can read comes to resolution": self.broken_message,
            "it is set aside anew": lambda: self.until("resolution", "SELECT 1 FROM ops_dead_letters WHERE id = 2"),
            "the bank writes a line that is nobody's": self.foreign_line,
            "registry and PBMS know the season, but no agency of the fourth ward": lambda: self.season(sample.agencies()[:3]),
            "RICE-1 is planned": lambda: self.until("allocation", "SELECT 1 FROM ops_envelopes WHERE planned = 2 AND held = 1"),
            "RICE-1 is announced": lambda: self.until("allocation", "SELECT 1 FROM ops_envelopes WHERE allocated = 2"),
            "the cooperative of the fourth ward opens": lambda: self.season(sample.agencies()[:4]),
            "all of RICE-1 are told": self.all_told,
            "the statement is reconciled": lambda: self.until(
                "funds", "SELECT 1 FROM ops_statements WHERE number = '900' AND exceptions = 1 AND reconciled_at IS NOT NULL"
            ),
        }

    def until(self, service: str, query: str) -> None:
        self.town.world.until(lambda: self.town.world.sql(service, query), what=query)

    def known(self, people: list[tuple[str, str, str, int]]) -> None:
        self.town.mapper.put_people((person, sample.address(person)) for _, person, _, _ in people)

    def resolution_paused(self) -> bool:
        return any(process.logged("consumption paused") for process in self.town.world.processes)

    def others_are_done(self) -> None:
        self.until("funds", "SELECT 1 FROM ops_blocks WHERE state = 'BLOCKED'")
        self.town.world.until(lambda: idle(self.town.world))  # has said the position, too
        # Ticks come with each minute of the clock: none may while lag is shown.
        self.until("scheduler", "SELECT 1 FROM jobs HAVING min(next_due_at) > clock_timestamp() + interval '15 s'")
        self.town.world.until(lambda: self.behind() == {"resolution"}, what="all others having consumed")

    def behind(self) -> set[str]:
        return {row["service"] for row in self.town.json("lag") if row["lag"]}

    def settled_and_told(self) -> None:
        self.until("funds", "SELECT 1 FROM ops_envelopes WHERE state = 'SETTLED'")
        self.until("notifications", "SELECT 1 FROM ops_notices HAVING count(*) FILTER (WHERE state = 'SENT') = 19")

    def arrived(self) -> None:
        """All of it: that there is an envelope, and its batch, come from two sides."""
        self.until("funds", "SELECT 1 FROM ops_work WHERE kind = 'check' AND state = 'PENDING'")
        batch = "SELECT 1 FROM ops_instructions JOIN ops_envelopes USING (envelope_id) WHERE publisher_envelope_id = 'RUN-2'"
        self.until("funds", batch)

    def call_in_error(self) -> None:
        self.until("resolution", "SELECT 1 FROM ops_work WHERE state = 'ERROR'")
        [row] = self.town.world.sql("resolution", "SELECT subject FROM ops_work WHERE state = 'ERROR'")
        self.variables["CALL"] = row.subject

    def give_back(self) -> None:
        self.until("funds", "SELECT 1 FROM ops_envelopes WHERE publisher_envelope_id = 'RUN-3' AND state = 'SETTLED'")
        [row] = self.town.world.sql(
            "funds",
            """SELECT reference FROM ops_payments p JOIN ops_envelopes e USING (envelope_id)
               WHERE e.publisher_envelope_id = 'RUN-3' AND p.disbursement_id = 'DR26-11-0000001'""",
        )
        self.town.bank.reverse("full", references=[row.reference], reason="ACCOUNT CLOSED")
        self.until("funds", "SELECT 1 FROM ops_envelopes WHERE reversed = 1")

    def unknown_block(self) -> None:
        self.until("funds", "SELECT 1 FROM ops_unknown")
        [row] = self.town.world.sql("funds", "SELECT envelope_id FROM ops_unknown")
        self.variables["ENVELOPE"] = str(row.envelope_id)
        [block] = self.town.bank.blocks("example")
        self.variables["REFERENCE"] = block["block_reference_no"]

    def broken_message(self) -> None:
        headers = {"ce_specversion": "1.0", "ce_id": "broken-1", "ce_source": "test", "ce_type": BatchCut.TYPE}
        self.town.world.publish_raw(
            "ingestion.batches.v1", b"key", b'{"broken": true}', {**headers, "content-type": "application/json"}
        )
        self.until("resolution", "SELECT 1 FROM ops_dead_letters")

    def season(self, agencies: list[Place]) -> None:
        self.reference.put_people((person, *sample.zone(person)) for _, person, _, _ in PEOPLE)
        for place in (sample.warehouses()[0], sample.warehouses()[-1]):  # both of the first county
            self.reference.put_warehouse(place)
        for place in agencies:
            self.reference.put_agency(place)

    def all_told(self) -> None:
        self.until("allocation", "SELECT 1 FROM ops_envelopes WHERE allocated = 3")
        of_rice = "SELECT notice_id FROM ops_notices WHERE kind = 'AGENCY' AND subject = '3' AND state = 'SENT'"
        self.until("notifications", of_rice)
        self.until("notifications", "SELECT 1 FROM ops_notices WHERE kind = 'AGENCY' AND subject = '4' AND state = 'SENT'")
        pending = "SELECT 1 WHERE NOT EXISTS (SELECT FROM ops_notices WHERE state = 'PENDING')"
        self.until("notifications", pending)
        [row] = self.town.world.sql("notifications", of_rice)
        self.variables["NOTICE"] = str(row.notice_id)

    def foreign_line(self) -> None:
        text = mt940.statement(
            reference="STMT1",
            account=SPONSOR,
            number=900,
            currency=CURRENCY,
            opening_minor=100_000,
            closing_minor=100_000 - 2_500,
            day=utc_now().date(),  # the last of the account, as its number says
            lines=[mt940.Line("D", 2_500, "CHARGES", "FEE-1", ["Account keeping"])],
        )
        (self.town.folder / "statement.sta").write_text(text)

    def run(self, command: str) -> str:
        """A command as somebody types it; what it says, and how it ends if not well."""
        words = [self.variables.get(word[1:], word) if word.startswith("$") else word for word in shlex.split(command)]
        words = [re.sub(r"\$([A-Z_]+)", lambda found: self.variables[found[1]], word) for word in words]
        assert words[0] == "almoner", command
        town = self.town
        env = {
            **town.world.env,
            "LOGNAME": "ann",
            "ALMONER_HOME": str(town.folder / "nothing-is-up"),
            "ALMONER_STATEMENT_URL": f"{town.world.processes[1].http_url}/statements",
            "ALMONER_STATEMENT_TOKEN": TOKEN,
        }
        done = forked.run("libs.cli", words[1:], env, town.folder, together=True)
        return done.stdout + (f"[exit code {done.returncode}]\n" if done.returncode else "")


# --- What is never twice the same -------------------------------------------------------------------------------------


class Plain:
    """Takes out of what was said what is never twice the same. UUIDs keep their identity over the whole story."""

    def __init__(self, prefix: str, next_week: str) -> None:
        self.uuids: dict[str, str] = {}
        self.rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
            (re.escape(prefix), ""),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", self.uuid),
            (r" … \d\d:\d\d:\d\d", ""),  # a step that took more than a second
            (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?", "2026-11-02 08:00:00"),
            (next_week, "next week"),
            (r"\b20\d\d-\d\d-\d\d\b(?! 08:00:00)", "2026-11-02"),
            ("next week", "2026-11-09"),
            (r"127\.0\.0\.1:\d+", "127.0.0.1:9999"),
            (r"(?m)(^ *\d+\.\d s  .*\n)+(?= *\d+\.\d s  )", ""),  # of progress, the last
            (r"(?m)^ *\d+\.\d s  (.*); lag [\d,]+.*$", r"   1.0 s  \1; lag 0"),
            (r"(\tUTC\t)–(?=\t)", r"\g<1>2026-11-02 08:00:00"),  # of a job, whether it has ticked yet
            (r"(?m)^(partition|message_offset) ( +)\d+$", r"\1 \g<2>0"),  # by the hash of a key
            (r"\b00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\b", "00-…-01"),  # a trace
        ]

    def uuid(self, found: re.Match[str]) -> str:
        return self.uuids.setdefault(found[0], f"01970000-0000-7000-8000-{len(self.uuids) + 1:012}")

    def __call__(self, text: str) -> str:
        for pattern, instead in self.rules:
            text = re.sub(pattern, instead, text)
        return "".join(aligned(text.splitlines()))


def aligned(lines: list[str]) -> Iterator[str]:
    """Tables, which are separated by tabs where there is no terminal, in columns."""
    rows: list[list[str]] = []
    for line in [*lines, ""]:
        if "\t" in line:
            rows.append(line.split("\t"))
            continue
        columns = max(map(len, rows), default=0)
        widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(columns)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() + "\n"
        rows = []
        yield f"{line.rstrip()}\n"


# --- The story --------------------------------------------------------------------------------------------------------

PIECES = re.compile(r"<!-- (?P<direction>.*?) -->|```console\n(?P<block>.*?)```", re.DOTALL)


def test_every_verb_is_in_the_document() -> None:
    text = DOCUMENT.read_text()
    group = typer.main.get_command(app)
    verbs = {
        f"{name} {one}" if hasattr(command, "commands") else name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        for one in getattr(command, "commands", [""])
    }
    story, elsewhere = text.split("\n## Proven elsewhere\n")
    assert [verb for verb in sorted(verbs - OF_A_STACK) if f"\n$ almoner {verb}" not in story] == []
    assert [verb for verb in sorted(OF_A_STACK) if f"`{verb}`" not in elsewhere] == []


def test_the_story_of_one_person_tells_nothing_of_what_was_done_to_others() -> None:
    [_, after] = DOCUMENT.read_text().split("\n$ almoner timeline DR26-11-0000019\n")
    story = after.split("\n$ ")[0]
    assert "has sent payments to the bank: instruction 2" in story
    for of_others in ("instruction 1", "18 payments", "given held money back", "ReleaseRequested"):
        assert of_others not in story


@pytest.fixture
def reference(town: Town) -> Iterator[Reference]:
    """The town has allocation and notifications, too."""
    with places(town.world, town.folder) as found:
        for process in town.world.processes:
            town.world.until(process.ready, what=f"{process.name} being ready")
        yield found


def test_the_story_of_the_command_line(town: Town, reference: Reference) -> None:
    stage = Stage(town, reference)
    plain = Plain(town.world.prefix, stage.variables["NEXT_WEEK"])
    directions = stage.directions()

    def told(found: re.Match[str]) -> str:
        if found["direction"] is not None:
            directions[found["direction"]]()
            return found[0]
        lines = []
        for command in [line for line in found["block"].splitlines() if line.startswith("$ ")]:
            said = plain(stage.run(command.removeprefix("$ "))).rstrip("\n")
            lines.append(f"{command}\n{said}".rstrip())
        block = "\n".join(lines)
        if not os.environ.get(WRITE):
            written = found["block"].splitlines()
            assert block.splitlines() == written, "\n".join(unified_diff(written, block.splitlines(), "written", "said"))
        return f"```console\n{block}\n```"

    text = DOCUMENT.read_text()
    written = PIECES.sub(told, text)
    if os.environ.get(WRITE):
        DOCUMENT.write_text(written)
