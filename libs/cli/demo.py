"""`almoner demo`: 10,000 people paid on a stack of its own, with what goes wrong in life, judged by the bank's own ledger.

Every step but the setting of the scene is a verb of `almoner`, shown as it would be typed.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from libs.cli import app, sample
from libs.cli.context import CliError, Views, find_envelope
from libs.cli.watch import stages
from libs.local import services
from libs.local.client import BankAdmin, MapperAdmin, Profile
from libs.local.stack import Stack, StackError, owned

ENVELOPE = "drought-relief-2026-11"
PROFILE: Profile = "full"
UNKNOWN_PEOPLE, CANCELLED, REVERSED = 12, 3, 5
STEP_SECONDS = 300.0


def main(count: int) -> None:
    """Ends with one line of JSON. Raises CliError where a promise is not kept."""
    started = time.monotonic()
    heading("Starting Kafka, PostgreSQL, a bank and a mapper, and four services (the first time fetches them)")
    try:
        with owned(simulators=True, name="demo") as stack, environment(stack):
            services.start(stack, names=services.CASH, say=lambda text: print(f"  {text}", flush=True))
            result = play(stack, count)
    except StackError as error:
        raise CliError(str(error)) from error
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result))


@contextmanager
def environment(stack: Stack) -> Iterator[None]:
    """The verbs find this stack, and no other."""
    before = dict(os.environ)
    os.environ.update(stack.env, ALMONER_HOME=str(stack.data_dir))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def play(stack: Stack, count: int) -> dict[str, Any]:
    with (
        BankAdmin(stack.addresses.bank_url) as bank,
        MapperAdmin(stack.addresses.mapper_url) as mapper,
        Views() as views,
        tempfile.TemporaryDirectory(prefix="almoner-sample-") as folder,
    ):
        scene = Scene(Path(folder), bank, mapper, views, count)
        scene.set()
        scene.submit_and_cancel()
        scene.pay()
        scene.reverse()
        scene.look_around()
        scene.pay_the_held()
        return scene.judge()


class Scene:
    """The sample's people and who among them has a story of their own."""

    def __init__(self, folder: Path, bank: BankAdmin, mapper: MapperAdmin, views: Views, count: int) -> None:
        self.file = folder / "drought-relief.csv"
        self.bank, self.mapper, self.views, self.count = bank, mapper, views, count
        self.people = {row[0]: row for row in sample.people(count)}
        ids = list(self.people)
        step = count // (UNKNOWN_PEOPLE + CANCELLED + REVERSED + 1)
        chosen = [ids[(n + 1) * step + n] for n in range(UNKNOWN_PEOPLE + CANCELLED + REVERSED)]
        self.unknown = chosen[0::2][: REVERSED + CANCELLED] + chosen[-4:]
        rest = [one for one in chosen if one not in self.unknown]
        self.cancelled, self.reversed = rest[:CANCELLED], rest[CANCELLED:]
        twice = ids[1], ids[count // 2 - 1]
        assert not set(twice) & set(chosen), "the person who is there twice must be paid twice"
        self.paid_before: set[str] = set()

    def set(self) -> None:
        sample.write(self.file, self.count)
        strangers = {self.people[one][1] for one in self.unknown}
        known = {row[1] for row in self.people.values()} - strangers
        self.mapper.put_people((person, sample.address(person)) for person in sorted(known))
        heading(f"The sample: {self.count:,} disbursements; the mapper does not know {len(strangers)} of the people")
        for line in self.file.read_text().splitlines()[:4]:
            print(f"  {line}")

    def submit_and_cancel(self) -> None:
        heading("Dispatch is paused, so that three people can be cancelled after the block and before they are paid")
        almoner("pause", "funds", "dispatch", "--why", "to cancel three after the block", "--yes")
        almoner("submit", str(self.file), *sample.envelope_options(ENVELOPE, services.CURRENCY), "--yes")
        self.until("the funds are blocked and all addresses there", lambda row: row.blocked_minor and self.all_at_funds(row))
        ids = [part for one in self.cancelled for part in ("--disbursement", one)]
        almoner("cancel", ENVELOPE, *ids, "--why", "moved away before the payment", "--yes")
        almoner("resume", "funds", "dispatch", "--yes")

    def all_at_funds(self, row: Any) -> bool:
        """Every disbursement waits in an instruction or is held."""
        instructions = self.views.one(
            "SELECT coalesce(sum(count), 0) AS n FROM funds.ops_instructions WHERE envelope_id = %(id)s", id=row.envelope_id
        )
        return bool(instructions.n + row.held == self.count)

    def pay(self) -> None:
        heading("Paying")
        almoner("watch", ENVELOPE)
        expected = self.count - len(self.unknown) - CANCELLED
        self.until("everybody with an address is confirmed", lambda row: row.confirmed == expected)

    def reverse(self) -> None:
        heading("Days later the bank gives five payments back")
        found = self.bank.reverse(PROFILE, reason="ACCOUNT CLOSED", disbursement_ids=self.reversed)
        print(f"  the bank booked {found} reversals and pushed a statement")
        self.until("the reversals are reconciled", lambda row: row.reversed == REVERSED)

    def look_around(self) -> None:
        heading("Where is the money? Proved from rows, from the bank's lines and from events")
        almoner("books", ENVELOPE)
        heading("Who is not paid, and why")
        almoner("held", ENVELOPE)
        heading("One disbursement's story")
        almoner("timeline", self.reversed[0])

    def pay_the_held(self) -> None:
        heading(f"The {UNKNOWN_PEOPLE} are added to the mapper and tried again; nobody else is touched")
        self.paid_before = {row["disbursement_id"] for row in self.bank.payments(PROFILE)}
        people = [self.people[one][1] for one in self.unknown]
        self.mapper.put_people((person, sample.address(person)) for person in people)
        almoner("retry", ENVELOPE, "--held", "--why", "added to the mapper", "--yes")
        self.until("they are paid and the envelope is settled", lambda row: not row.held and row.settled_at is not None)
        almoner("status", ENVELOPE)

    def judge(self) -> dict[str, Any]:
        """Compare with the bank's ledger, disbursement by disbursement."""
        heading("Compared with the bank's own ledger, disbursement by disbursement")
        faults = self.compare()
        for fault in faults[:20]:
            print(f"  {fault}")
        proof = json.loads(captured("books", ENVELOPE, "-o", "json"))
        row = self.row()
        result = {
            "disbursements": self.count,
            "confirmed": row.confirmed,
            "reversed": row.reversed,
            "held": row.held,
            "unknown": row.unknown,
            "cancelled": row.cancelled,
            "released_minor": row.released_minor,
            "books_balanced": bool(proof["balanced"] and proof["at_rest"] and not faults),
        }
        cancelled_minor = sum(self.people[one][3] for one in self.cancelled)
        promised = {
            "confirmed": self.count - REVERSED - CANCELLED,
            "reversed": REVERSED,
            "held": 0,
            "unknown": 0,
            "cancelled": CANCELLED,
            "released_minor": cancelled_minor,
            "books_balanced": True,
        }
        broken = [f"{name} is {result[name]}, not {value}" for name, value in promised.items() if result[name] != value]
        if broken:
            print(json.dumps(result), file=sys.stderr)
            raise CliError("the demo did not end as it should: " + "; ".join(broken))
        print(
            f"  {self.count:,} disbursements agree: {result['confirmed']:,} paid once, {REVERSED} given back, {CANCELLED} never"
        )
        return result

    def compare(self) -> list[str]:
        """What the bank's ledger says otherwise than promised."""
        faults = []
        seen: dict[str, dict[str, Any]] = {}
        for row in self.bank.payments(PROFILE):
            one = row["disbursement_id"]
            if one in seen:
                faults.append(
                    f"{one} was paid twice: {seen[one]['payment_reference_number']}, {row['payment_reference_number']}"
                )
            seen[one] = row
        for one, (_, beneficiary_id, _, amount_minor) in self.people.items():
            row = seen.get(one, {})
            if one in self.cancelled:
                if row:
                    faults.append(f"{one} was cancelled and paid all the same")
                continue
            state = "reversed" if one in self.reversed else "paid"
            found = (row.get("state"), row.get("amount_minor"), row.get("beneficiary_id"))
            if found != (state, amount_minor, beneficiary_id):
                faults.append(f"{one} should be {state} with {amount_minor} to {beneficiary_id}, the bank has {found}")
        faults += [f"{one} was paid and is not in the sample" for one in seen.keys() - self.people.keys()]
        late = seen.keys() - self.paid_before
        if late != set(self.unknown):
            faults.append(f"the retry should pay {len(self.unknown)} people and paid {len(late)}")
        return faults

    def row(self) -> Any:
        return stages(self.views, find_envelope(self.views, ENVELOPE).envelope_id)[0]

    def until(self, what: str, condition: Callable[[Any], object]) -> None:
        """Wait for the envelope's row. Raises CliError when it takes too long."""
        until = time.monotonic() + STEP_SECONDS
        while time.monotonic() < until:
            with suppress(IndexError):
                if condition(self.row()):
                    return
            time.sleep(0.2)
        raise CliError(f"waited {STEP_SECONDS:.0f} s until {what}; it stands at {self.row()}")


def almoner(*argv: str) -> None:
    """Type a verb. Raises CliError where it fails."""
    shown = shlex.join(Path(part).name if part.startswith("/") else part for part in argv)
    print(f"$ ./almoner {shown}", flush=True)
    code = app.run(list(argv))
    if code:
        raise CliError(f"`almoner {shown}` ended with {code}")


def captured(*argv: str) -> str:
    """A verb's output, whatever its exit code."""
    output = StringIO()
    with redirect_stdout(output):
        app.run(list(argv))
    return output.getvalue()


def heading(text: str) -> None:
    print(f"\n— {text}", flush=True)
