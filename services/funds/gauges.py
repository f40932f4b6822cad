"""What /metrics shows of money. Sums only: no disbursement, no person, no account."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from prometheus_client import Gauge

from libs.common.db import Tx
from libs.common.log import get
from libs.common.metrics import show

HELD = Gauge("almoner_held_minor", "Money held, in minor units", ["programme", "currency", "reason"])
UNKNOWN = Gauge("almoner_unknown_minor", "Money of which nobody knows where it is", ["programme", "currency", "kind"])
OFF_BALANCE = Gauge("almoner_books_off_balance_envelopes", "Envelopes of which the parts are not the whole")
CHECKED = Gauge("almoner_books_checked_envelopes", "Envelopes whose balance was looked at the last time")

_MOST_SERIES = 500  # publishers name programmes, and banks reasons: nobody may fill the memory of whoever scrapes

_log = get("gauges")


def read_money(tx: Tx) -> None:
    """Held and unknown money by programme. Each is found by an index of what is held or is a row per instruction."""
    # A bank's own code is its own text: one with a number in it may name an account.
    held = tx.rows(
        """SELECT e.programme, e.currency, CASE WHEN h.reason ~ '[0-9]{5}' THEN 'OTHER' ELSE h.reason END AS what,
                  sum(h.amount_minor)::bigint AS minor
           FROM held h JOIN envelopes e USING (envelope_id) WHERE h.state = 'HELD' GROUP BY 1, 2, 3
           UNION ALL
           SELECT e.programme, e.currency, 'RELEASE_' || r.state, sum(r.amount_minor)::bigint
           FROM releases r JOIN envelopes e USING (envelope_id) WHERE r.state IN ('REFUSED', 'NOT_OFFERED') GROUP BY 1, 2, 3"""
    )
    unknown = tx.rows(
        """SELECT e.programme, e.currency, u.kind AS what, sum(u.minor)::bigint AS minor
           FROM (SELECT envelope_id, 'dispatch' AS kind,
                        total_minor - cancelled_minor - refused_minor - debited_minor AS minor
                 FROM instructions WHERE state IN ('UNKNOWN', 'REFUSED')  -- as in the view: of a refused list nothing is left
                 UNION ALL SELECT envelope_id, 'block', amount_minor FROM blocks WHERE state = 'UNKNOWN'
                 UNION ALL SELECT envelope_id, 'release', amount_minor FROM releases WHERE state = 'UNKNOWN') AS u
           JOIN envelopes e USING (envelope_id) WHERE u.minor > 0 GROUP BY 1, 2, 3"""
    )
    show(HELD, bounded(held))
    show(UNKNOWN, bounded(unknown))


def read_books(tx: Tx) -> None:
    """Both identities of the books, from the counters, for each envelope that still moves, moves again or moved within a day.
    The proof from rows, statements and events is `almoner books`."""
    # OFFSET 0 keeps the view inside the loop: an index scan for each such envelope, not the sum of all there ever were.
    row = tx.one(
        """SELECT count(*) AS checked, count(*) FILTER (WHERE NOT m.balances) AS off,
                  (array_agg(e.envelope_id) FILTER (WHERE NOT m.balances))[1:5] AS some
           FROM envelopes e CROSS JOIN LATERAL (
               SELECT dispatched_minor = outstanding_minor + confirmed_minor + reversed_minor AND CASE WHEN blocked_minor > 0
                      THEN blocked_minor = waiting_minor + in_flight_minor + unknown_minor + held_minor + dispatched_minor
                                           + releasing_minor + released_minor
                      -- Without a block nothing can have left.
                      ELSE in_flight_minor + unknown_minor + dispatched_minor + released_minor = 0 END AS balances
               FROM money WHERE money.envelope_id = e.envelope_id OFFSET 0) AS m
           WHERE e.settled_at IS NULL OR e.settled_at > clock_timestamp() - interval '1 day'
              OR EXISTS (SELECT 1 FROM blocks b WHERE b.envelope_id = e.envelope_id AND b.created_at > e.settled_at)"""
    )
    if row.off:
        _log.error("books out of balance: run `almoner books`", envelopes=row.off, some=[str(one) for one in row.some])
    OFF_BALANCE.set(row.off)
    CHECKED.set(row.checked)


def bounded(rows: Sequence[Any], most: int = _MOST_SERIES) -> dict[tuple[str, ...], float]:
    """(programme, currency, what) -> minor units: the greatest by themselves, the rest of each currency together."""
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for number, row in enumerate(sorted(rows, key=lambda row: -row.minor)):
        found[(row.programme, row.currency, row.what) if number < most else ("others", row.currency, "others")] += row.minor
    return dict(found)
