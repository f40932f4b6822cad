"""`almoner submit FILE`: check everything, say what would happen, publish in chunks, show what was answered."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from libs.cli import sheet
from libs.cli.context import NotReachable, Refused, Usage, confirm, console, plural, print_json, quantity
from libs.cli.send import Answers, Publisher
from libs.common.clock import utc_now
from libs.common.contracts.base import CHUNK_ITEMS, envelope_uuid
from libs.common.contracts.ingestion import Disbursement, DisbursementsAdded, EnvelopeSubmitted, SubmissionRejected

QUIET_SECONDS = 60.0  # without any answer: ingestion does not run


@dataclass
class Outcome:
    """What ingestion answered."""

    accepted: int = 0
    parked: int = 0
    cancelled: int = 0
    rejected: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unanswered: int = 0


def submit(path: Path, fields: dict[str, Any], source: str, dry_run: bool, wait: bool, yes: bool, as_json: bool) -> str:
    """`fields` are the envelope's own, from options or a file; the first line of JSON Lines adds what they leave out. Returns our id
    of the envelope."""
    if not path.is_file():
        raise Usage(f"there is no file {path}")
    today = {"schedule_date": utc_now().date().isoformat()}
    envelope = sheet.parse_envelope({**today, **(sheet.envelope_from(path) or {}), **fields})
    unit = envelope.unit
    summary = sheet.check(path, unit)
    event = declared(envelope, summary)
    chunks = -(-summary.count // CHUNK_ITEMS)
    report: dict[str, Any] = {
        "envelope_id": envelope.envelope_id,
        "id": str(envelope_uuid(source, envelope.envelope_id)),
        "source": source,
        "disbursements": summary.count,
        "beneficiaries": summary.beneficiaries,
        "total_minor": summary.total_minor,
        "unit": unit.name,
        "events": 1 + chunks,
        "faults": [str(fault) for fault in summary.faults],
        "fault_count": summary.fault_count,
        "file_warnings": [str(warning) for warning in summary.warnings],
        "dry_run": dry_run,
    }
    if not as_json:
        introduce(path, envelope, event, summary, chunks)
    if summary.fault_count:
        if as_json:
            print_json(report)
        raise Refused(f"{plural(summary.fault_count, 'fault')} in {path.name}; nothing was submitted")
    if dry_run:
        if as_json:
            print_json(report)
        else:
            print("Nothing was submitted (--dry-run).")
        return str(report["id"])
    confirm(f"Submit {plural(summary.count, 'disbursement')} of {quantity(summary.total_minor, unit)} together?", yes)
    answers = Answers() if wait else None
    publisher = Publisher(source)
    ids = publish(publisher, event, with_progress(sheet.disbursements(path, unit), summary.count, as_json))
    publisher.flush()
    report["first_delivered_at"] = publisher.first_delivered_at
    outcome = collect(answers, ids) if answers else None
    finish(report, outcome, len(ids), as_json)
    return str(report["id"])


def declared(envelope: sheet.EnvelopeFile, summary: sheet.Summary) -> EnvelopeSubmitted:
    """The envelope's event. What the file holds beyond what is declared is a fault; less is not, the rest may come later."""
    total_minor = envelope.unit.to_minor(envelope.total) if envelope.total else summary.total_minor
    count = envelope.number_of_disbursements or summary.count
    people = envelope.number_of_beneficiaries or summary.beneficiaries
    if summary.count > count:
        summary.fault(sheet.Fault(0, "number_of_disbursements", f"{count} are declared, the file has {summary.count}"))
    if summary.total_minor > total_minor:
        summary.fault(sheet.Fault(0, "total", f"{total_minor} minor units are declared, the file has {summary.total_minor}"))
    return EnvelopeSubmitted.model_construct(
        envelope_id=envelope.envelope_id,
        programme=envelope.programme,
        benefit_code=envelope.benefit_code,
        cycle=envelope.cycle,
        target_registry=envelope.target_registry,
        number_of_beneficiaries=people,
        number_of_disbursements=count,
        total_minor=total_minor,
        currency=envelope.currency,
        measurement_unit=envelope.measurement_unit,
        unit_scale=envelope.unit_scale,
        schedule_date=envelope.schedule_date,
        time_zone=envelope.time_zone,
    )


def introduce(path: Path, envelope: sheet.EnvelopeFile, event: EnvelopeSubmitted, summary: sheet.Summary, chunks: int) -> None:
    print(f"{path.name}: envelope {envelope.envelope_id} of programme {envelope.programme.id}, due {envelope.schedule_date}")
    print(
        f"  {plural(summary.count, 'disbursement')} to {plural(summary.beneficiaries, 'person')}, "
        f"{quantity(summary.total_minor, envelope.unit)}; {plural(1 + chunks, 'event')} to publish"
    )
    if summary.count < event.number_of_disbursements:
        missing = event.number_of_disbursements - summary.count
        print(f"  {event.number_of_disbursements:,} are declared: the envelope stays open until {missing:,} more have come")
    listed("warning", summary.warnings, summary.warning_count)
    listed("fault", summary.faults, summary.fault_count)


