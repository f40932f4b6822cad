"""python -m tests.mutants: take away, one at a time, what makes "paid once" true, or put back what others got wrong; each must
make a test fail. With words: only the mutants in whose name one of them is.

The chosen tests run once as the code is, then against each mutant in a copy of the tree, all on one broker and database.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from libs.local.stack import DATABASE_VARIABLE, KAFKA_VARIABLE, owned
from libs.local.supervisor import ROOT
from tests.support.stacks import memory

AT_ONCE = 4
LIMIT_SECONDS = 600
CRASH = "tests/faults/test_crash_funds.py::test_killed_at"
FREEZE = "tests/faults/test_freeze.py::test_frozen_beyond_its_lease"
LOCKS = "tests/faults/test_locks.py"
WORK = "tests/integration/runtime/test_work.py"
ENDS_IN_ERROR = f"{WORK}::test_what_was_never_sent_ends_in_error_and_can_be_retried"
RESOLVE = "tests/integration/resolution/test_resolve.py"
OPERATIONS = "tests/integration/funds/test_operations.py"
AGENCIES = "tests/integration/funds/test_agencies.py"
REPAY = "tests/integration/funds/test_repay.py"
NOTICES = "tests/integration/notifications/test_notices.py"
PROVIDERS = "tests/integration/notifications/test_providers.py"
PER_BATCH = "tests/faults/test_statements_per_batch.py::test_statements_are_the_same_whatever_the_number_of_people_and_batches"
LOST_MAIL = f"{PROVIDERS}::test_a_mail_whose_answer_is_lost_with_the_process_is_unknown_and_never_sent_again"
SOMEWHERE = "tests/integration/allocation/test_faults.py::test_everybody_is_somewhere_once_whatever_comes_twice_or_late"
DOMAIN = "tests/unit/funds/test_domain.py"
EXCEPTIONS = "tests/integration/funds/test_exceptions.py"
ALLOCATE = "tests/integration/allocation/test_allocate.py"
CHOICE = "tests/unit/allocation/test_choice.py"
TWO_BANKS = "tests/integration/funds/test_two_banks.py::test_a_bank_that_asks_for_time_stops_no_calls_to_another"


# The call is made while its claim is not committed, and what came of it is what the worker then gets.
CLAIMED = '            crash.reached("call.before_claim_commit", len(calls), self.kind)\n'
CALLED_BEFORE = """            told = vars(self).setdefault("told", {})
            for claim, request in calls:
                told[claim.subject] = asyncio.run(self._callout.call(httpx.AsyncClient(trust_env=False), claim, request))
            self.call = lambda client, claim, request: asyncio.sleep(0, told[claim.subject])
