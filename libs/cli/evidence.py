"""What a proof looks at: counters, blocks and releases of the envelopes, and the scratch ledger beside them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from libs.cli.context import Views
from libs.cli.ledger import Ledger

PARTS = ("waiting", "in_flight", "unknown", "held", "dispatched", "releasing", "released")
MOVED = ("in_flight", "unknown", "dispatched", "released")  # parts which nothing can be in without a block
ENDS = ("outstanding", "confirmed", "reversed")
POSITION = ("blocked", *PARTS, *ENDS)
# Part of the position -> the state of its payments.
STATE_OF = {"waiting": "WAITING", "in_flight": "IN_FLIGHT", "unknown": "UNKNOWN", "outstanding": "OUTSTANDING"}
STATE_OF |= {"confirmed": "CONFIRMED", "reversed": "REVERSED"}
LIVE = f"state IN ({', '.join(repr(state) for state in STATE_OF.values())})"


class Evidence:
    """`rows` are the counters (funds.ops_envelopes) of one moment; `number` below is an envelope's place among them."""

    def __init__(self, views: Views, ledger: Ledger, rows: Sequence[Any]) -> None:
        self.views = views
        self.ledger = ledger
        self.rows = rows
        self.names = [f"envelope {row.publisher_envelope_id}" for row in rows]
        self.ids = [row.envelope_id for row in rows]
        self.older: Counter[str] = Counter()  # topic -> what could not be compared, since the topic does not keep it any more
        self.blocks = views.rows(
            """SELECT envelope_id, block, amount_minor, state, blocked_at FROM funds.ops_blocks
               WHERE envelope_id = ANY(%(ids)s::uuid[]) ORDER BY envelope_id, block""",
            ids=self.ids,
        )
        self.releases = views.rows(
            """SELECT release_id, envelope_id, block, amount_minor, state, released_at FROM funds.ops_releases
               WHERE envelope_id = ANY(%(ids)s::uuid[]) ORDER BY release_id""",
            ids=self.ids,
        )

    def passed(self, topic: str, older: Any) -> bool:
        """Counts what is too old to be compared; returns whether it is."""
        self.older[topic] += bool(older)
        return bool(older)

    def sum(self, table: str, number: int, condition: str = "TRUE") -> int:
        """Minor units of an envelope's rows in a table of the ledger."""
        sql = f"SELECT coalesce(sum(minor), 0) AS minor FROM {table} WHERE e = ? AND {condition}"
        return int(next(self.ledger.query(sql, number))["minor"])
