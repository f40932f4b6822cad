"""A database restored to an earlier moment: Kafka's committed offsets are ahead of those stored with the data.

What such data shows as not called yet may have been called in the time that is lost. So a service compares before it calls or
publishes anything, and does not start; calls that another side would act upon again wait for an operator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from libs.common.db import Database
from libs.common.errors import Fatal
from libs.common.workqueue import CallOut

WHO = "restored database"  # who has paused what waits for an operator after a restore
_WHY = "some of these calls may have been made in the time that is lost: see the runbook, 'restored database'"


@dataclass(frozen=True)
class Guard:
    """Of one service's group. `waiting` are the calls that wait for an operator after a restore."""

    database: Database
    group: str
    topic_prefix: str
    topics: Sequence[str]
    waiting: Sequence[CallOut]

    def compare(self, committed: Iterable[TopicPartition]) -> None:
        """Raises Fatal if offsets are ahead of the data. They were asked for before this: whoever commits an offset has committed
        the data first."""
        found = self.database.look("SELECT * FROM consumed")
        stored = {(row.topic, row.partition): row.next_offset for row in found}
        for tp in committed:
            topic = tp.topic.removeprefix(self.topic_prefix)
            known = stored.get((topic, tp.partition), 0)
            if topic in self.topics and tp.offset > known:
                self._hold()
                raise Fatal(
                    f"{tp.topic}/{tp.partition}: group {self.group} has committed offset {tp.offset}, the data only knows "
                    f"{known}. The database is older than Kafka's offsets (restored?). Nothing was consumed; see the "
                    "runbook, 'restored database'."
                )

    def _hold(self) -> None:
        """An operator's older pause becomes ours, so that an older command to resume does not end it."""
        if not self.waiting:
            return
        with self.database.transaction() as tx:
            tx.run(
                """INSERT INTO paused (stage, who, why) SELECT stage, %(who)s, %(why)s FROM unnest(%(stages)s::text[]) AS s (stage)
                   ON CONFLICT (stage) DO UPDATE SET who = excluded.who, why = excluded.why, since = excluded.since""",
                who=WHO,
                why=_WHY,
                stages=[call.kind for call in self.waiting],
            )
            tx.run(
                """UPDATE work SET ambiguous = true
                   WHERE kind = ANY(%(kinds)s::text[]) AND state IN ('PENDING', 'ERROR') AND NOT ambiguous""",
                kinds=[call.kind for call in self.waiting if not call.read],
            )
