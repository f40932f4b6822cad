"""What the mapper says of a person, as the bank receives it: every field, for each type of address and each version of the API."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from libs.common.contracts.base import totals
from libs.common.contracts.ingestion import EnvelopeCompleted
from libs.local.client import BankAdmin, MapperAdmin, Profile
from tests.integration.resolution.batches import PATIENT, cut, fa, publish, run
from tests.support.money import Payout
from tests.support.world import World


@contextmanager
def overheard(url: str) -> Iterator[tuple[str, list[Any]]]:
    """Stands between funds and the bank, passes everything on, and keeps the lists of payments as they were received."""
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.endswith("/initiate_payment"):
                heard.append(json.loads(body, parse_float=Decimal, parse_int=Decimal))
            kept = {name: self.headers[name] for name in ("Content-Type", "Idempotency-Key") if name in self.headers}
            answer = httpx.post(url + self.path, content=body, headers=kept, trust_env=False, verify=False, timeout=20)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# What differs from person to person; the number in their id decides which type of address they have.
BANK_ACCOUNT = {
    "beneficiary_account": "ACC0",
    "beneficiary_account_type": "BANK_ACCOUNT",
    "beneficiary_bank_code": "EXB",
    "beneficiary_branch_code": "B1",
}
MOBILE_WALLET = {
    "beneficiary_account": "",
    "beneficiary_account_type": "MOBILE_WALLET",
    "beneficiary_bank_code": "",
    "beneficiary_branch_code": "",
    "beneficiary_mobile_wallet_provider": "Wave",
    "beneficiary_phone_no": "+2211",
}
EMAIL_WALLET = {
    "beneficiary_account": "",
    "beneficiary_account_type": "EMAIL_WALLET",
    "beneficiary_bank_code": "",
    "beneficiary_branch_code": "",
    "beneficiary_email": "p2@d.example",
    "beneficiary_email_wallet_provider": "Pay",
}


@pytest.mark.parametrize(("api", "profile"), [("spar1", "full"), ("spar1", "example"), ("spar2", "full"), ("spar2", "example")])
def test_every_type_of_address_reaches_the_bank(
    world: World, mapper: MapperAdmin, bank: BankAdmin, api: str, profile: Profile
) -> None:
    payout = Payout(world, bank, profile)
    people = [f"{world.name}-{number}" for number in range(3)]
    mapper.put_people((person, fa(person)) for person in people)
    header = payout.header.model_dump(exclude={"envelope_id"})
    batch = cut(people, 1, payout.envelope_id, **header)
    with overheard(bank.base_url) as (url, heard):
        env = {**payout.env, "ALMONER_FUNDS_BANKS": payout.env["ALMONER_FUNDS_BANKS"].replace(bank.base_url, url)}
        run(world, mapper.base_url, ALMONER_RESOLUTION_MAPPER_API=api, **PATIENT)
        world.run("funds", **env)
        payout.publish(EnvelopeCompleted(header=payout.header, batches=1, **totals(batch.items.amount_minor)))
        publish(world, [batch])
        world.until(lambda: payout.position().get("outstanding") == 3, timeout=60)
    [payments] = heard
    [block] = bank.blocks(profile, payout.account)
    rows = {row.disbursement_id: row.reference for row in world.sql("funds", "SELECT * FROM ops_payments")}
    [instruction] = world.sql("funds", "SELECT payment_date FROM instructions")
    # In SPAR 1.x the text of a bank account may say more than the account.
    phone = {"beneficiary_phone_no": "+2210"} if api == "spar1" else {}
    kinds: list[dict[str, str]] = [{**BANK_ACCOUNT, **phone}, MOBILE_WALLET, EMAIL_WALLET]
    assert payments == [
        {
            "payment_reference_number": rows[f"D1-{number}"],
            "remitting_account": payout.account,
            "remitting_account_currency": "EUR",
            "payment_amount": Decimal(1000 + number) / 100,
            "funds_blocked_reference_number": block["block_reference_no"],
            "beneficiary_name": f"Name of {person}",
            "beneficiary_account_currency": "EUR",
            **kinds[number],
            "narrative_1": "March",
            "narrative_2": "Rice",
            "narrative_3": "2026-11",
            "narrative_4": person,
            "narrative_5": rows[f"D1-{number}"],
            "narrative_6": f"D1-{number}",
            "payment_date": instruction.payment_date.isoformat(),
        }
        for number, person in enumerate(people)
    ]
    paid = [payment for payment in bank.payments(profile) if payment["beneficiary_id"] in people]
    assert [payment["amount_minor"] for payment in paid] == [1000, 1001, 1002]
