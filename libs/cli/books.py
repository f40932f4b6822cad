"""`almoner books`: proves that every unit of money is somewhere, three times: from the rows, the bank's lines, the events.

    blocked = waiting + in_flight + unknown + held + dispatched + releasing + released
    dispatched = outstanding + confirmed + reversed

and of goods: declared = planned + allocated + held + cancelled, in whatever they are counted in.

Where it does not hold, the row, line or event is named.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from libs.cli import proof_events, proof_goods, proof_lines, proof_rows
from libs.cli.context import NotReachable, Refused, Views, as_dict, find_envelope, money, plural, print_json, quantity, unit_of
from libs.cli.evidence import ENDS, PARTS, POSITION, STATE_OF, Evidence
from libs.cli.ledger import KINDS, Ledger

SHOWN = 20  # findings of one kind
QUIET_SECONDS = 15.0
SAYING = ("ingestion", "allocation", "funds")  # whose events are compared

PROOFS: dict[str, tuple[Callable[[Evidence], Iterator[str]], ...]] = {
    "database": (
        proof_rows.identities,
        proof_rows.counters_are_rows,
        proof_rows.instructions_are_payments,
        proof_rows.agency_payments_are_shares,
        proof_rows.further_blocks_are_repayments,
        proof_rows.amounts_are_as_submitted,
        proof_rows.one_place_each,
        proof_rows.nobody_is_lost,
    ),
    "statements": (
        proof_lines.confirmed_has_its_line,
        proof_lines.reversed_has_its_line,
        proof_lines.line_has_its_payment,
    ),
    "events": (
        proof_events.blocks_and_releases_are_events,
        proof_events.states_have_their_event,
        proof_events.events_have_their_state,
        proof_events.settlement_is_the_position,
    ),
}


@dataclass
class Report:
    """`findings`: proof -> what does not hold. Without one the books balance."""

    envelopes: list[dict[str, Any]] = field(default_factory=list)
    goods: list[Any] = field(default_factory=list)  # rows of proof_goods.counters
    findings: dict[str, list[str]] = field(default_factory=lambda: {"database": [], "statements": [], "events": []})
    notes: list[str] = field(default_factory=list)
    at_rest: bool = True  # else something moves, or is on the way
    may_come: set[UUID] = field(default_factory=set)  # envelopes of goods of which somebody is on the way
    compared: bool = True  # else only the database could be compared with itself

    @property
    def balanced(self) -> bool:
        return not any(self.findings.values())

    def found(self, proof: str, what: Iterator[str]) -> None:
        first = list(islice(what, SHOWN))
        self.findings[proof] += first
        more = sum(1 for _ in what)
        if more:
            self.findings[proof].append(f"… and {more:,} more like the last")


def books(name: str | None, as_json: bool) -> None:
    """Print the proof. Raises Refused where the books don't balance."""
    report = prove(name)
    if as_json:
        print_json(
            {
                "balanced": report.balanced,
                "at_rest": report.at_rest,
                "envelopes": report.envelopes,
                "goods": [as_dict(row) for row in report.goods],
                "findings": report.findings,
                "notes": report.notes,
            }
        )
    else:
        show(report)
    if not report.balanced:
        raise Refused(f"the books do not balance: {plural(sum(map(len, report.findings.values())), 'finding')}")


def show(report: Report) -> None:
    for row in report.envelopes:
        currency = row["currency"]
        print(f"{row['publisher_envelope_id']} ({row['envelope_id']}): {row['disbursements']:,} disbursements")
        for parts, whole in ((PARTS, "blocked"), (ENDS, "dispatched")):
            print(f"  {whole:<10} {money(row[whole], currency):>26}  =")
            for part in parts:
                if row[part]:
                    print(f"    {part:<12}{money(row[part], currency):>26}{_counted(row, part)}")
        said = ", ".join(f"{kind} {money(minor, currency)}" for kind, minor in row["from_events"].items() if minor)
        print(f"  events say: {said or 'nothing yet'}")
    for goods in report.goods:
        unit = unit_of(goods)
        print(f"{goods.publisher_envelope_id} ({goods.envelope_id}): {goods.declared:,} entitlements")
        print(f"  declared   {quantity(goods.declared_minor, unit):>26}  =")
        for part in proof_goods.WHERE:
            if getattr(goods, part):
                print(f"    {part:<12}{quantity(getattr(goods, part + '_minor'), unit):>26}  ({getattr(goods, part):,})")
        if missing := goods.declared_minor - goods.arrived_minor:
            lost = proof_goods.missing(goods) and goods.envelope_id not in report.may_come
            print(
                f"    {'nowhere' if lost else 'on the way':<12}{quantity(missing, unit):>26}  ({goods.declared - goods.arrived:,})"
            )
    for note in report.notes:
        print(f"note: {note}")
    for proof, findings in report.findings.items():
        compared = report.compared or proof == "database"
        print(f"{proof:<10}  {'does not hold' if findings else 'holds' if compared else 'not compared'}")
        for finding in findings:
            print(f"  {finding}")


def _counted(row: dict[str, Any], part: str) -> str:
    count = row["counts"].get(part)
    return f"  ({count:,})" if count else ""


