"""Verbs that change something: each shows a count, asks, sends an event or a command, and says what came of it."""

import os
from collections import Counter
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError

from libs.cli.context import (
    SERVICES,
    NotReachable,
    Refused,
    Usage,
    Views,
    confirm,
    done,
    find_envelope,
    home,
    money,
    plural,
    printable,
    quantity,
    say,
    unit_of,
    who_am_i,
)
from libs.cli.send import Answers, Publisher, in_portions, send_command
from libs.cli.watch import places
from libs.common.contracts import operator
from libs.common.contracts.base import CHUNK_ITEMS
from libs.common.contracts.ingestion import EnvelopeAmendmentRequested, SubmissionRejected
from libs.common.money import MoneyError

ANSWER_SECONDS = 60.0
INGESTION = "ingestion.commands.v1"


@dataclass(frozen=True)
class Held:
    """Whom `retry --held` is for: everybody who is held, or of an envelope, or of these only some, or with one reason."""

    envelope_id: UUID | None
    ids: list[str]
    reason: str | None

    def people(self, views: Views, view: str) -> list[Any]:
        """(envelope_id, people) in a service's view."""
        return self._look(views, view, "envelope_id", "count(*) AS people")

    def names(self, views: Views, view: str, envelope_id: UUID) -> list[str]:
        return [row.disbursement_id for row in replace(self, envelope_id=envelope_id)._look(views, view, "disbursement_id")]

    def _look(self, views: Views, view: str, key: str, *more: str) -> list[Any]:
        return views.rows(
            f"""SELECT {", ".join((key, *more))} FROM {view} AS h
                WHERE (envelope_id = %(only)s OR %(only)s::uuid IS NULL) AND (reason = %(reason)s OR %(reason)s::text IS NULL)
                  AND (cardinality(%(ids)s::text[]) = 0 OR disbursement_id = ANY(%(ids)s::text[]))
                GROUP BY {key} ORDER BY {key}""",
            only=self.envelope_id,
            reason=self.reason,
            ids=self.ids,
        )