"""


@dataclass(frozen=True)
class Mutant:
    """`text` occurs exactly once in the file; at least one of the tests must fail without it."""

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


MUTANTS = [
    Mutant(
        "the inbox: what came before is handled again",
        "libs/common/inbox.py",
        "            repeated.append(event)\n",
        "            fresh.append(event)\n            repeated.append(event)\n",
        ("tests/integration/runtime/test_inbox.py::test_every_message_twice_has_its_effect_once_and_other_content_is_refused",),
    ),
    Mutant(
        "the lease guard: whoever answers last settles",
        "libs/common/workqueue.py",
        "AND subject = %(subject)s AND state = 'CLAIMED' AND lease_token = %(token)s",
        "AND subject = %(subject)s AND %(token)s::uuid IS NOT NULL",
        (f"{FREEZE}[answer is late, full]",),
    ),
    Mutant(
        "the key before the call: each attempt has its own",
        "libs/common/workqueue.py",
        "attempts_started = attempts_started + 1, tries = tries + 1, lease_token = gen_random_uuid(),",
        "attempts_started = attempts_started + 1, tries = tries + 1, lease_token = gen_random_uuid(),"
        " idempotency_key = uuidv7(),",
        (f"{CRASH}[call.after_answer-block-full]",),
    ),
    Mutant(
        "the outbox in the transaction: events are appended in one of their own",
        "libs/common/outbox.py",
        '    tx.copy("outbox"',
        '    Tx(tx.connection.engine.connect().execution_options(isolation_level="AUTOCOMMIT")).copy("outbox"',
        (f"{CRASH}[call.before_settle_commit-dispatch-example]",),
    ),
    Mutant(
        "the envelope's lock: claims don't take it",
        "libs/common/workqueue.py",
        "            tx.lock_shared(key for _, key in keys)\n",
        "",
        (f"{LOCKS}::test_a_claim_waits_for_who_decides",),
    ),
    Mutant(
        "the envelope's lock: folds don't take it",
        "services/funds/handlers.py",
        '    tx.lock_shared(lock_key("funds", event.data.header.envelope_id) for event in events)\n',
        "    return\n",
        (f"{LOCKS}::test_intake_waits_for_who_decides",),
    ),
    Mutant(
        "the envelope's lock: who decides doesn't take it",
        "libs/common/jobs.py",
        "            if waited:\n"
        "                tx.lock_exclusive([lock_key])\n"
        "            elif not tx.try_lock_exclusive(lock_key):\n"
        "                return False\n",
        "",
        (f"{LOCKS}::test_who_decides_waits_for_who_folds",),
    ),
    Mutant(
        "unknown is not retried: a payment whose answer was lost is sent again",
        "services/funds/calls.py",
        "if claim.ambiguous and bank.capabilities.dispatch is Repeat.ONCE:",
        "if claim.ambiguous and bank is None:",
        (f"{CRASH}[call.after_claim-dispatch-example]",),
    ),
    Mutant(
        "unknown is not retried: a block whose answer was lost is asked for again",
        "services/funds/calls.py",
        "elif claim.ambiguous and payer[0].capabilities.block is Repeat.ONCE:",
        "elif claim.ambiguous and payer[0] is None:",
        (f"{CRASH}[call.after_answer-block-example]",),
    ),
    Mutant(
        "unknown is not retried: a lease that ran out leaves no doubt",
        "libs/common/workqueue.py",
        "(ambiguous OR state = 'CLAIMED')",
        "ambiguous",
        (f"{CRASH}[call.after_answer-dispatch-example]",),
    ),
    Mutant(
        "a pause is the bank's own: one that asks for time stops the calls to all",
        "libs/common/workqueue.py",
        "claim.gate.pause(seconds, claim.counterpart)",
        "claim.gate.pause(seconds)",
        (f"{TWO_BANKS}[check-/check_funds]",),
    ),
    Mutant(
        "zones: an older word on where somebody lives wins",
        "services/resolution/store.py",
        "WHERE excluded.said_offset > p.said_offset OR excluded.said_ms > p.said_ms",
        "",
        ("tests/integration/resolution/test_people.py::test_an_older_word_changes_nothing",),
    ),
    Mutant(
        "addresses: who is asked for again in vain is held, though paid",
        "services/resolution/calls.py",
        " for item, hold in held if item.disbursement_id not in again\n",
        " for item, hold in held\n",
        ("tests/unit/resolution/test_zones.py::test_whoever_was_resolved_before_is_not_held_by_a_question_in_vain",),
    ),
    Mutant(
        "agency cash: a line is compared with the first share alone",
        "services/funds/domain.py",
        "        sum(one.amount_minor for one in sent),\n",
        "        sent[0].amount_minor,\n",
        (f"{DOMAIN}::test_a_line_is_for_all_shares_of_a_payment_to_an_agency_or_for_none",),
    ),
    Mutant(
        "agency cash: a late debit counts although a share of it was sent anew",
        "services/funds/handlers.py",
        "    whole = {key for key, ones in paying.items() if possible.issuperset(ones)}\n",
        "    whole = set(paying)\n",
        (f"{AGENCIES}::test_a_late_debit_of_which_a_share_was_sent_anew_counts_for_none_and_holds_the_rest",),
    ),
    Mutant(
        "in doubt: who may have been paid by a line that cannot count is paid anew",
        "services/funds/handlers.py",
        "        held = store.hold_disputed(tx, [(one.instruction, one.position) for one in found if one.held_id is None])\n",
        "        held: list[Any] = []\n",
        (f"{REPAY}::test_a_second_debit_of_a_reversed_payment_stops_its_repayment_until_it_is_settled[dispatch]",),
    ),
    # What a bridge of batches gets wrong (docs/compare.md), put back.
    Mutant(
        "as in a bridge: stale work is what is fresh, and the other way round",
        "libs/common/workqueue.py",
        "AND leased_until < clock_timestamp() AND NOT EXISTS",
        "AND leased_until > clock_timestamp() AND NOT EXISTS",
        (f"{WORK}::test_a_lease_that_ran_out_makes_the_next_attempt_ambiguous",),
    ),
    Mutant(
        "as in a bridge: people without an address vanish",
        "services/resolution/domain.py",
        "            held[index] = reply\n",
        "            continue\n",
        (f"{RESOLVE}::test_a_thousand_people_of_whom_twelve_are_unknown",),
    ),
    Mutant(
        "as in a bridge: the bank is called before the commit",
        "libs/common/workqueue.py",
        CLAIMED,
        CALLED_BEFORE + CLAIMED,
        (f"{CRASH}[call.before_claim_commit-block-example]",),
    ),
    Mutant(
        "as in a bridge: notices are sent before the commit",
        "libs/common/workqueue.py",
        CLAIMED,
        CALLED_BEFORE + CLAIMED,
        (f"{LOST_MAIL}[call.before_claim_commit]",),
    ),
    Mutant(
        "as in a bridge: nothing is released at the bank",
        "services/funds/calls.py",
        "        answer = await request.bank.release("
        "client, claim, request.account, request.block_reference, request.amount_minor)\n",
        '        answer: Answer = Done(Succeeded("none"))\n',
        (f"{OPERATIONS}::test_cancelled_disbursements_are_never_paid_unless_it_is_too_late[while paused]",),
    ),
    Mutant(
        "as in a bridge: a batch in which nobody has an address becomes a list to be paid",
        "services/funds/handlers.py",
        "        if people:\n"
        "            intake.instructions.append(\n"
        "                (envelope_id, batch_id, arrival.part, sealed.key_id, sealed.data, len(people), sum(people.amount_minor))\n",
        "        if True:\n"
        "            intake.instructions.append(\n"
        "                (envelope_id, batch_id, arrival.part, sealed.key_id, sealed.data, len(people) or 1,"
        " sum(people.amount_minor) or 1)\n",
        (f"{OPERATIONS}::test_of_a_batch_in_which_nobody_has_an_address_no_list_is_sent_until_they_have_one",),
    ),
    Mutant(
        "as in a bridge: of two disbursements for one person in a batch only one is paid",
        "services/resolution/calls.py",
        "        people = [(reference, item.beneficiary_id) for reference, item in zip(references, items, strict=True)]\n",
        "        people = [(one, who) for who, one in {i.beneficiary_id: r for r, i in zip(references, items, strict=True)}.items()]\n",
        (f"{RESOLVE}::test_a_thousand_people_of_whom_twelve_are_unknown",),
    ),
    Mutant(
        "as in a bridge: cancelled disbursements are paid",
        "services/funds/handlers.py",
        "                if envelope.cancelling or item.disbursement_id in tombstones:\n",
        "                if envelope.cancelling:\n",
        (f"{OPERATIONS}::test_cancelled_disbursements_are_never_paid_unless_it_is_too_late[before anything]",),
    ),
    Mutant(
        "as in a bridge: the statement's amount is not compared with what was paid",
        "services/funds/domain.py",
        "        elif payment.amount_minor != line.amount_minor or lists[line.instruction].currency != currency:\n",
        "        elif lists[line.instruction].currency != currency:\n",
        (f"{DOMAIN}::test_what_a_statement_line_means",),
    ),
    Mutant(
        "as in a bridge: a second reversal counts twice",
        "services/funds/domain.py",
        "        elif key in seen:\n",
        '        elif key in seen and line.mark == "D":\n',
        (f"{DOMAIN}::test_what_a_statement_line_means",),
    ),
    Mutant(
        "as in a bridge: a reversal in an earlier file than its debit is an error for ever",
        "services/funds/handlers.py",
        "        overtaken = store.end_early_reversals(tx, debits) if early else set()\n",
        "        overtaken: set[tuple[int, int]] = set()\n",
        (f"{OPERATIONS}::test_a_reversal_before_its_debit_counts_when_both_are_there",),
    ),
    Mutant(
        "as in a bridge: one bad line fails the file",
        "services/ingestion/statements.py",
        "            except mt940.Unreadable as error:\n",
        "            except ZeroDivisionError as error:\n",
        ("tests/integration/ingestion/test_statements.py::test_several_statements_in_one_file_and_a_bad_line",),
    ),
    Mutant(
        "as in a bridge: two debits for one payment fail the file",
        "services/funds/domain.py",
        '                result.exceptions.append((line, "DUPLICATE_DEBIT" if line.mark == "D" else "DUPLICATE_REVERSAL"))\n',
        '                raise ValueError("two rows where one was expected")\n',
        (f"{DOMAIN}::test_two_debits_of_one_payment_are_one_exception_and_the_rest_of_the_statement_counts",),
    ),
    Mutant(
        "as in a bridge: the same statement again is a duplicate for every line",
        "services/funds/domain.py",
        "            if not _identifies(line.bank_reference) or seen[key] != line.bank_reference:\n",
        "            if True:\n",
        (f"{DOMAIN}::test_the_same_lines_in_another_statement_change_nothing",),
    ),
    Mutant(
        "exceptions: what was cancelled at the bank's refusal, or given back, counts as paid all the same",
        "services/funds/store.py",
        "(c.cancelled IS NOT NULL OR coalesce(h.state IN ('CANCELLED', 'RELEASING', 'RELEASED'), false))",
        "c.cancelled IS NOT NULL",
        (f"{EXCEPTIONS}::test_a_line_that_cannot_count_is_an_exception_until_it_is_settled[PAID_AFTER_CANCEL: released]",),
    ),
    Mutant(
        "exceptions: a line that cannot be read vanishes",
        "services/funds/handlers.py",
        "for bad in data.unparsable\n",
        "for bad in data.unparsable[:0]\n",
        (f"{EXCEPTIONS}::test_a_line_that_cannot_be_read_is_an_exception_and_the_others_count",),
    ),
    Mutant(
        "chunks of statements: what comes again is new",
        "services/funds/store.py",
        "           WHERE NOT EXISTS (SELECT 1 FROM statement_chunks s WHERE s.statement_id = c.statement_id AND s.chunk = c.chunk)",
        "           WHERE true",
        ("tests/faults/test_races.py::test_every_message_twice_and_again_under_other_ids",),
    ),
    Mutant(
        "as in a bridge: totals are whole numbers, without cents",
        "libs/common/money.py",
        '        return checked(int(whole + fraction[: self.decimals].ljust(self.decimals, "0")))\n',
        "        return checked(int(whole) * 10**self.decimals)\n",
        ("tests/unit/common/test_money_and_clock.py::test_decimal_text_becomes_minor_units",),
    ),
    Mutant(
        "as in a bridge: an envelope's lock serves one batch at a time",
        "libs/common/db.py",
        "SELECT pg_advisory_xact_lock_shared(k)",
        "SELECT pg_advisory_xact_lock(k)",
        (f"{LOCKS}::test_batches_of_one_envelope_do_not_wait_for_each_other",),
    ),
    Mutant(
        "as in a bridge: a statement for each payment and each line",
        "libs/common/db.py",
        "        values = list(zip(*rows, strict=True))\n",
        "        rows = list(rows)\n"
        "        for row in rows[1:]:\n"
        "            self.copy(table, columns, [row])\n"
        "        values = list(zip(*rows[:1], strict=True))\n",
        (f"{PER_BATCH}[AgencyPayout-sizes1]",),
    ),
    Mutant(
        "as in a bridge: updated_at does not change when a call ends",
        "libs/common/workqueue.py",
        "lease_token = NULL, leased_until = NULL, updated_at = clock_timestamp()\n"
        "                   WHERE kind = %(kind)s AND subject = %(subject)s AND state = 'CLAIMED'",
        "lease_token = NULL, leased_until = NULL\n"
        "                   WHERE kind = %(kind)s AND subject = %(subject)s AND state = 'CLAIMED'",
        (ENDS_IN_ERROR,),
    ),
    Mutant(
        "as in a bridge: there is no state for each disbursement: one refused payment is the whole list's",
        "services/funds/store.py",
        "AND p.position = r.position\n",
        "AND p.position >= 0\n",
        (f"{OPERATIONS}::test_the_bank_refuses_single_payments_which_are_held_and_paid_when_retried",),
    ),
    Mutant(
        "as in a bridge: no history of attempts",
        "libs/common/workqueue.py",
        '            if calls:\n                tx.run(\n                    """INSERT INTO attempts',
        '            if calls and self.kind == "":\n                tx.run(\n                    """INSERT INTO attempts',
        (ENDS_IN_ERROR,),
    ),
    Mutant(
        "as in a bridge: nothing counts what became of calls",
        "libs/common/workqueue.py",
        "        metrics.CALLS.labels(self.kind, outcome).inc()\n",
        "",
        (f"{WORK}::test_what_may_have_happened_is_unknown_where_it_cannot_be_asked_again",),
    ),
    Mutant(
        "as in a bridge: no operator can have a failed call tried again",
        "libs/common/workqueue.py",
        "WHERE kind = %(kind)s AND state = 'ERROR'\n",
        "WHERE kind = %(kind)s AND state = 'NONE'\n",
        (ENDS_IN_ERROR,),
    ),
    Mutant(
        "the choice of a place: by chance, so that a repeat chooses another",
        "services/allocation/domain.py",
        "        return -self.coverage, self.load, self.id\n",
        "        return 0, __import__('random').randrange(10**9), self.id\n",
        (f"{CHOICE}::test_a_plan",),
    ),
    Mutant(
        "capacity: a place takes whatever comes",
        "services/allocation/domain.py",
        "        return self.room is None or minor <= self.room\n",
        "        return True\n",
        (f"{CHOICE}::test_a_plan",),
    ),
    Mutant(
        "the choice of a place: what it was given in this cycle counts for nothing",
        "services/allocation/store.py",
        "trunc(coalesce(l.units, 0) * 10::numeric ^ e.scale) AS load",
        "0 AS load",
        (f"{ALLOCATE}::test_what_a_place_was_given_in_this_cycle_decides_between_equals",),
    ),
    Mutant(
        "reference data: an older reading that ends later puts back what was",
        "services/allocation/reference.py",
        "        if before is not None and snapshot.taken_at <= before:\n            return\n",
        "",
        ("tests/integration/allocation/test_reference.py::test_an_older_reading_that_ends_later_changes_nothing",),
    ),
    Mutant(
        "a notice's key: each attempt has one of its own",
        "services/notifications/adapters/novu.py",
        "str(claim.idempotency_key)",
        "str(claim.lease_token)",
        (f"{PROVIDERS}::test_each_person_is_told_once_whenever_the_process_dies[call.after_answer-novu]",),
    ),
    Mutant(
        "a mail whose answer was lost: it is sent again",
        "services/notifications/adapters/smtp.py",
        "    key_seconds = 0.0\n",
        "    key_seconds = 60.0\n",
        (f"{LOST_MAIL}[call.after_answer]",),
    ),
    Mutant(
        "a notice's id: each time it is said there is another",
        "services/notifications/handlers.py",
        'return derived_id("notice", one.kind, one.header.envelope_id, one.subject, one.serial)\n',
        'return derived_id("notice", __import__("uuid").uuid4())\n',
        (f"{NOTICES}::test_agency_cash_tells_agencies_of_what_is_paid_and_people_once_it_is_confirmed[in order]",),
    ),
    Mutant(
        "parts of payments: what comes again is new, and pays whom the bank has refused",
        "services/funds/store.py",
        "    return {(row.batch_id, row.part) for row in rows}\n",
        "    return set(parts)\n",
        (f"{OPERATIONS}::test_the_bank_refuses_single_payments_which_are_held_and_paid_when_retried",),
    ),
    Mutant(
        "parts of goods: what comes again is new",
        "services/allocation/store.py",
        "           ON CONFLICT (batch_id, part) DO NOTHING RETURNING arrival, batch_id, part",
        "           RETURNING arrival, batch_id, part",
        (SOMEWHERE,),
    ),
    Mutant(
        "parts of goods: who is found later is there twice",
        "services/allocation/decisions.py",
        "        if again:\n",
        "        if not arrivals:\n",
        (SOMEWHERE,),
    ),
    Mutant(
        "goods: who lives nowhere that is known vanishes",
        "services/allocation/handlers.py",
        "        found = list(alike)\n",
        "        continue\n",
        (SOMEWHERE,),
    ),
    Mutant(
        "goods: whom nobody serves vanishes",
        "services/allocation/domain.py",
        "            shares.append(Share(group, None, None, None, reason, message))\n",
        "",
        (SOMEWHERE,),
    ),
    Mutant(
        "goods: single people who are cancelled are served",
        "services/allocation/decisions.py",
        "self._apart(tx, store.cancellable_people(tx, envelope_id, arrivals, ids))",
        "[]",
        (SOMEWHERE,),
    ),
    Mutant(
        "goods: who was cancelled before they came is served",
        "services/allocation/decisions.py",
        "elif envelope.asked or (arrivals and store.has_tombstones(tx, envelope_id)):",
        "elif envelope.asked:",
        (SOMEWHERE,),
    ),
    Mutant(
        "zones and addresses: who does not fit into an event vanishes",
        "services/resolution/calls.py",
        "for item, _ in found[half:])]\n",
        "for item, _ in found[:0])]\n",
        ("tests/unit/resolution/test_zones.py::test_a_part_that_exceeds_an_event_is_split",),
    ),
]


