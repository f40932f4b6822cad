"""`almoner demo-goods`: rice for 10,000 people, and cash for them through agencies, on a stack of its own.

One small zone has no agency and seven people are not in the registry; both are mended, and in the end nobody is held. Judged by
the bank's own ledger, by the books in kilograms and in money, and by what Novu and the mail server say they were given.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from libs.cli import sample
from libs.cli.context import CliError, Views, find_envelope
from libs.cli.demo import PROFILE, STEP_SECONDS, almoner, captured, environment, heading
from libs.cli.watch import at_rest, stages
from libs.local import services
from libs.local.client import BankAdmin, MailAdmin, NovuAdmin
from libs.local.reference import Reference
from libs.local.stack import Stack, StackError, owned

RICE, CASH = "drought-rice-2026-11", "drought-agency-cash-2026-11"
UNREGISTERED, WITHOUT_AGENCY = 7, 1
SHOWN = 12


def main(people: int) -> None:
    """Ends with one line of JSON. Raises CliError where a promise is not kept."""
    started = time.monotonic()
    heading("Starting Kafka, PostgreSQL, the systems around, and six services (the first time fetches them)")
    try:
        with owned(simulators=True, name="demo") as stack, environment(stack):
            services.start(stack, say=lambda text: print(f"  {text}", flush=True))
            result = play(stack, people)
    except StackError as error:
        raise CliError(str(error)) from error
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result))


def play(stack: Stack, people: int) -> dict[str, Any]:
    with (
        BankAdmin(stack.addresses.bank_url) as bank,
        NovuAdmin(stack.addresses.novu_url) as novu,
        MailAdmin(stack.addresses.mail_url) as mail,
        Views() as views,
        tempfile.TemporaryDirectory(prefix="almoner-sample-") as folder,
    ):
        scene = Scene(Path(folder), Reference(stack.addresses.database_url), bank, views, people)
        scene.set()
        scene.submit()
        scene.look_around()
        scene.mend()
        delivered = Counter(row["transaction_id"] for row in novu.triggered())
        delivered.update(row["message_id"].strip("<>").partition("@")[0] for row in mail.mails())
        return scene.judge(delivered)


class Scene:
    def __init__(self, folder: Path, reference: Reference, bank: BankAdmin, views: Views, count: int) -> None:
        self.rice, self.cash = folder / "rice.csv", folder / "agency-cash.csv"
        self.reference, self.bank, self.views, self.count = reference, bank, views, count
        self.people = list(sample.people(count))
        ids = list(dict.fromkeys(person for _, person, _, _ in self.people))
        served = [one for one in ids if sample.zone(one)[2] != self.unserved]
        self.strangers = set(served[:: len(served) // UNREGISTERED][:UNREGISTERED])

    @property
    def unserved(self) -> str:
        """The small zone without an agency."""
        return str(sample.agencies()[-WITHOUT_AGENCY].zones[0])

    def set(self) -> None:
        sample.write_goods(self.rice, self.count)
        sample.write(self.cash, self.count)
        ids = {person for _, person, _, _ in self.people} - self.strangers
        sample.settle(self.reference, sorted(ids), WITHOUT_AGENCY)
        zones = len({sample.zone(one)[2] for one in ids})
        heading(f"{self.count:,} people in {zones} small zones; {UNREGISTERED} are not in the registry, one zone has no agency")
        for line in self.rice.read_text().splitlines()[:4]:
            print(f"  {line}")
        almoner("refresh", "--why", "the season's warehouses and agencies are known", "--yes")

    def submit(self) -> None:
        heading("Rice in kilograms, and cash that agencies hand out")
        almoner("submit", str(self.rice), *sample.goods_options(RICE), "--yes")
        almoner("submit", str(self.cash), *sample.agency_cash_options(CASH, services.CURRENCY), "--yes")
        almoner("watch")
        unserved = sum(sample.zone(person)[2] == self.unserved for _, person, _, _ in self.people)
        strangers = sum(person in self.strangers for _, person, _, _ in self.people)
        self.until("all but the held are allocated", RICE, lambda row: row.allocated == self.count - unserved - strangers)
        self.until("all but the held are paid", CASH, lambda row: at_rest(row) and row.confirmed == self.count - row.held)

    def look_around(self) -> None:
        heading("Who serves whom, zone by zone")
        almoner("zones", RICE)
        almoner("zones", CASH)
        heading("What the agencies hand out")
        shortened("allocations", CASH)
        heading("Where is everything? In kilograms and in money")
        almoner("books")
        heading("Who is held, and why")
        shortened("held")
        reasons = Counter(row["reason"] for row in json.loads(captured("held", "-o", "json")))
        print("  " + ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items())))
        heading("What one agency was told")
        self.until_told()
        notice = self.views.one(
            """SELECT notice_id FROM notifications.ops_notices WHERE kind = 'AGENCY' AND state = 'SENT'
               ORDER BY created_at, notice_id LIMIT 1"""
        )
        shortened("notice", "show", str(notice.notice_id), lines=30)

    def mend(self) -> None:
        heading("The registry and PBMS are mended, and the held are tried again; nobody else is touched")
        self.reference.put_people((one, *sample.zone(one)) for one in sorted(self.strangers))
        for place in sample.agencies()[-WITHOUT_AGENCY:]:
            self.reference.put_agency(place)
        almoner("retry", RICE, "--held", "--why", "registry and PBMS are mended", "--yes")
        almoner("retry", CASH, "--held", "--why", "registry and PBMS are mended", "--yes")
        self.until("nobody is held", RICE, lambda row: row.allocated == self.count)
        self.until("all are paid", CASH, lambda row: row.settled_at is not None and row.confirmed == self.count)
        self.until_told()
        almoner("status")
        almoner("notices", "--limit", "3")

    def judge(self, delivered: Counter[str]) -> dict[str, Any]:
        """`delivered`: how often Novu and the mail server have each notice, by its id."""
        heading("Compared with the bank's own ledger, agency by agency, and with what Novu and the mail server were given")
        faults = self.compare() + self.compare_notices(delivered)
        for fault in faults[:20]:
            print(f"  {fault}")
        proof = json.loads(captured("books", "-o", "json"))
        rice, cash = self.row(RICE), self.row(CASH)
        payments = self.views.one(
            "SELECT count(*) AS n, count(*) FILTER (WHERE state = 'CONFIRMED') AS confirmed FROM funds.ops_agency_payments"
        )
        told = {
            row.kind: row.n
            for row in self.views.rows(
                "SELECT kind, count(*) AS n FROM notifications.ops_notices WHERE state = 'SENT' GROUP BY kind"
            )
        }
        result = {
            "entitlements": 2 * self.count,
            "allocated": rice.allocated + cash.allocated,
            "held": rice.held + cash.held,
            "notices_sent": {kind.lower(): told.get(kind, 0) for kind in ("WAREHOUSE", "AGENCY", "BENEFICIARY")},
            "agency_payments": payments.n,
            "confirmed": payments.confirmed,
            "books_balanced": bool(proof["balanced"] and proof["at_rest"] and not faults),
        }
        promised = {"allocated": 2 * self.count, "held": 0, "confirmed": payments.n, "books_balanced": True}
        broken = [f"{name} is {result[name]}, not {value}" for name, value in promised.items() if result[name] != value]
        if told.get("BENEFICIARY") != 2 * self.count:
            broken.append(f"{told.get('BENEFICIARY', 0)} people were told, not {2 * self.count}")
        if broken:
            print(json.dumps(result), file=sys.stderr)
            raise CliError("the demo did not end as it should: " + "; ".join(broken))
        print(
            f"  {payments.n:,} payments to {len(sample.agencies())} agencies agree, each once; {len(delivered):,} notices were given"
            " to Novu and the mail server, each once, and each of the people was told of both"
        )
        return result

    def compare(self) -> list[str]:
        """What the bank's ledger says otherwise than promised: each agency has the sum of its zone's people, in payments of which
        each is named once."""
        expected: Counter[str] = Counter()
        account_of = {place.zones[0]: place.account.split("#")[2] for place in sample.agencies() if place.account}
        for _, person, _, amount_minor in self.people:
            expected[account_of[sample.zone(person)[2]]] += amount_minor
        found: Counter[str] = Counter()
        references: Counter[str] = Counter()
        for row in self.bank.payments(PROFILE):
            if row["state"] == "paid":
                found[row["beneficiary_account"]] += row["amount_minor"]
                references[row["payment_reference_number"]] += 1
        faults = [f"{reference} was paid {times} times" for reference, times in references.items() if times > 1]
        faults += [
            f"account {account} should have {expected[account]}, the bank has {found[account]}"
            for account in sorted(expected.keys() | found.keys())
            if expected[account] != found[account]
        ]
        named = self.views.one("SELECT count(*) AS n FROM funds.ops_agency_payments").n
        if named != len(references):
            faults.append(f"{named} agency payments are known, the bank has {len(references)}")
        return faults

    def compare_notices(self, delivered: Counter[str]) -> list[str]:
        """What the two who deliver have otherwise than we say: each notice once, and none that we do not know to be sent."""
        states = {
            str(row.notice_id): row.state for row in self.views.rows("SELECT notice_id, state FROM notifications.ops_notices")
        }
        return [
            f"notice {one} is {states.get(one, 'unknown to us')} and was delivered {delivered[one]} times"
            for one in sorted(states.keys() | delivered.keys())
            if (states.get(one), delivered[one]) != ("SENT", 1)
        ]

    def row(self, name: str) -> Any:
        return stages(self.views, find_envelope(self.views, name).envelope_id)[0]

    def until(self, what: str, name: str, condition: Callable[[Any], object]) -> None:
        """Wait for an envelope's row. Raises CliError when it takes too long."""
        until = time.monotonic() + STEP_SECONDS
        while time.monotonic() < until:
            with suppress(IndexError):
                if condition(self.row(name)):
                    return
            time.sleep(0.2)
        raise CliError(f"waited {STEP_SECONDS:.0f} s until {what}; it stands at {self.row(name)}")

    def until_told(self) -> None:
        """Until all who are served have a notice, and none is on its way."""
        query = """SELECT count(*) FILTER (WHERE kind = 'BENEFICIARY') AS people,
                          count(*) FILTER (WHERE state NOT IN ('SENT', 'SUPPRESSED', 'FAILED', 'UNKNOWN')) AS open
                   FROM notifications.ops_notices"""
        served = self.row(RICE).allocated + self.row(CASH).allocated
        until = time.monotonic() + STEP_SECONDS
        while time.monotonic() < until:
            row = self.views.one(query)
            if row.people == served and not row.open:
                return
            time.sleep(0.2)
        raise CliError(f"waited {STEP_SECONDS:.0f} s until everybody was told")


def shortened(*argv: str, lines: int = SHOWN) -> None:
    """Type a verb and show the first lines of what it says."""
    print(f"$ ./almoner {' '.join(argv)}", flush=True)
    said = captured(*argv).splitlines()
    print("\n".join(said[:lines]))
    if len(said) > lines:
        print(f"  … and {len(said) - lines:,} more lines")