def retry_held(
    envelope: str | None,
    ids: list[str],
    reason: str | None,
    rate: float | None,
    who: str,
    why: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Ask mapper and registry again for the unresolved, look for places again, and pay again those whom the bank refused."""
    with Views() as views:
        held = Held(find_envelope(views, envelope).envelope_id if envelope else None, ids, reason)
        unresolved = held.people(views, "resolution.ops_held")
        # Whom resolution holds, allocation holds as well.
        unserved = held.people(
            views,
            """(SELECT * FROM allocation.ops_held a WHERE NOT EXISTS (
                    SELECT 1 FROM resolution.ops_held r
                    WHERE r.envelope_id = a.envelope_id AND r.disbursement_id = a.disbursement_id))""",
        )
        refused = held.people(views, "funds.ops_retriable")
        at_mapper, without_place, at_bank = (sum(row.people for row in rows) for rows in (unresolved, unserved, refused))
        total = at_mapper + without_place + at_bank
        if not total:
            nobody = "Nobody is held whom that would help; `almoner held` lists who is, and what helps."
            done(as_json, nobody, 0, found=0, dry_run=dry_run)
            return
        if at_mapper:
            say(as_json, f"  {plural(at_mapper, 'person')} without an address or a zone: mapper and registry are asked again")
        if without_place:
            people = plural(without_place, "person")
            say(as_json, f"  {people} without a warehouse or an agency: allocation looks for places again")
        if at_bank:
            say(as_json, f"  {plural(at_bank, 'person')} whom the bank refused: they are paid again")
        if dry_run:
            would = f"{plural(total, 'held disbursement')} would be tried again; nothing was sent."
            done(as_json, would, 0, found=total, dry_run=True)
            return
        confirm(f"Retry {plural(total, 'held disbursement')}?", yes)
        sent: list[dict[str, Any]] = []
        if without_place:
            touched = send_command(views, "allocation", "reference", operator.RefreshReference(who=who, why=why))
            sent.append({"service": "allocation", "touched": touched})
            say(as_json, "allocation: warehouses and agencies are read again")
        asks: tuple[tuple[str, str, list[Any], Any, str], ...] = (
            ("resolution", "resolution.ops_held", unresolved, operator.ResolveHeld, "looked up again"),
            ("funds", "funds.ops_retriable", refused, operator.RetryHeld, "to be paid again"),
        )
        for service, view, rows, command, what in asks:
            for row in rows:
                given = {"who": who, "why": why, "envelope_id": row.envelope_id}
                if ids or reason or rate:
                    touched = sum(
                        send_command(
                            views, service, str(row.envelope_id), command(**given, disbursement_ids=some, expected=len(some))
                        )
                        for some in in_portions(held.names(views, view, row.envelope_id), rate)
                    )
                else:
                    touched = send_command(views, service, str(row.envelope_id), command(**given, expected=row.people))
                sent.append({"service": service, "envelope_id": row.envelope_id, "touched": touched})
                say(as_json, f"{service}: {plural(touched, 'person')} of {row.envelope_id} {what}")
    done(as_json, "", sum(one["touched"] for one in sent), found=total, dry_run=False, sent=sent)


def resolve(name: str, disbursements: list[str], who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Those who were paid already stay so; `repay` pays a reversed payment to the newest address."""
    with Views() as views:
        envelope = find_envelope(views, name)
        confirm(
            f"Ask again where {plural(len(disbursements), 'person')} of {envelope.publisher_envelope_id} can be found?", yes
        )
        command = operator.ResolveHeld(
            who=who_am_i(who), why=why, envelope_id=envelope.envelope_id, disbursement_ids=disbursements
        )
        touched = send_command(views, "resolution", str(envelope.envelope_id), command)
    text = f"resolution: {plural(touched, 'person')} of {envelope.publisher_envelope_id} looked up again"
    done(as_json, text, touched, service="resolution", envelope_id=envelope.envelope_id)


def settle_unknown(
    kind: Literal["block", "dispatch", "release"],
    subject: str,
    happened: str | None,
    evidence: str,
    who: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """`happened` is the bank's reference; None: it did not happen."""
    with Views() as views:
        row = views.one(
            """SELECT envelope_id, count, amount_minor FROM funds.ops_unknown WHERE kind = %(kind)s AND subject = %(subject)s
               UNION ALL
               SELECT i.envelope_id, i.count - i.cancelled_count - i.refused_count - i.debited_count, x.amount_minor
               FROM funds.ops_exceptions x JOIN funds.ops_instructions i USING (instruction)
               WHERE x.reason = 'NO_STATEMENT_LINE' AND x.amount_minor > 0 AND i.state = 'DISPATCHED'
                 AND %(kind)s = 'dispatch' AND i.instruction::text = %(subject)s AND %(unpaid)s""",
            kind=kind,
            subject=subject,
            unpaid=happened is None,
        )
        if row is None:
            listed = views.rows("SELECT kind, subject FROM funds.ops_unknown ORDER BY since LIMIT 10")
            names = ", ".join(f"{one.kind} {one.subject}" for one in listed) or "none"
            raise Refused(f"no unknown {kind} is called {subject}; unknown are: {names}")
        envelope = views.one("SELECT currency FROM funds.ops_envelopes WHERE envelope_id = %(id)s", id=row.envelope_id)
        outcome = f"happened, reference {happened}" if happened is not None else "did not happen, so that it may be sent again"
        amount = money(row.amount_minor, envelope.currency) if envelope else f"{row.amount_minor} minor units"
        confirm(f"Settle {kind} {subject} ({plural(row.count or 1, 'payment')}, {amount}): it {outcome}?", yes)
        command = operator.SettleUnknown(
            who=who_am_i(who),
            why=evidence,
            evidence=evidence,
            kind=kind,
            subject=subject,
            outcome="happened" if happened is not None else "did_not_happen",
            reference=happened or "",
        )
        touched = send_command(views, "funds", str(row.envelope_id), command)
    if not touched:
        raise Refused("it was settled meanwhile: nothing was changed")
    text = f"{kind} {subject} is settled: it {outcome}"
    done(as_json, text, touched, kind=kind, subject=subject, outcome=command.outcome, reference=command.reference)


def release(name: str, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    with Views() as views:
        envelope = find_envelope(views, name)
        row = views.one("SELECT held, held_minor FROM funds.ops_envelopes WHERE envelope_id = %(id)s", id=envelope.envelope_id)
        if row is None or not row.held_minor:
            done(as_json, "No money of this envelope is held: there is nothing to release.", 0)
            return
        amount = money(row.held_minor, envelope.currency)
        confirm(f"Give {amount} of {plural(row.held, 'held disbursement')} back to the sponsor?", yes)
        command = operator.ReleaseRequested(
            who=who_am_i(who), why=why, envelope_id=envelope.envelope_id, expected=int(row.held)
        )
        touched = send_command(views, "funds", str(envelope.envelope_id), command)
    text = f"{plural(touched, 'held disbursement')} of {name} given up; {amount} on its way back to the sponsor"
    done(as_json, text, touched, envelope_id=envelope.envelope_id, amount_minor=int(row.held_minor), currency=envelope.currency)


def repay(
    name: str, disbursement_ids: list[str], reversed_ones: bool, who: str | None, why: str, yes: bool, as_json: bool
) -> None:
    with Views() as views:
        envelope = find_envelope(views, name)
        chosen = list(dict.fromkeys(disbursement_ids))
        if reversed_ones:
            rows = views.rows(
                """SELECT disbursement_id FROM funds.ops_payments WHERE envelope_id = %(id)s
                   GROUP BY disbursement_id HAVING bool_and(state = 'REVERSED') ORDER BY disbursement_id LIMIT %(limit)s""",
                id=envelope.envelope_id,
                limit=CHUNK_ITEMS,
            )
            chosen = [row.disbursement_id for row in rows]
            if not chosen:
                done(as_json, "No payment of this envelope was reversed and not made again.", 0)
                return
        if len(chosen) > CHUNK_ITEMS:
            raise Usage(f"at most {CHUNK_ITEMS} at once: their money is reserved as one sum")
        row = views.one(
            """SELECT coalesce(sum(amount_minor), 0) AS minor FROM (
                   SELECT disbursement_id, amount_minor FROM funds.ops_payments
                   WHERE envelope_id = %(id)s AND disbursement_id = ANY(%(ids)s::text[])
                   UNION SELECT disbursement_id, amount_minor FROM funds.ops_held
                   WHERE envelope_id = %(id)s AND disbursement_id = ANY(%(ids)s::text[])) AS x""",
            id=envelope.envelope_id,
            ids=chosen,
        )
        amount = money(int(row.minor), envelope.currency)
        confirm(f"Pay {plural(len(chosen), 'disbursement')} of {name} again, {amount}?", yes)
        command = operator.Repay(
            who=who_am_i(who), why=why, envelope_id=envelope.envelope_id, disbursement_ids=chosen, expected=len(chosen)
        )
        touched = send_command(views, "funds", str(envelope.envelope_id), command)
    text = f"{plural(touched, 'disbursement')} of {name} to be paid again, {amount}; `almoner watch {name}` shows how it goes"
    done(as_json, text, touched, envelope_id=envelope.envelope_id, amount_minor=int(row.minor), currency=envelope.currency)


def settle(ids: list[int], evidence: str, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    chosen = sorted(set(ids))
    if len(chosen) > CHUNK_ITEMS:
        raise Usage(f"at most {CHUNK_ITEMS} at once")
    with Views() as views:
        rows = views.rows("SELECT id, reason FROM funds.ops_exceptions WHERE id = ANY(%(ids)s::bigint[])", ids=chosen)
        if missing := sorted(set(chosen) - {row.id for row in rows}):
            raise Refused(f"there is no exception {missing[0]}: `almoner exceptions` names them")
        for reason, count in Counter(row.reason for row in rows).most_common():
            say(as_json, f"  {count:,} × {reason}")
        confirm(f"Close {plural(len(chosen), 'exception')}?", yes)
        command = operator.SettleException(who=who_am_i(who), why=why, evidence=evidence, ids=chosen, expected=len(chosen))
        touched = send_command(views, "funds", "exceptions", command)
    done(as_json, f"{plural(touched, 'exception')} closed; no money was moved by that", touched)


def cancel(name: str, disbursement_ids: list[str], who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Ask, in the publisher's name, that an envelope or single disbursements be cancelled; wait for funds' answer."""
    with Views() as views:
        envelope = find_envelope(views, name)
    chosen = list(dict.fromkeys(disbursement_ids))
    unpaid = f"whatever is unpaid of {plural(envelope.received, 'disbursement')}"
    confirm(f"Cancel {plural(len(chosen), 'disbursement') if chosen else unpaid} of envelope {name}?", yes)
    answers = Answers()
    publisher = Publisher()
    publisher_id = envelope.publisher_envelope_id
    ids = {
        publisher.command(
            INGESTION,
            publisher_id,
            operator.CancelForPublisher(
                who=who_am_i(who), why=why, source=envelope.source, envelope_id=publisher_id, disbursement_ids=some
            ),
        )
        for some in (list(in_portions(chosen, None)) or [[]])
    }
    publisher.flush()
    rejected: list[str] = []
    left: list[dict[str, Any]] = []
    cancelled = cancelled_minor = 0
    taken = ("parked", "accepted")  # funds decides, and ingestion answers again
    for event in answers.to(ids, ANSWER_SECONDS, taken):
        if isinstance(event.data, SubmissionRejected):
            rejected += [f"{fault.code}: {fault.message}" for fault in event.data.errors]
            continue
        if event.data.outcome in taken:
            continue
        amount = money(event.data.cancelled_minor, envelope.currency)
        in_all = "" if chosen else " in all"
        say(as_json, f"{plural(event.data.cancelled, 'disbursement')} cancelled{in_all}, {amount}")
        cancelled, cancelled_minor = cancelled + event.data.cancelled, cancelled_minor + event.data.cancelled_minor
        left += [one.model_dump() for one in event.data.not_cancelled]
        for one in event.data.not_cancelled[:20]:
            say(as_json, f"  not cancelled: {one.disbursement_id} ({one.reason})")
    told = {"amount_minor": cancelled_minor, "currency": envelope.currency, "not_cancelled": left, "rejected": rejected}
    done(as_json, "", cancelled, envelope_id=envelope.envelope_id, **told, unanswered=len(ids))
    if rejected:
        raise Refused("rejected: " + "; ".join(rejected))
    if ids:
        raise NotReachable(
            f"no answer for {ANSWER_SECONDS:.0f} s. It comes when nothing of it is in flight; the request is not lost: "
            f"see `almoner timeline {name}`"
        )
    if left:
        raise Refused(f"{plural(len(left), 'disbursement')} could not be cancelled any more")


def amend(
    name: str,
    people: int | None,
    disbursements: int | None,
    total: str | None,
    day: date | None,
    who: str | None,
    why: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Declare, in the publisher's name, something else of an envelope; wait for ingestion's answer. None stays as it is."""
    with Views() as views:
        envelope = find_envelope(views, name)
    unit = unit_of(envelope)
    try:
        total_minor = None if total is None else unit.to_minor(total)
        request = EnvelopeAmendmentRequested(
            envelope_id=envelope.publisher_envelope_id,
            number_of_beneficiaries=people,
            number_of_disbursements=disbursements,
            total_minor=total_minor,
            schedule_date=day,
            reason=why,
        )
    except MoneyError as error:
        raise Usage(f"--total: {error}") from None
    except ValidationError as error:
        raise Usage("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors(include_url=False))) from None
    given = (
        ("people", envelope.beneficiaries, people),
        ("disbursements", envelope.declared, disbursements),
        ("total", quantity(envelope.declared_minor, unit), None if total_minor is None else quantity(total_minor, unit)),
        ("date", envelope.schedule_date, day),
    )
    changes = [f"  {what}: {wanted} instead of {now}" for what, now, wanted in given if wanted not in (None, now)]
    if not changes:
        done(as_json, f"That is what is declared of {name}: nothing to amend.", 0)
        return
    there = plural(envelope.received, "disbursement")
    say(as_json, f"{name}: {there} of {quantity(envelope.received_minor, unit)} received; declared will be", *changes)
    confirm(f"Amend envelope {name}?", yes)
    answers = Answers()
    publisher = Publisher()
    command = operator.AmendForPublisher(who=who_am_i(who), why=why, source=envelope.source, amendment=request)
    ids = {publisher.command(INGESTION, request.envelope_id, command)}
    publisher.flush()
    for event in answers.to(ids, ANSWER_SECONDS):
        if isinstance(event.data, SubmissionRejected):
            raise Refused("rejected: " + "; ".join(f"{fault.code}: {fault.message}" for fault in event.data.errors))
    if ids:
        raise NotReachable(
            f"no answer for {ANSWER_SECONDS:.0f} s: is ingestion running? The request is not lost: see `almoner timeline {name}`"
        )
    done(as_json, f"{name} is amended", 1, envelope_id=envelope.envelope_id)


def submit_statement(
    path: Path, url: str | None, token: str | None, who: str | None, why: str, yes: bool, as_json: bool
) -> None:
    """Hand a bank's statement file to ingestion over HTTP, and say by a command who did it and why."""
    if not path.is_file():
        raise Usage(f"there is no file {path}")
    url, token = statement_door(url, token)
    # Who and why are judged before the file is gone.
    command = operator.HandInStatement(who=who_am_i(who), why=why, file_id=UUID(int=0), file=path.name)
    with Views() as views:
        confirm(f"Hand in {path.name} ({path.stat().st_size:,} bytes)?", yes)
        file_id, told = _through_the_door(path, url, token)
        say(as_json, f"{path.name} taken")
        for kind, code, message in told:  # each of them, before anything else can fail: it is not said again
            say(as_json, printable(f"  {kind.removesuffix('s')}: {code}: {message}"))
        touched = send_command(views, "ingestion", str(file_id), command.model_copy(update={"file_id": file_id}))
    said = [{"kind": kind.removesuffix("s"), "code": code, "message": message} for kind, code, message in told]
    done(as_json, "", touched, file_id=file_id, told=said)


def _through_the_door(path: Path, url: str, token: str) -> tuple[UUID, list[tuple[str, str, str]]]:
    """The id of a file that the door has taken, and what is told of it: (rejected or warnings, code, message)."""
    import httpx

    try:
        with path.open("rb") as file:
            answer = httpx.post(
                url,
                headers={"Authorization": f"Bearer {token}"},
                files={"statement_file": (path.name, file, "text/plain")},
                timeout=120,
                trust_env=False,
            )
    except httpx.HTTPError as error:
        raise NotReachable(f"ingestion does not answer at {url}: {error}") from error
    if answer.status_code in (401, 403):
        raise Refused(f"ingestion does not know this token ({answer.status_code}): see --token")
    if not answer.is_success:
        raise Refused(f"ingestion refused the file ({answer.status_code}): {answer.text.strip()[:500]}")
    try:
        said = answer.json()
        told = [(kind, one["code"], one["message"]) for kind in ("rejected", "warnings") for one in said[kind]]
        return UUID(said["file_id"]), told
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{url} is not ingestion's door: {printable(answer.text.strip()[:200])}") from error


def request_statement(sponsor: str, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Have funds ask the bank. Nothing is waited for: the statement comes when the bank sends it."""
    with Views() as views:
        if not yes:
            on_none = views.one("SELECT coalesce(sum(outstanding), 0)::bigint AS n FROM funds.ops_envelopes").n
            whose = f"{sponsor or 'every sponsor'} (payments on none yet, of all sponsors: {on_none:,})"
            confirm(f"Ask the bank for a statement of {whose}?", yes)
        command = operator.RequestStatement(who=who_am_i(who), why=why, sponsor=sponsor)
        touched = send_command(views, "funds", sponsor or "statements", command)
    done(as_json, f"{plural(touched, 'account')}: the bank is asked; `almoner failures` says if it refuses", touched)


def statement_door(url: str | None, token: str | None) -> tuple[str, str]:
    """Where statements go: as given, by the environment, else the stack that is up."""
    url = url or os.environ.get("ALMONER_STATEMENT_URL")
    token = token or os.environ.get("ALMONER_STATEMENT_TOKEN")
    if url and token:
        return url, token
    from libs.local import services

    door = services.statement_door(home())
    if door is None:
        raise NotReachable("no services are up here: give --url and --token (or ALMONER_STATEMENT_URL and _TOKEN)")
    return url or door[0], token or door[1]


def pause(service: str, stage: str, on: bool, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    if service not in SERVICES:
        raise Usage(f"no service is called {service!r}: there are {', '.join(SERVICES)}")
    with Views() as views:
        if not yes:
            confirm(f"{'Pause' if on else 'Resume'} {stage} of {service} (waiting: {_waiting(views, service, stage):,})?", yes)
        model = operator.PauseStage if on else operator.ResumeStage
        touched = send_command(views, service, stage, model(who=who_am_i(who), why=why, stage=stage))
    state = "paused" if on else "resumed"
    text = f"{service}: {stage} {state}" if touched else f"{service}: {stage} was {state} already"
    done(as_json, text, touched, service=service, stage=stage)


def _waiting(views: Views, service: str, stage: str) -> int:
    """Before a stage: messages not consumed yet, or calls and decisions to be made."""
    if stage == "consume":
        return sum(place.lag for place in places((service,)) if not place.topic.endswith(".commands.v1"))  # which go on
    row = views.one(
        f"""SELECT (SELECT count(*) FROM {service}.ops_work WHERE kind = %(stage)s AND state IN ('PENDING', 'CLAIMED'))
                 + (SELECT count(*) FROM {service}.ops_due WHERE job = %(stage)s AND NOT gave_up) AS n""",
        stage=stage,
    )
    return int(row.n)
