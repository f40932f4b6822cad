"""Named points at which a test may kill or freeze the process, to prove that nothing is lost or done twice.

A point is registered here and reached in the runtime by `crash.reached(point, in_flight)`. Without
ALMONER_CRASH_AT that is a comparison with None. With `ALMONER_CRASH_AT=<point>[:<nth>]` the process writes
`<point> <in_flight>` to the file ALMONER_CRASH_MARK and then dies of SIGKILL, at the nth time the point is reached with
work in flight. The file exists only once: after the restart the same process lives.
"""

import os
import signal
import threading
from pathlib import Path

POINTS = {
    # fold: one polled batch of events -> one transaction -> offsets
    "fold.before_commit": "inbox, state and outbox are written, the transaction is still open",
    "fold.after_commit": "the transaction is committed, the offsets are not",
    "fold.after_offsets": "the offsets are committed as well",
    # relay: outbox -> Kafka
    "relay.after_produce": "handed to the producer, no delivery report yet",
    "relay.after_delivery": "the broker has acknowledged, the rows are still in the outbox",
    "relay.after_delete": "the rows are deleted",
    # call-out: claim -> call -> settle
    "call.before_claim_commit": "the claim is written, the transaction is still open",
    "call.after_claim": "lease and attempt are stored, nothing was sent",
    "call.after_first_byte": "the first bytes of the request are on their way",
    "call.after_answer": "the other side has answered, nothing of it is stored",
    "call.before_settle_commit": "the outcome is written, the transaction is still open",
    "call.after_settle": "the outcome is committed",
    # jobs: what is decided after commit, under the exclusive lock
    "job.before_commit": "the job's decision is written, the transaction is still open",
    "job.after_commit": "the job's decision is committed",
}

_target, _, _nth = os.environ.get("ALMONER_CRASH_AT", "").partition(":")
_only = os.environ.get("ALMONER_CRASH_KIND", "")  # a work kind or job name, where a point has many
_countdown = int(_nth or 1)
_lock = threading.Lock()
_signal = signal.Signals[os.environ.get("ALMONER_CRASH_SIGNAL", "SIGKILL")]
if _target and _target not in POINTS:
    raise ValueError(f"ALMONER_CRASH_AT={_target} is not one of {', '.join(POINTS)}")


def reached(point: str, in_flight: int, kind: str = "") -> None:
    """Die here if a test asked for it; `in_flight` is how many events, rows or calls are under way (0 never kills)."""
    if not _target or point != _target or not in_flight or (_only and kind != _only):
        return
    global _countdown
    with _lock:  # nobody else passes while the signal is on its way
        _countdown -= 1
        mark = Path(os.environ["ALMONER_CRASH_MARK"])
        if _countdown > 0 or mark.exists():
            return
        mark.write_text(f"{point} {in_flight}\n")
        signal.pthread_kill(threading.get_ident(), _signal)  # to the process, it might reach this thread later
