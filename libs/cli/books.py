"""`almoner books`: proves that every unit of money is somewhere, three times: from the rows, the bank's lines, the events.

    blocked = waiting + in_flight + unknown + held + dispatched + releasing + released
    dispatched = outstanding + confirmed + reversed

Where it does not hold, the row, line or event is named.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from libs.cli.context import NotReachable, Refused, Views, find_envelope, money, plural, print_json
from libs.cli.ledger import KINDS, Ledger

PARTS = ("waiting", "in_flight", "unknown", "held", "dispatched", "releasing", "released")
ENDS = ("outstanding", "confirmed", "reversed")
POSITION = ("blocked", *PARTS, *ENDS)
STATE_OF = {"waiting": "WAITING", "in_flight": "SENDING", "unknown": "UNKNOWN", "outstanding": "DISPATCHED"}
STATE_OF |= {"confirmed": "CONFIRMED", "reversed": "REVERSED"}
LIVE = "state IN ('WAITING', 'SENDING', 'UNKNOWN', 'DISPATCHED', 'CONFIRMED', 'REVERSED')"
SHOWN = 20  # findings of one kind
QUIET_SECONDS = 15.0


@dataclass
class Report:
    """`findings`: proof -> what does not hold. Without one the books balance."""

    envelopes: list[dict[str, Any]] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=lambda: {"database": [], "statements": [], "events": []})
    notes: list[str] = field(default_factory=list)
    at_rest: bool = True  # else only the database could be compared with itself

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
    for note in report.notes:
        print(f"note: {note}")
    for proof, findings in report.findings.items():
        compared = report.at_rest or proof == "database"
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
        proof = Proof(views, ledger, rows)
        report.envelopes = proof.envelopes()
        for check in proof.database:
            report.found("database", check())
        for check in proof.statements:
            report.found("statements", check())
        for check in proof.events:
            report.found("events", check())
        report.notes += proof.notes()
        ledger.close()
    with Views() as views:
        now = {row.envelope_id: row for row in counters(views, only)}
    moved = [row.publisher_envelope_id for row in rows if now.get(row.envelope_id) != row]
    if moved:  # rows are of one moment, lines and events are not: what differs between them says nothing yet
        report.findings["statements"], report.findings["events"] = [], []
        report.at_rest = False
        report.notes.append(
            f"money moved meanwhile ({', '.join(moved[:10])}): rows were compared with rows only; again when at rest"
        )
    return report


def wait_for_relays(views: Views) -> None:
    """Until all that is committed is published, so that events can be compared with rows."""
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        waiting = [views.one(f"SELECT rows - stuck AS n FROM {service}.ops_outbox").n for service in ("ingestion", "funds")]
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


class Proof:
    """The checks, each a generator of findings in plain words."""

    def __init__(self, views: Views, ledger: Ledger, rows: Sequence[Any]) -> None:
        self._views = views
        self._ledger = ledger
        self._rows = rows
        self._names = [f"envelope {row.publisher_envelope_id}" for row in rows]
        ids = [row.envelope_id for row in rows]
        chosen = "WHERE envelope_id = ANY(%(ids)s::uuid[])"
        self._blocks = views.rows(
            f"SELECT envelope_id, block, amount_minor, state FROM funds.ops_blocks {chosen} ORDER BY 1, 2", ids=ids
        )
        self._releases = views.rows(
            f"SELECT release_id, envelope_id, block, amount_minor, state FROM funds.ops_releases {chosen} ORDER BY 1", ids=ids
        )
        checks = tuple[Callable[[], Iterator[str]], ...]
        self.database: checks = (
            self.identities, self.counters_are_rows, self.instructions_are_payments, self.amounts_are_as_submitted,
            self.one_place_each, self.nobody_is_lost,
        )  # fmt: skip
        self.statements: checks = (self.confirmed_has_its_line, self.reversed_has_its_line, self.line_has_its_payment)
        self.events: checks = (
            self.blocks_and_releases_are_events, self.states_have_their_event, self.events_have_their_state,
            self.settlement_is_the_position,
        )  # fmt: skip

    def envelopes(self) -> list[dict[str, Any]]:
        shown = []
        for number, row in enumerate(self._rows):
            said = {
                fact["kind"]: fact["minor"]
                for fact in self._ledger.query(
                    "SELECT kind, sum(minor) AS minor FROM fact WHERE e = ? GROUP BY kind ORDER BY kind", number
                )
            }
            said |= {
                moved["kind"]: moved["minor"]
                for moved in self._ledger.query("SELECT kind, sum(minor) AS minor FROM moved WHERE e = ? GROUP BY kind", number)
            }
            total = next(self._ledger.query("SELECT count(*) AS n FROM disbursement WHERE e = ?", number))["n"]
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

    # (a) The database: identities, and every counter recomputed from rows.

    def identities(self) -> Iterator[str]:
        for name, row in zip(self._names, self._rows, strict=True):
            position = {part: getattr(row, f"{part}_minor") for part in POSITION}
            parts, ends = sum(position[part] for part in PARTS), sum(position[part] for part in ENDS)
            if position["blocked"] and position["blocked"] != parts:
                yield f"{name}: blocked is {position['blocked']}, its parts add up to {parts}"
            if position["dispatched"] != ends:
                yield f"{name}: dispatched is {position['dispatched']}, its parts add up to {ends}"

    def recomputed(self, number: int) -> dict[str, int]:
        """An envelope's position from its rows alone (but for what has not arrived at funds, which has none there)."""
        envelope_id = self._rows[number].envelope_id
        by_state = {
            row["state"]: row["minor"]
            for row in self._ledger.query("SELECT state, sum(minor) AS minor FROM payment WHERE e = ? GROUP BY state", number)
        }
        found = {name: by_state.get(state, 0) for name, state in STATE_OF.items()}
        found["dispatched"] = found["outstanding"] + found["confirmed"] + found["reversed"]
        found["blocked"] = sum(b.amount_minor for b in self._blocks if b.envelope_id == envelope_id and b.state == "BLOCKED")
        ours = [release for release in self._releases if release.envelope_id == envelope_id]
        found["released"] = sum(release.amount_minor for release in ours if release.state == "RELEASED")
        kept = sum(release.amount_minor for release in ours if release.state in ("REFUSED", "NOT_OFFERED"))
        asked = sum(release.amount_minor for release in ours if release.state in ("PENDING", "SENDING", "UNKNOWN"))
        found["releasing"] = asked + self._sum("cancelled", number, "in_block AND NOT released")
        found["held"] = kept + self._sum("held", number)
        if found["blocked"]:
            # What is cut and not yet at funds waits too: whatever was submitted and is in no other place.
            found["waiting"] += self._nowhere(number)
        return found

    def counters_are_rows(self) -> Iterator[str]:
        for number, (name, row) in enumerate(zip(self._names, self._rows, strict=True)):
            if not row.blocked_minor:
                continue
            for part, minor in self.recomputed(number).items():
                counter = getattr(row, f"{part}_minor")
                if counter != minor:
                    yield f"{name}: the counter {part} says {counter}, its rows add up to {minor} (off by {counter - minor})"
            for part, state in STATE_OF.items():
                if part == "waiting":
                    continue
                count = next(self._ledger.query("SELECT count(*) AS n FROM payment WHERE e = ? AND state = ?", number, state))[
                    "n"
                ]
                if count != getattr(row, part):
                    yield f"{name}: the counter {part} says {getattr(row, part)} payments, there are {count} rows"

    def instructions_are_payments(self) -> Iterator[str]:
        rows = self._views.stream(
            """SELECT instruction, count, total_minor, debited_count, debited_minor, reversed_count, reversed_minor
               FROM funds.ops_instructions WHERE envelope_id = ANY(%(ids)s::uuid[]) ORDER BY instruction""",
            ids=[row.envelope_id for row in self._rows],
        )
        for row in rows:
            found = next(
                self._ledger.query(
                    """SELECT count(*) AS count, coalesce(sum(minor), 0) AS total_minor,
                           coalesce(sum(state IN ('CONFIRMED', 'REVERSED')), 0) AS debited_count,
                           coalesce(sum(minor * (state IN ('CONFIRMED', 'REVERSED'))), 0) AS debited_minor,
                           coalesce(sum(state = 'REVERSED'), 0) AS reversed_count,
                           coalesce(sum(minor * (state = 'REVERSED')), 0) AS reversed_minor
                       FROM payment WHERE instruction = ?""",
                    row.instruction,
                )
            )
            for what in found.keys():  # noqa: SIM118 - a Row is no mapping
                if found[what] != getattr(row, what):
                    yield f"instruction {row.instruction}: {what} says {getattr(row, what)}, its payments give {found[what]}"

    def amounts_are_as_submitted(self) -> Iterator[str]:
        for place, key in (("payment", "instruction || '/' || position"), ("held", "p.id"), ("cancelled", "p.id")):
            for row in self._ledger.query(
                f"""SELECT p.e, p.id, p.minor, d.minor AS submitted, {key} AS key FROM {place} p
                    LEFT JOIN disbursement d ON d.e = p.e AND d.id = p.id WHERE d.minor IS NOT p.minor"""
            ):
                said = "was never submitted" if row["submitted"] is None else f"was submitted with {row['submitted']}"
                yield f"{self._names[row['e']]}: {place} {row['key']} has {row['minor']}, disbursement {row['id']} {said}"

    def one_place_each(self) -> Iterator[str]:
        for row in self._ledger.query(
            f"""SELECT e, id, group_concat(place, ' and ') AS places FROM (
                    SELECT e, id, 'payment ' || instruction || '/' || position || ' ' || state AS place FROM payment WHERE {LIVE}
                    UNION ALL SELECT e, id, 'held ' || reason FROM held
                    UNION ALL SELECT e, id, 'cancelled' FROM cancelled)
                GROUP BY e, id HAVING count(*) > 1"""
        ):
            yield f"{self._names[row['e']]}: disbursement {row['id']} is in two places: {row['places']}"

    def nobody_is_lost(self) -> Iterator[str]:
        """Once all has arrived and nothing waits or is released, each disbursement must be in one place."""
        for number, row in enumerate(self._rows):
            if not row.blocked_minor or row.waiting_minor or row.releasing_minor or row.released_minor:
                continue
            for lost in self._ledger.query(f"SELECT id, minor FROM ({_NOWHERE})", number):
                yield f"{self._names[number]}: disbursement {lost['id']} of {lost['minor']} is nowhere"

    def _sum(self, table: str, number: int, condition: str = "TRUE") -> int:
        sql = f"SELECT coalesce(sum(minor), 0) AS minor FROM {table} WHERE e = ? AND {condition}"
        return int(next(self._ledger.query(sql, number))["minor"])

    def _nowhere(self, number: int) -> int:
        """Money of disbursements in no other place: not yet at funds. Those who were held and then released are not in it."""
        envelope_id = self._rows[number].envelope_id
        sql = f"SELECT coalesce(sum(minor), 0) AS minor FROM ({_NOWHERE})"
        nowhere = int(next(self._ledger.query(sql, number))["minor"])
        released = sum(release.amount_minor for release in self._releases if release.envelope_id == envelope_id)
        return nowhere - int(released - self._sum("cancelled", number, "in_block AND released"))

    # (b) The bank's statements.

    def confirmed_has_its_line(self) -> Iterator[str]:
        yield from self._cited("confirmed", "D", "state IN ('CONFIRMED', 'REVERSED')")

    def reversed_has_its_line(self) -> Iterator[str]:
        yield from self._cited("reversed", "RD", "state = 'REVERSED'")

    def _cited(self, word: str, mark: str, condition: str) -> Iterator[str]:
        for row in self._ledger.query(
            f"""SELECT p.*, l.mark, l.minor AS line_minor, l.reference AS line_reference, l.fifth
                FROM payment p LEFT JOIN line l ON l.statement = p.{word}_by AND l.line = p.{word}_line
                WHERE {condition} AND p.{word}_by IS NOT NULL
                  AND (l.mark IS NOT ? OR l.minor <> p.minor OR p.reference NOT IN (l.reference, l.fifth))""",
            mark,
        ):
            place = f"line {row[word + '_line']} of statement {row[word + '_by']}"
            payment = f"payment {row['reference']} of disbursement {row['id']} ({row['minor']}) is {word}"
            if row["mark"] is None:
                yield f"{self._names[row['e']]}: {payment} by {place}, which is not there"
            else:
                line = f"{row['mark']} {row['line_minor']} {row['fifth'] or row['line_reference']}"
                yield f"{self._names[row['e']]}: {payment} by {place}, which says {line}"

    def line_has_its_payment(self) -> Iterator[str]:
        """Every debit and reversal counts for a payment, repeats one that does, or is an exception."""
        every = "TRUE" if len(self._rows) > 1 or not self._only_some() else "known.e IS NOT NULL"
        for row in self._ledger.query(
            f"""SELECT l.*, known.id AS id, known.e AS e, known.state AS state FROM line l
                LEFT JOIN payment known ON known.reference = CASE WHEN l.fifth = '' THEN l.reference ELSE l.fifth END
                WHERE l.mark IN ('D', 'RD') AND {every}
                  AND NOT EXISTS (SELECT 1 FROM exception x WHERE x.statement = l.statement AND x.line = l.line)
                  AND NOT EXISTS (SELECT 1 FROM payment p
                                  WHERE l.mark = 'D' AND p.confirmed_by = l.statement AND p.confirmed_line = l.line)
                  AND NOT EXISTS (SELECT 1 FROM payment p
                                  WHERE l.mark = 'RD' AND p.reversed_by = l.statement AND p.reversed_line = l.line)
                  AND NOT EXISTS (SELECT 1 FROM line o JOIN payment p ON
                                      CASE l.mark WHEN 'D' THEN p.confirmed_by = o.statement AND p.confirmed_line = o.line
                                                  ELSE p.reversed_by = o.statement AND p.reversed_line = o.line END
                                  WHERE o.reference = l.reference AND o.mark = l.mark AND o.minor = l.minor
                                    AND o.bank_reference = l.bank_reference AND l.bank_reference NOT IN ('', 'NONREF')
                                    AND p.reference = known.reference)"""
        ):
            whose = f"disbursement {row['id']}, which is {row['state']}" if row["id"] else "no payment"
            yield (
                f"line {row['line']} of statement {row['statement']} ({row['mark']} {row['minor']}, reference "
                f"{row['fifth'] or row['reference']}) counts for {whose}, and is no exception either"
            )

    def _only_some(self) -> bool:
        all_envelopes = self._views.one("SELECT count(*) AS n FROM funds.ops_envelopes").n
        return bool(all_envelopes > len(self._rows))

    # (c) The events, disbursement by disbursement.

    def blocks_and_releases_are_events(self) -> Iterator[str]:
        numbers = self._ledger.numbers
        rows = {(numbers[b.envelope_id], "blocked", b.block): b.amount_minor for b in self._blocks if b.state == "BLOCKED"}
        rows |= {
            (numbers[r.envelope_id], "released", r.release_id): r.amount_minor for r in self._releases if r.state == "RELEASED"
        }
        said: dict[tuple[int, str, int], tuple[int, str]] = {}
        for row in self._ledger.query("SELECT * FROM moved ORDER BY e, kind, number"):
            key = (row["e"], row["kind"], row["number"])
            if key in said:
                yield f"{self._names[key[0]]}: {key[1]} {key[2]} is said twice, by events {said[key][1]} and {row['event']}"
            said[key] = (row["minor"], row["event"])
        for key in sorted(rows.keys() | said.keys()):
            name = f"{self._names[key[0]]}: {key[1]} {key[2]}"
            if key not in said:
                yield f"{name} of {rows[key]} has no event"
            elif key not in rows:
                yield f"{name}: event {said[key][1]} says {said[key][0]}, there is no such row"
            elif rows[key] != said[key][0]:
                yield f"{name}: the row has {rows[key]}, event {said[key][1]} says {said[key][0]}"

    def states_have_their_event(self) -> Iterator[str]:
        """Each row's state was said by exactly one event (an operator's or a query's answer included) with its amount."""
        for kind, states in (
            ("dispatched", "'DISPATCHED'"),
            ("confirmed", "'CONFIRMED', 'REVERSED'"),
            ("reversed", "'REVERSED'"),
        ):
            for row in self._ledger.query(
                f"""SELECT p.e, p.id, p.minor, p.reference, p.state, count(f.event) AS said FROM payment p
                    LEFT JOIN fact f ON f.e = p.e AND f.id = p.id AND f.kind = ? AND f.instruction = p.instruction
                                        AND f.minor = p.minor
                    WHERE p.state IN ({states}) GROUP BY p.instruction, p.position HAVING count(f.event) <> 1""",
                kind,
            ):
                yield (
                    f"{self._names[row['e']]}: payment {row['reference']} of disbursement {row['id']} ({row['minor']}) is "
                    f"{row['state']}; {plural(row['said'], 'event')} say so ({KINDS[kind].__name__}), not one"
                )
        for table, kinds in (("held", "'held', 'refused'"), ("cancelled", "'cancelled'")):
            for row in self._ledger.query(
                f"""SELECT t.e, t.id, t.minor FROM {table} t WHERE NOT EXISTS (
                        SELECT 1 FROM fact f WHERE f.e = t.e AND f.id = t.id AND f.kind IN ({kinds}) AND f.minor = t.minor)"""
            ):
                yield f"{self._names[row['e']]}: disbursement {row['id']} ({row['minor']}) is {table}; no event says so"

    def events_have_their_state(self) -> Iterator[str]:
        """What an event says has become a row, with the same amount."""
        states = {
            "dispatched": "'SENDING', 'DISPATCHED', 'CONFIRMED', 'REVERSED', 'REFUSED', 'CANCELLED'",
            "confirmed": "'CONFIRMED', 'REVERSED'",
            "reversed": "'REVERSED'",
        }
        for kind, allowed in states.items():
            for row in self._ledger.query(
                f"""SELECT f.* FROM fact f WHERE f.kind = ? AND NOT EXISTS (
                        SELECT 1 FROM payment p WHERE p.e = f.e AND p.id = f.id AND p.instruction = f.instruction
                           AND p.minor = f.minor AND p.state IN ({allowed}))""",
                kind,
            ):
                yield self._unfounded(row)
        for row in self._ledger.query(
            """SELECT f.* FROM fact f WHERE f.kind = 'cancelled' AND NOT EXISTS (
                   SELECT 1 FROM cancelled c WHERE c.e = f.e AND c.id = f.id AND c.minor = f.minor)"""
        ):
            yield self._unfounded(row)
        for row in self._ledger.query(
            """SELECT f.*, d.minor AS submitted FROM fact f LEFT JOIN disbursement d ON d.e = f.e AND d.id = f.id
               WHERE f.kind IN ('held', 'refused', 'unknown') AND d.minor IS NOT f.minor"""
        ):
            yield self._unfounded(row)

    def _unfounded(self, row: Any) -> str:
        return (
            f"{self._names[row['e']]}: event {row['event']} ({KINDS[row['kind']].__name__}) says {row['minor']} for "
            f"disbursement {row['id']}; no row agrees"
        )

    def settlement_is_the_position(self) -> Iterator[str]:
        for row in self._ledger.query("SELECT e, revision, event, position FROM settled"):
            counters = self._rows[row["e"]]
            if row["revision"] != counters.revision:
                continue
            for part, minor in json.loads(row["position"]).items():
                if minor != getattr(counters, f"{part}_minor"):
                    yield (
                        f"{self._names[row['e']]}: event {row['event']} (EnvelopeSettled {row['revision']}) says {part} "
                        f"{minor}, the counter says {getattr(counters, f'{part}_minor')}"
                    )

    def notes(self) -> list[str]:
        """What is no fault and should be known."""
        open_exceptions = self._views.rows(
            """SELECT statement_id, line, reason, reference, amount_minor, detail FROM funds.ops_exceptions
               WHERE state = 'OPEN' ORDER BY id LIMIT %(shown)s""",
            shown=SHOWN,
        )
        notes = [
            f"exception {row.reason}: line {row.line} of statement {row.statement_id}, {row.amount_minor}, {row.reference}"
            for row in open_exceptions
        ]
        settled = next(
            self._ledger.query(
                "SELECT count(*) AS n FROM payment WHERE state IN ('CONFIRMED', 'REVERSED') AND confirmed_by IS NULL"
            )
        )["n"]
        if settled:
            notes.append(f"{plural(settled, 'payment')} confirmed by an operator's evidence, not by a statement line")
        return notes


_NOWHERE = f"""
    SELECT d.id, d.minor FROM disbursement d WHERE d.e = ?
    AND NOT EXISTS (SELECT 1 FROM payment p WHERE p.e = d.e AND p.id = d.id AND {LIVE})
    AND NOT EXISTS (SELECT 1 FROM held h WHERE h.e = d.e AND h.id = d.id)
    AND NOT EXISTS (SELECT 1 FROM cancelled c WHERE c.e = d.e AND c.id = d.id)
"""