def prove(name: str | None) -> Report:
    report = Report()
    with Views() as views:
        only = find_envelope(views, name).envelope_id if name else None
        wait_for_relays(views)
    with Views(snapshot=True) as views, tempfile.TemporaryDirectory(prefix="almoner-books-") as folder:
        rows = counters(views, only)
        ledger = Ledger(Path(folder), [row.envelope_id for row in rows])
        ledger.load_rows(views)
        ledger.load_lines()
        ledger.load_events()
        ledger.index()
        evidence = Evidence(views, ledger, rows)
        report.envelopes = positions(evidence)
        for proof, checks in PROOFS.items():
            for check in checks:
                report.found(proof, check(evidence))
        report.notes += notes(evidence)
        ledger.close()
        older = evidence.older
        report.goods = proof_goods.counters(views, only)
        prove_goods(report, views, Path(folder), older)
    report.notes += [
        f"{plural(count, 'fact')} of {topic} not compared with events (older than the topic keeps)"
        for topic, count in older.items()
        if count
    ]
    with Views() as views:
        now = {row.envelope_id: row for row in (*counters(views, only), *proof_goods.counters(views, only))}
    moved = [row.publisher_envelope_id for row in (*rows, *report.goods) if now.get(row.envelope_id) != row]
    if moved:  # rows are of one moment, lines and events are not: what differs between them says nothing yet
        report.findings["statements"], report.findings["events"] = [], []
        report.at_rest = report.compared = False
        report.notes.append(
            f"money moved meanwhile ({', '.join(moved[:10])}): rows were compared with rows only; again when at rest"
        )
    return report


def prove_goods(report: Report, views: Views, folder: Path, older: Counter[str]) -> None:
    report.found("database", proof_goods.identities(report.goods))
    if report.goods:
        goods = proof_goods.Goods(folder, report.goods)
        goods.load(views)
        report.found("database", goods.rows_are_counters())
        report.may_come = proof_goods.on_the_way(views, [row.envelope_id for row in report.goods if proof_goods.missing(row)])
        report.at_rest = not report.may_come
        report.notes += [
            f"envelope {row.publisher_envelope_id}: {plural(row.declared - row.arrived, 'person')} on the way to allocation: "
            "again when at rest"
            for row in report.goods
            if row.envelope_id in report.may_come
        ]
        report.found("database", goods.everybody_is_somewhere_once(report.may_come))
        report.found("events", goods.events_are_rows())
        goods.close()
        older[proof_goods.TOPIC] += goods.older


def wait_for_relays(views: Views) -> None:
    """Until all that is committed is published, so that events can be compared with rows."""
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        waiting = [views.one(f"SELECT rows - stuck AS n FROM {service}.ops_outbox").n for service in SAYING]
        if not any(waiting):
            return
        time.sleep(0.1)
    raise NotReachable(
        f"{plural(sum(waiting), 'event')} not published yet after {QUIET_SECONDS:.0f} s: are the services and the broker up? "
        "(a run that is busy: look again later)"
    )


def counters(views: Views, only: Any) -> list[Any]:
    columns = ", ".join(f"{name}_minor" for name in POSITION)
    counts = ", ".join(name for name in ("waiting", "in_flight", "unknown", "held", "dispatched", "outstanding"))
    return views.rows(
        f"""SELECT envelope_id, publisher_envelope_id, currency, {columns}, {counts}, confirmed, reversed, cancelled, revision
            FROM funds.ops_envelopes WHERE envelope_id = %(only)s OR %(only)s::uuid IS NULL ORDER BY created_at""",
        only=only,
    )


def positions(evidence: Evidence) -> list[dict[str, Any]]:
    shown = []
    for number, row in enumerate(evidence.rows):
        said = {
            fact["kind"]: fact["minor"]
            for fact in evidence.ledger.query(
                "SELECT kind, sum(minor) AS minor FROM fact WHERE e = ? GROUP BY kind ORDER BY kind", number
            )
        }
        said |= {
            moved["kind"]: moved["minor"]
            for moved in evidence.ledger.query("SELECT kind, sum(minor) AS minor FROM moved WHERE e = ? GROUP BY kind", number)
        }
        total = next(evidence.ledger.query("SELECT count(*) AS n FROM disbursement WHERE e = ?", number))["n"]
        shown.append(
            {
                "envelope_id": str(row.envelope_id),
                "publisher_envelope_id": row.publisher_envelope_id,
                "currency": row.currency,
                "disbursements": total,
                **{name: getattr(row, f"{name}_minor") for name in POSITION},
                "counts": {name: getattr(row, name) for name in (*STATE_OF, "held", "dispatched", "cancelled")},
                "from_events": {kind: said.get(kind, 0) for kind in ("blocked", *KINDS, "released")},
            }
        )
    return shown


def notes(evidence: Evidence) -> list[str]:
    """What is no fault and should be known."""
    open_exceptions = evidence.views.rows(
        """SELECT statement_id, line, instruction, reason, reference, amount_minor, detail FROM funds.ops_exceptions
           WHERE state = 'OPEN' ORDER BY id LIMIT %(shown)s""",
        shown=SHOWN,
    )
    notes = [
        f"exception {row.reason}: line {row.line} of statement {row.statement_id}, {row.amount_minor}, {row.reference}"
        if row.line is not None
        else f"exception {row.reason}: {row.detail}, {_place(row)}, {row.amount_minor}"
        for row in open_exceptions
    ]
    settled = next(
        evidence.ledger.query(
            "SELECT count(*) AS n FROM payment WHERE state IN ('CONFIRMED', 'REVERSED') AND confirmed_by IS NULL"
        )
    )["n"]
    if settled:
        notes.append(f"{plural(settled, 'payment')} confirmed by an operator's evidence, not by a statement line")
    return notes + list(islice(proof_lines.bookings_that_count_twice(evidence), SHOWN))


def _place(row: Any) -> str:
    return f"statement {row.statement_id}" if row.instruction is None else f"instruction {row.instruction}"
