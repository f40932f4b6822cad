"""Verbs for whoever keeps the services going: lag, dead letters, ticks by hand, who did what."""

import json
import sys
import time
from collections import Counter
from typing import Any

from libs.cli.context import (
    SERVICES,
    Number,
    Refused,
    Usage,
    Views,
    as_dict,
    clock,
    confirm,
    done,
    locate,
    plural,
    print_json,
    say,
    table,
    who_am_i,
)
from libs.cli.send import in_portions, read_one, send_command
from libs.cli.watch import places
from libs.common.contracts import operator

WATCH_SECONDS = 2.0
SHOWN_CHARACTERS = 2_000
_LETTERS = """
SELECT id, topic, partition, message_offset, correlation_id, code, message, deliveries, state, created_at
FROM {service}.ops_dead_letters WHERE (%(all)s OR state IN ('OPEN', 'REDRIVEN')) ORDER BY id
"""


def lag(again: bool, as_json: bool) -> None:
    """What each service has not consumed yet, by topic; in JSON by partition."""
    locate()
    while True:
        found = list(places(SERVICES))
        if as_json:
            print_json([{**vars(place), "lag": place.lag} for place in found])
        else:
            behind: Counter[tuple[str, str]] = Counter()
            partitions: Counter[tuple[str, str]] = Counter()
            for place in found:
                behind[place.service, place.topic] += place.lag
                partitions[place.service, place.topic] += 1
            rows = [(service, name, partitions[service, name], behind[service, name]) for service, name in sorted(partitions)]
            table("Not yet consumed", ("service", "topic", "partitions", "messages"), rows)
        if not again:
            return
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)


# --- Dead letters -----------------------------------------------------------------------------------------------------


def dlq_list(service: str | None, everything: bool, as_json: bool) -> None:
    with Views() as views:
        found = [(name, row) for name in _services(service) for row in _letters(views, name, everything)]
    if as_json:
        print_json([{"service": name, **as_dict(row)} for name, row in found])
    elif not found:
        print("No dead letters" + ("." if everything else " are open."))
    else:
        rows = [
            (name, Number(row.id), row.state.lower(), row.topic, row.code, row.message, clock(row.created_at))
            for name, row in found
        ]
        table("Dead letters", ("service", "id", "state", "topic", "code", "what is wrong", "since (UTC)"), rows)
        print("Read one with `almoner dlq show SERVICE ID`; then `dlq redrive` once its cause is gone, or `dlq discard`.")


def dlq_show(service: str, letter_id: int, as_json: bool) -> None:
    """A dead letter with its message as it stands in Kafka, as long as Kafka keeps it."""
    with Views() as views:
        letter = next((row for row in _letters(views, _service(service), True) if row.id == letter_id), None)
    if letter is None:
        raise Refused(f"{service} has no dead letter {letter_id}: `almoner dlq list` names them")
    message = read_one(letter.topic, letter.partition, letter.message_offset)
    headers = {name: value.decode("utf-8", "replace") for name, value in message.headers} if message else {}
    body = message.value.decode("utf-8", "replace") if message else ""
    if as_json:
        print_json({"service": service, **as_dict(letter), "headers": headers, "body": body})
        return
    for name, value in as_dict(letter).items():
        print(f"{name:15} {clock(value) if name == 'created_at' else '–' if value is None else value}")
    if message is None:
        print("Kafka does not keep this message any more; the service does, and can still publish it again.")
        return
    for name, value in headers.items():
        print(f"{name:15} {value}")
    print(_readable(body)[:SHOWN_CHARACTERS])


