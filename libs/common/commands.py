"""What operators may ask of every service, and what each command leaves: an audit row, and a fact which says the same."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from libs.common import deadletters, jobs, restored, workqueue
from libs.common.consumer import Handler, Routes
from libs.common.contracts import operator
from libs.common.contracts.base import EventData
from libs.common.contracts.registry import TOPIC_BY_NAME
from libs.common.db import Tx
from libs.common.envelope import Event, cause_of
from libs.common.log import get
from libs.common.outbox import Outbox, outgoing

_log = get("commands")


class CommandRefused(Exception):
    """The command is understood and not carried out; the audit row says why."""


# Does what the command asks; returns how many rows it touched.
Act = Callable[[Tx, Event[Any]], int]


def audited(act: Act) -> Callable[[Tx, Sequence[Event[Any]]], None]:
    """A handler for commands: acts on each, writes who, why, what and how many into the audit table, and says so."""

    def handle(tx: Tx, events: Sequence[Event[Any]]) -> None:
        for event in events:
            command: operator.Command = event.data
            detail, refused = command.model_dump_json(exclude={"who", "why"}), ""
            try:
                affected = act(tx, event)
            except CommandRefused as refusal:
                affected, refused = 0, str(refusal)
                detail = f"refused: {refused}; {detail}"
            tx.run(
                # `now()` is the transaction's beginning: before what the command did, so that a history tells cause, then effect.
                """INSERT INTO audit (at, who, why, action, command_id, detail, affected)
                   VALUES (now(), %(who)s, %(why)s, %(action)s, %(id)s, %(detail)s, %(affected)s)
                   ON CONFLICT (command_id) DO NOTHING""",
                who=command.who,
                why=command.why,
                action=command.TYPE,
                id=event.id,
                detail=detail,
                affected=affected,
            )
            _say(tx, event, affected, refused)
            _log.info("command", action=command.TYPE, who=command.who, affected=affected)

    return handle


def _say(tx: Tx, event: Event[Any], affected: int, refused: str) -> None:
    command: operator.Command = event.data
    service = event.raw.topic.partition(".")[0]
    body = operator.CommandHandled(
        command_id=event.id,
        action=command.TYPE,
        who=command.who,
        why=command.why,
        affected=affected,
        refused=refused[:1000],
    )
    key = (event.raw.key or b"").decode(errors="replace")
    Outbox(service).append(tx, [outgoing(body, key, cause_of(event), service, event.id)])


def with_common(service: str, routes: Routes, stages: Collection[str]) -> Routes:
    """The service's routes and, on its command topic, what every service understands. `stages`: what can be paused."""
    topic = f"{service}.commands.v1"
    common: dict[type[operator.Command], Act] = {
        operator.PauseStage: lambda tx, event: _pause(tx, event, stages),
        operator.ResumeStage: lambda tx, event: _resume(tx, event, stages),
        operator.RetryWork: _retry,
        operator.RedriveDeadLetters: lambda tx, event: deadletters.redrive(tx, event.data.ids),
        operator.DiscardDeadLetters: lambda tx, event: deadletters.discard(tx, event.data.ids),
    }
    offered = TOPIC_BY_NAME[topic].types
    own: dict[tuple[str, type[EventData]], Handler] = {
        (topic, model): audited(act) for model, act in common.items() if model in offered
    }
    return replace(routes, handlers={**own, **routes.handlers})


def _pause(tx: Tx, event: Event[operator.PauseStage], stages: Collection[str]) -> int:
    _require_stage(event.data.stage, stages)
    # Whoever resumes a stage that was paused for several reasons must know all of them.
    return tx.run(
        """INSERT INTO paused AS p (stage, who, why) VALUES (%(stage)s, %(who)s, %(why)s)
           ON CONFLICT (stage) DO UPDATE SET why = p.why || '; ' || excluded.who || ': ' || excluded.why
           WHERE strpos(p.why, excluded.why) = 0 AND length(p.why) < 5000""",
        stage=event.data.stage,
        who=event.data.who,
        why=event.data.why,
    )


def _resume(tx: Tx, event: Event[operator.ResumeStage], stages: Collection[str]) -> int:
    # What an earlier release has paused can be resumed, though there is no such stage any more.
    if not tx.rows("SELECT 1 FROM paused WHERE stage = %(stage)s", stage=event.data.stage):
        _require_stage(event.data.stage, stages)
    # After a restore what was asked for in the time that is lost comes again: it must not end the pause that has begun since.
    return tx.run(
        """DELETE FROM paused WHERE stage = %(stage)s
           AND (who <> %(restored)s OR since < to_timestamp(%(sent_ms)s / 1000.0))""",
        stage=event.data.stage,
        restored=restored.WHO,
        sent_ms=event.raw.timestamp_ms,
    )


def _require_stage(stage: str, stages: Collection[str]) -> None:
    if stage not in stages:
        raise CommandRefused(f"has no stage {stage!r}: there are {', '.join(sorted(stages))}")


def _retry(tx: Tx, event: Event[operator.RetryWork]) -> int:
    kind, subjects, expected = event.data.kind, event.data.subjects, event.data.expected
    with tx.savepoint():  # a refusal leaves everything as it was
        found = len(workqueue.retry(tx, kind, subjects)) + len(jobs.retry(tx, kind, subjects))
        if expected not in (None, found):
            raise CommandRefused(f"the operator saw {expected}, there are {found}")
    return found
