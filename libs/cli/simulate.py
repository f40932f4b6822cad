"""What life does to the simulated bank and mapper of the stack that is up: people become known, money comes back, answers are
lost. Of a real bank and mapper nobody can order such things."""

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from libs.cli import sample
from libs.cli.context import NotReachable, Refused, Usage, Views, find_envelope, home, plural
from libs.local import services
from libs.local.client import BankAdmin, MapperAdmin, Profile
from libs.local.reference import Reference
from libs.local.stack import Addresses, attach

SEEN_SECONDS = 60.0


def people(path: Path, without: int) -> None:
    """Have the mapper know everybody in a file but the last `without`, with addresses as the sample has them."""
    ids = _beneficiaries(path)
    try:
        addresses = [(one, sample.address(one)) for one in ids]
    except ValueError as error:
        raise Usage(f"{path}: only people of the sample have an address here, such as NRB31000007") from error
    known = addresses[: max(0, len(addresses) - without)]
    with MapperAdmin(_addresses().mapper_url) as mapper:
        mapper.put_people(known)
    print(f"the mapper knows {len(known)} of {len(ids)} people")


def places(path: Path, without: int) -> None:
    """Have the registry know everybody in a file, and PBMS the sample's warehouses and agencies but the last `without`."""
    ids = _beneficiaries(path)
    reference = Reference(_addresses().database_url)
    reference.prepare()
    try:
        sample.settle(reference, ids, without)
    except ValueError as error:
        raise Usage(f"{path}: only people of the sample live somewhere here, such as NRB31000007") from error
    print(f"the registry knows {plural(len(ids), 'person')}; PBMS has warehouses and {len(sample.agencies(without))} agencies")


def reverse(name: str, disbursement_ids: list[str], reason: str) -> None:
    """Have the bank give payments back, and wait until its statement says so."""
    with Views() as views:
        envelope = find_envelope(views, name)
        rows = views.rows(
            """SELECT b.bank, p.disbursement_id, p.reference FROM funds.ops_payments p JOIN funds.ops_instructions i USING (instruction)
               JOIN funds.ops_blocks b ON b.envelope_id = i.envelope_id AND b.block = i.block
               WHERE p.envelope_id = %(id)s AND p.disbursement_id = ANY(%(ids)s::text[]) AND p.state = 'CONFIRMED'""",
            id=envelope.envelope_id,
            ids=disbursement_ids,
        )
        if missing := sorted(set(disbursement_ids) - {row.disbursement_id for row in rows}):
            raise Refused(f"{missing[0]} is not paid in {name}: nothing can come back")
        with _bank() as bank:
            for profile in services.PROFILES:
                references = [row.reference for row in rows if row.bank.lower() == profile]
                if references:
                    bank.reverse(profile, reason=reason, references=references)
        references = [row.reference for row in rows]
        until = time.monotonic() + SEEN_SECONDS
        while time.monotonic() < until:
            seen = views.one(
                """SELECT count(*) AS n FROM funds.ops_payments
                   WHERE envelope_id = %(id)s AND reference = ANY(%(references)s::text[]) AND state = 'REVERSED'""",
                id=envelope.envelope_id,
                references=references,
            )
            if seen.n == len(references):
                print(f"the bank has given {plural(len(references), 'payment')} of {name} back, and its statement says so")
                return
            time.sleep(0.1)
    raise NotReachable(f"the bank has given the money back, but its statement was not read within {SEEN_SECONDS:.0f} s")


def lost_answer(bank: Profile, verb: str) -> None:
    """Have a bank do what it is asked next, and its answer be lost."""
    with _bank() as admin:
        admin.add_fault("timeout_after", profile=bank, path=f"/{verb}", count=1)
    print(f"the bank {bank.upper()} will do the next {verb}, and nobody will hear of it")


def _beneficiaries(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(dict.fromkeys(row["beneficiary_id"] for row in csv.DictReader(file)))
    except (OSError, KeyError, ValueError) as error:
        raise Usage(f"{path}: a CSV file with a column beneficiary_id is expected ({error!r})") from error


@contextmanager
def _bank() -> Iterator[BankAdmin]:
    with BankAdmin(_addresses().bank_url) as bank:
        yield bank


def _addresses() -> Addresses:
    stack = attach(home())
    if stack is None or not stack.addresses.bank_url:
        raise NotReachable("nothing is up: the simulated bank and mapper run with `./almoner up`")
    return stack.addresses