def dlq_redrive(
    service: str,
    ids: list[int],
    code: str | None,
    rate: float | None,
    who: str | None,
    why: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Publish open dead letters again on their topics, in portions: never more than `rate` a second, where that is given. Without ids
    and code all of the service's that are open now, and none that is set aside meanwhile."""
    with Views() as views:
        letters = [row for row in _chosen(views, service, ids, code) if row.state == "OPEN"]  # others are on their way
        if not letters:
            done(as_json, f"{service} has no such dead letters to publish.", 0, service=service, found=0, dry_run=dry_run)
            return
        _show(letters, as_json)
        count = plural(len(letters), "dead letter")
        if dry_run:
            would = f"{count} would be published again; nothing was sent."
            done(as_json, would, 0, service=service, found=len(letters), dry_run=True)
            return
        confirm(f"Publish {count} again?", yes)
        touched = 0
        for portion in in_portions([row.id for row in letters], rate):
            command = operator.RedriveDeadLetters(who=who_am_i(who), why=why, ids=portion)
            touched += send_command(views, service, service, command)
    text = f"{service}: {plural(touched, 'dead letter')} published again; `almoner dlq list` shows whether they were handled"
    done(as_json, text, touched, service=service, found=len(letters), dry_run=False)


def dlq_discard(service: str, ids: list[int], who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """Give dead letters up, for good. Whatever they said does not happen."""
    if not ids:
        raise Usage("name the dead letters to be given up: nobody gives up all of them")
    with Views() as views:
        letters = _chosen(views, service, ids, None)
        _show(letters, as_json)
        confirm(f"Give {plural(len(letters), 'dead letter')} up, for good?", yes)
        touched = 0
        for portion in in_portions([row.id for row in letters], None):
            command = operator.DiscardDeadLetters(who=who_am_i(who), why=why, ids=portion)
            touched += send_command(views, service, service, command)
    done(as_json, f"{service}: {plural(touched, 'dead letter')} given up", touched, service=service)


def _chosen(views: Views, service: str, ids: list[int], code: str | None) -> list[Any]:
    """Dead letters that are neither handled nor given up: these, or all, with this code or any. Raises Refused where one is missing."""
    letters = [row for row in _letters(views, _service(service), False) if not ids or row.id in ids]
    if missing := sorted(set(ids) - {row.id for row in letters}):
        raise Refused(f"{service} has no open dead letter {missing[0]}: `almoner dlq list` names them")
    return [row for row in letters if code in (None, row.code)]


def _show(letters: list[Any], as_json: bool) -> None:
    for code, count in Counter(row.code for row in letters).most_common():
        say(as_json, f"  {count:,} × {code}")


def _letters(views: Views, service: str, everything: bool) -> list[Any]:
    return views.rows(_LETTERS.format(service=service), all=everything)


def _readable(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body


# --- Ticks and the audit ----------------------------------------------------------------------------------------------


def tick(job: str | None, who: str | None, why: str, yes: bool, as_json: bool) -> None:
    """The jobs and when they are due; with a name, that job now."""
    with Views() as views:
        jobs = views.rows(
            "SELECT job, schedule, time_zone, misfire, last_due_at, next_due_at FROM scheduler.ops_jobs ORDER BY job"
        )
        if job is None:
            if as_json:
                print_json([as_dict(row) for row in jobs])
            else:
                rows = [(x.job, x.schedule, x.time_zone, clock(x.last_due_at), clock(x.next_due_at)) for x in jobs]
                table("Jobs", ("job", "schedule", "time zone", "last (UTC)", "next (UTC)"), rows)
            return
        if job not in [row.job for row in jobs]:
            raise Refused(f"no job is called {job!r}: there are {', '.join(row.job for row in jobs) or 'none'}")
        confirm(f"Fire {job} now?", yes)
        touched = send_command(views, "scheduler", job, operator.FireTick(who=who_am_i(who), why=why, job=job))
    done(as_json, f"{job} fired", touched, job=job)


def audit(service: str | None, limit: int, as_json: bool) -> None:
    """Who did what and why, the newest first."""
    found = []
    with Views() as views:
        for name in _services(service):
            query = f"SELECT at, who, why, action, affected, detail FROM {name}.ops_audit ORDER BY id DESC LIMIT %(limit)s"
            found += [(name, row) for row in views.rows(query, limit=limit)]
    newest = sorted(found, key=lambda pair: pair[1].at, reverse=True)[:limit]
    if as_json:
        print_json([{"service": name, **as_dict(row)} for name, row in newest])
        return
    rows = [
        (clock(row.at), name, row.who, row.action.split(".")[-2], int(row.affected), row.why, _refusal(row.detail))
        for name, row in newest
    ]
    table("Audit", ("at (UTC)", "service", "who", "action", "touched", "why", "refused"), rows)


def _refusal(detail: str) -> str:
    return detail.partition("; {")[0].removeprefix("refused: ") if detail.startswith("refused: ") else ""


def _services(service: str | None) -> tuple[str, ...]:
    return SERVICES if service is None else (_service(service),)


def _service(name: str) -> str:
    if name not in SERVICES:
        raise Usage(f"no service is called {name!r}: there are {', '.join(SERVICES)}")
    return name
