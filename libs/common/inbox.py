"""What was consumed, in the same transaction as what it changed: a second delivery finds itself here and does nothing."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from libs.common.db import Database, Tx
from libs.common.envelope import Event
from libs.common.runtime_schema import INBOX_DAYS

_UNDATED = date(1970, 1, 1)


def take(tx: Tx, events: Sequence[Event[Any]], now: datetime) -> tuple[list[Event[Any]], list[Event[Any]]]:
    """Record events; returns those seen for the first time, in their order, and those whose id was used with other content."""
    if not events:
        return [], []
    columns = {
        "days": [_day(event, now) for event in events],
        "topics": [event.raw.topic for event in events],
        "sources": [event.source for event in events],
        "ids": [event.id for event in events],
        "digests": [event.raw.digest for event in events],
    }
    stored = tx.rows(
        """INSERT INTO inbox (day, topic, source, id, digest)
           SELECT * FROM unnest(%(days)s::date[], %(topics)s::text[], %(sources)s::text[], %(ids)s::text[],
                                %(digests)s::bytea[])
           ON CONFLICT DO NOTHING RETURNING topic, source, id""",
        **columns,
    )
    new = {tuple(row) for row in stored}
    fresh: list[Event[Any]] = []
    repeated: list[Event[Any]] = []
    for event in events:
        key = (event.raw.topic, event.source, event.id)
        if key in new:
            new.discard(key)
            fresh.append(event)
        else:
            repeated.append(event)
    return fresh, _reused(tx, repeated, now)


def _reused(tx: Tx, repeated: Sequence[Event[Any]], now: datetime) -> list[Event[Any]]:
    if not repeated:
        return []
    known = tx.rows(
        """SELECT topic, source, id, digest FROM inbox JOIN unnest(%(days)s::date[], %(topics)s::text[],
                  %(sources)s::text[], %(ids)s::text[]) AS wanted (day, topic, source, id) USING (day, topic, source, id)""",
        days=[_day(event, now) for event in repeated],
        topics=[event.raw.topic for event in repeated],
        sources=[event.source for event in repeated],
        ids=[event.id for event in repeated],
    )
    digests = {(row.topic, row.source, row.id): bytes(row.digest) for row in known}
    return [event for event in repeated if digests[event.raw.topic, event.source, event.id] != event.raw.digest]


def keep_partitions(database: Database, now: datetime) -> None:
    """Make the partitions of the days around today and drop those past their time. Runs at start and once a day."""
    today = now.astimezone(UTC).date()
    wanted = {today + timedelta(days=offset) for offset in range(-INBOX_DAYS, 3)}
    with database.transaction() as tx:
        tx.run("SELECT maintain_inbox(%(days)s::date[])", days=sorted(wanted))


def _day(event: Event[Any], now: datetime) -> date:
    if event.time is None or not timedelta(days=-INBOX_DAYS + 1) < event.time - now < timedelta(days=1):
        return _UNDATED
    return event.time.astimezone(UTC).date()
