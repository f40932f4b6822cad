"""What somebody has to look after: notices that wait, that failed, and those whose outcome is unknown. Counts only: no subject."""

from prometheus_client import Gauge

from libs.common import metrics
from libs.common.db import Tx

OPEN = Gauge("almoner_notices_open", "Notices that wait for their provider, or whose outcome is unknown", ["state"])
OLDEST = Gauge("almoner_notices_oldest_seconds", "Age of the oldest notice that waits for its provider")
FAILED = Gauge("almoner_notices_failed", "Notices that failed within a day and were not sent again", ["kind", "code"])
PARKED = Gauge("almoner_payments_parked", "Payments of people whose part of the batch has not come yet")


def read_notices(tx: Tx) -> None:
    rows = tx.rows("SELECT state, count(*) AS notices FROM notices WHERE state IN ('PENDING', 'UNKNOWN') GROUP BY state")
    found: dict[tuple[str, ...], float] = {("PENDING",): 0.0, ("UNKNOWN",): 0.0}
    metrics.show(OPEN, found | {(row.state,): float(row.notices) for row in rows})
    oldest = tx.one(
        "SELECT extract(epoch FROM clock_timestamp() - min(created_at)) AS age FROM notices WHERE state = 'PENDING'"
    )
    OLDEST.set(oldest.age or 0)
    # By when they were made, which has an index that no later change of a notice touches: few fail after a week.
    # now(), unlike clock_timestamp(), may be looked up in one.
    failed = tx.rows(
        """SELECT m.kind, n.code, count(*) AS notices FROM notices n JOIN mailings m USING (mailing)
           WHERE n.state = 'FAILED' AND n.created_at > now() - interval '8 days'
             AND n.updated_at > now() - interval '1 day'
             AND NOT EXISTS (SELECT 1 FROM notices r WHERE r.replaces = n.notice_id)
           GROUP BY m.kind, n.code"""
    )
    metrics.show(FAILED, {(row.kind, row.code): float(row.notices) for row in failed})
    PARKED.set(tx.one("SELECT coalesce(sum(cardinality(disbursement_ids)), 0) AS people FROM parked").people)