def listed(word: str, found: Iterable[object], count: int, shown: int = 20) -> None:
    for one in islice(found, shown):
        print(f"  {word}: {one}")
    if count > shown:
        print(f"  … and {count - shown:,} more")


def with_progress(items: Iterator[Disbursement], count: int, quiet: bool) -> Iterator[Disbursement]:
    if quiet or not sys.stderr.isatty():
        return items
    from rich.progress import track

    return iter(track(items, "submitting", total=count, console=console(stderr=True), transient=True))


def publish(publisher: Publisher, event: EnvelopeSubmitted, items: Iterator[Disbursement]) -> dict[str, int]:
    """Publish an envelope and its disbursements; returns their ids with chunk numbers (0: the envelope). The caller flushes."""
    ids = {publisher.submit("ingestion.inbox-envelopes.v1", event.envelope_id, event): 0}
    for number, added in enumerate(chunks_of(event.envelope_id, items), 1):
        ids[publisher.submit("ingestion.inbox-disbursements.v1", f"{event.envelope_id}/{number}", added)] = number
    return ids


def chunks_of(envelope_id: str, items: Iterator[Disbursement]) -> Iterator[DisbursementsAdded]:
    """The events which add these disbursements to an envelope."""
    while chunk := list(islice(items, CHUNK_ITEMS)):
        yield DisbursementsAdded.model_construct(
            envelope_id=envelope_id, items=chunk, count=len(chunk), total_minor=sum(item["amount_minor"] for item in chunk)
        )


def collect(answers: Answers, ids: dict[str, int]) -> Outcome:
    """Wait until every submission is answered."""
    outcome = Outcome()
    open_ids = set(ids)
    parked: set[str] = set()
    for event in answers.to(open_ids, QUIET_SECONDS):
        ours = [ids[name] for name in event.data.submission_ids if name in ids]
        if isinstance(event.data, SubmissionRejected):
            outcome.rejected += len(ours)
            outcome.errors += [f"{fault.code}: {fault.message} ({placed(ours, fault.pointer)})" for fault in event.data.errors]
            if 0 in ours:
                break  # without its envelope nothing else will be taken
        elif event.data.outcome == "parked":
            parked.update(event.data.submission_ids)
        else:
            outcome.accepted += len(ours)
            if len(outcome.warnings) < sheet.SHOWN_FAULTS:
                outcome.warnings += [
                    f"{fault.code}: {fault.message} ({placed(ours, fault.pointer)})" for fault in event.data.warnings
                ]
    outcome.parked = len(open_ids & parked)
    outcome.unanswered = 0 if outcome.rejected else len(open_ids - parked)
    return outcome


def placed(chunks: list[int], pointer: str) -> str:
    """Where a fault is, in the words of the file: "/items/17/amount_minor" of chunk 2 is record 1,018."""
    parts = pointer.split("/")
    if len(chunks) == 1 and chunks[0] and len(parts) > 2 and parts[1] == "items" and parts[2].isdigit():
        record = (chunks[0] - 1) * CHUNK_ITEMS + int(parts[2]) + 1
        return f"record {record:,}" + (f", {parts[3]}" if len(parts) > 3 else "")
    return ("the envelope" if chunks == [0] else "disbursements") + (f", {pointer}" if pointer else "")


def finish(report: dict[str, Any], outcome: Outcome | None, submitted: int, as_json: bool) -> None:
    """Show the answers. Raises Refused where something was rejected, NotReachable where nobody answered."""
    if outcome is not None:
        report |= {
            "accepted": outcome.accepted,
            "parked": outcome.parked,
            "rejected": outcome.rejected,
            "unanswered": outcome.unanswered,
            "errors": outcome.errors,
            "warnings": outcome.warnings,
        }
    if as_json:
        print_json(report)
    elif outcome is None:
        print(f"{plural(submitted, 'event')} published; `almoner watch {report['envelope_id']}` shows what becomes of them")
    else:
        said = report["file_warnings"]  # the file's own words are nearer to whoever made it
        warnings = [one for one in outcome.warnings if not (said and one.startswith("DUPLICATE_BENEFICIARY"))]
        listed("warning", warnings, len(warnings))
        listed("error", outcome.errors, len(outcome.errors))
        parked = f", {outcome.parked:,} parked until their envelope comes" if outcome.parked else ""
        print(f"{outcome.accepted:,} of {plural(submitted, 'event')} accepted{parked}, {outcome.rejected:,} rejected")
    if outcome and outcome.rejected:
        raise Refused(f"{plural(outcome.rejected, 'event')} rejected")
    if outcome and outcome.unanswered:
        raise NotReachable(
            f"{plural(outcome.unanswered, 'event')} without an answer for {QUIET_SECONDS:.0f} s: is ingestion running? "
            f"What is published is not lost; the same command may be repeated (it is the same submission)"
        )