def main(words: Sequence[str] = ()) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print("No mutant has such a name.")
        return 1
    wrong = [mutant.name for mutant in chosen if (ROOT / mutant.file).read_text().count(mutant.text) != 1]
    if wrong:
        print("The code has changed; say anew what to take away for:", *wrong, sep="\n  ")
        return 1
    began = time.monotonic()
    with owned(name="mutants", parent=memory()) as stack, tempfile.TemporaryDirectory(prefix="almoner-mutants-") as folder:
        addresses = stack.addresses
        env = {**os.environ, KAFKA_VARIABLE: addresses.kafka, DATABASE_VARIABLE: addresses.database_url}
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        failed, output = run(ROOT, tests, env, Path(folder) / "unchanged.xml", f"-n{AT_ONCE}", "--dist=loadgroup")
        if failed != 0:
            print(output, f"{failed} of the tests fail already without any mutant.", sep="\n")
            return 1
        print(f"{len(tests)} tests pass as the code is.", flush=True)
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            trees.put(copy(Path(folder) / f"tree-{number}"))

        def judge(mutant: Mutant) -> str:
            tree = trees.get()
            since = time.monotonic()
            try:
                with mutated(tree, mutant):
                    count, text = run(tree, mutant.tests, env, tree.with_suffix(".xml"), "--exitfirst")
            finally:
                trees.put(tree)
            took = f"{time.monotonic() - since:.0f} s"
            verdict = "killed" if count > 0 else "SURVIVED" if count == 0 else "NOT JUDGED"
            print(f"{verdict:10}  {took:>5}  {mutant.name}", flush=True)
            if count < 0:
                print(text)
            return verdict

        with ThreadPoolExecutor(AT_ONCE) as pool:
            verdicts = list(pool.map(judge, chosen))
    print(f"{verdicts.count('killed')} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s")
    return 0 if set(verdicts) == {"killed"} else 1


def run(tree: Path, tests: Sequence[str], env: dict[str, str], report: Path, *more: str) -> tuple[int, str]:
    """How many tests have failed, and what pytest said; -1 if none did, and not all of them were run."""
    report.unlink(missing_ok=True)
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}", *more]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=tree,
            env={**env, "PYTHONPATH": str(tree)},
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        return -1, str(error)
    if done.returncode not in (0, 1) or not report.exists():
        return -1, done.stdout
    [suite] = ElementTree.parse(report).getroot().iter("testsuite")
    failures = int(suite.get("failures", 0))
    if suite.get("errors") != "0" or (not failures and int(suite.get("tests", 0)) < len(tests)):
        return -1, done.stdout
    return failures, done.stdout


def copy(tree: Path) -> Path:
    """What is, or would be, in a commit."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


@contextmanager
def mutated(tree: Path, mutant: Mutant) -> Iterator[None]:
    path = tree / mutant.file
    before = path.read_text()
    path.write_text(before.replace(mutant.text, mutant.instead))
    try:
        yield
    finally:
        path.write_text(before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
