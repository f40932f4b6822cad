"""One example per event type, as on the wire: TYPE -> data. Together they tell one payment run, from its envelope to its end.

A rice farmers' cash programme pays four people. The mapper knows no account for one of them, the bank sends one payment
back, and one is cancelled before it is paid. Two of them also get seed rice; the village of one has no agency, so that this
one's rice is held. Other systems' tests and `docs/events.md` use these; names and accounts are invented.
"""

from typing import Any

from libs.common.contracts import allocation, funds, ingestion, notifications, operator, reference, resolution, scheduler
from libs.common.contracts.base import EventData, UnresolvedItems, derived_id, envelope_uuid

SOURCE = "urn:example:rice-programme"
_SUBMISSION = "3f0f7d0e-5c1b-4a35-9d52-8c1e3b7a9c10"
_CHUNK = "a8a4b0de-8a7e-4b0f-8a3e-0c2f4f3f6d21"
_AMENDMENT = "5e7c9a31-40c2-4e0e-8b7a-1d2f90c6ab55"
_CANCELLATION = "c2b0e1e6-1d7c-4c39-8c6b-5f6f0b1b7e32"

_PUBLISHER_ENVELOPE_ID = "RICE-2026-11-REGION-03"
_ENVELOPE_ID = str(envelope_uuid(SOURCE, _PUBLISHER_ENVELOPE_ID))
_BATCH_ID = str(derived_id("batch", _ENVELOPE_ID, 1))
_STATEMENT_ID = "7d9c0c4e-6c52-5b1f-9a52-1a8f6d0e4b43"
_ACCOUNT = "5b2f0c9e1d7a4836b1c4e6f80a93d275"

_PROGRAMME = {"id": "RICE", "mnemonic": "Rice Farmers' Assistance"}
_CYCLE = {"id": "2026-WET", "mnemonic": "Wet season 2026"}
_BENEFIT_CODE = {"id": "CASH-01", "mnemonic": "Cash per hectare"}

_HEADER: dict[str, Any] = {
    "envelope_id": _ENVELOPE_ID,
    "source": SOURCE,
    "publisher_envelope_id": _PUBLISHER_ENVELOPE_ID,
    "programme": _PROGRAMME,
    "benefit_code": _BENEFIT_CODE,
    "benefit_type": "CASH_DIGITAL",
    "cycle": _CYCLE,
    "target_registry": "farmers",
    "currency": "PHP",
    "measurement_unit": "",
    "unit_scale": 0,
    "schedule_date": "2026-11-24",
    "time_zone": "Asia/Manila",
    "revision": 1,
}
_BATCH_HEADER = {**_HEADER, "batch_id": _BATCH_ID, "number": 1}

# Four farmers: 5,000.00 + 7,512.50 + 3,250.75 + 5,000.00 pesos.
_PEOPLE = [
    ("RICE-03-000001", "FARMER-1004711", "Maria Santos", 500_000),
    ("RICE-03-000002", "FARMER-1004712", "Jose Ramos", 751_250),
    ("RICE-03-000003", "FARMER-1004713", "Liza Bautista", 325_075),
    ("RICE-03-000004", "FARMER-1004714", "Andres Flores", 500_000),
]
_ITEMS: list[dict[str, Any]] = [
    {"disbursement_id": disbursement, "beneficiary_id": beneficiary, "amount_minor": amount}
    for disbursement, beneficiary, _, amount in _PEOPLE
]
_TOTAL = 2_076_325
_PAID, _REVERSED, _CANCELLED, _UNRESOLVED = _ITEMS  # what becomes of each in the end
_SEALED = {
    "key_id": "k1",
    "data": "kWkRCwyAk5lPz1uQm0s8sZx0cQ0M2Y0H4m3rXb6r0pJcV9d1nS7tTgqf1y2Gk8aLw5u3oE9iD4hBvKxZ6RjPqNc=",
}


def _amounts(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"disbursement_id": item["disbursement_id"], "amount_minor": item["amount_minor"]} for item in items]


def _totals(items: list[dict[str, Any]]) -> dict[str, int]:
    return {"count": len(items), "total_minor": sum(item["amount_minor"] for item in items)}


def _columns(items: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [item[name] for item in items] for name in items[0]}


def _chunk(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_totals(items), "items": _columns(items)}


# 25.000 kg of rice for each of two farmers; the second one's village has no agency yet.
_RICE_HEADER: dict[str, Any] = {
    **_HEADER,
    "envelope_id": str(envelope_uuid(SOURCE, "RICE-2026-11-SEED")),
    "publisher_envelope_id": "RICE-2026-11-SEED",
    "benefit_code": {"id": "SEED-01", "mnemonic": "Seed rice"},
    "benefit_type": "COMMODITY",
    "currency": "",
    "measurement_unit": "kg",
    "unit_scale": 3,
}
_RICE_BATCH = {**_RICE_HEADER, "batch_id": str(derived_id("batch", _RICE_HEADER["envelope_id"], 1)), "number": 1}
_SERVED, _UNSERVED = ({**item, "amount_minor": 25_000} for item in _ITEMS[:2])
_PROVINCE = {"large_zone_id": "PH-ISA", "large_zone_code": "Isabela"}
_VILLAGE, _HAMLET = (
    {**_PROVINCE, "small_zone_id": code, "small_zone_code": name}
    for code, name in (("ISA-014", "Alicia"), ("ISA-022", "Jones"))
)
_WAREHOUSE = {"id": "W-7", "mnemonic": "CAUAYAN", "name": "Cauayan grain store"}
_AGENCY = {"id": "A-31", "mnemonic": "ALICIA-COOP", "name": "Alicia farmers' cooperative"}
_ADMIN = {"admin_name": "Rosa Cruz", "admin_email": "stores@example.org", "admin_mobile": "+63 2 5550 0101"}


def _located(*people: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """A chunk in which each is in a zone of their own."""
    return {
        **_chunk([{**item, "zone": index} for index, (item, _) in enumerate(people)]),
        "zones": [{**zone, "count": 1, "total_minor": item["amount_minor"]} for item, zone in people],
    }


def _notices(*items: dict[str, Any], channel: str | None = "novu") -> dict[str, Any]:
    return {
        "header": _RICE_BATCH,
        "kind": "BENEFICIARY",
        "count": len(items),
        **({"channel": channel} if channel else {}),
        "items": list(items),
    }


_NOTICE = {
    "notice_id": str(derived_id("notice", _RICE_BATCH["batch_id"], _SERVED["disbursement_id"])),
    "subject": _SERVED["disbursement_id"],
}


def _command(why: str, expected: int | None = None) -> dict[str, Any]:
    return {"who": "a.reyes@example.org", "why": why, "expected": expected}


_PUBLISHED: dict[type[EventData], dict[str, Any]] = {
    ingestion.EnvelopeSubmitted: {
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        "programme": _PROGRAMME,
        "benefit_code": {**_BENEFIT_CODE, "type": "CASH_DIGITAL"},
        "cycle": {**_CYCLE, "frequency": "SemiAnnually"},
        "target_registry": "farmers",
        "number_of_beneficiaries": 4,
        "number_of_disbursements": 4,
        "total_minor": _TOTAL,
        "currency": "PHP",
        "measurement_unit": None,
        "unit_scale": 0,
        "schedule_date": "2026-11-24",
        "time_zone": "Asia/Manila",
    },
    ingestion.DisbursementsAdded: {
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        **_totals(_ITEMS),
        "items": [
            {**item, "beneficiary_name": name, "narrative": "Rice assistance, wet season 2026", "contact": None}
            for item, (_, _, name, _) in zip(_ITEMS, _PEOPLE, strict=True)
        ],
    },
    ingestion.EnvelopeAmendmentRequested: {
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        "number_of_beneficiaries": 4,
        "number_of_disbursements": 4,
        "total_minor": _TOTAL,
        "schedule_date": None,
        "reason": "A farmer was added to the region's list",
    },
    ingestion.EnvelopeCancellationRequested: {
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        "reason": "The region's list was approved twice",
    },
    ingestion.DisbursementsCancellationRequested: {
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        "disbursement_ids": [_CANCELLED["disbursement_id"]],
        "reason": "The farm was sold before the season",
    },
    ingestion.EnvelopeStatusRequested: {"envelope_id": _PUBLISHER_ENVELOPE_ID},
    ingestion.StatementSubmitted: {
        "format": "MT940",
        "text": (
            ":20:STMT20261124\r\n:25:001234567890\r\n:28C:328/1\r\n:60F:C261124PHP98000000,00\r\n"
            ":61:2611241124D5000,00NTRFA000000001009NZ9//BANK0000471\r\n:86:Rice assistance\r\n"
            ":61:2611241124D7512,50NTRFA00000000101BWSE//BANK0000472\r\n:86:Rice assistance\r\n"
            ":61:2611241124RD7512,50NTRFA00000000101BWSE//BANK0000473\r\n:86:Account closed\r\n"
            ":61:2611241124DNTRFFEES\r\n"
            ":62F:C261124PHP97995000,00\r\n-"
        ),
    },
}

_ANSWERS: dict[type[EventData], dict[str, Any]] = {
    ingestion.SubmissionAccepted: {
        "submission_ids": [_SUBMISSION, _CHUNK],
        "envelope_id": _ENVELOPE_ID,
        "publisher_envelope_id": _PUBLISHER_ENVELOPE_ID,
        "outcome": "accepted",
        "items": 4,
        "warnings": [
            {
                "code": "DUPLICATE_BENEFICIARY",
                "pointer": "/items/3/beneficiary_id",
                "message": "is in this envelope more than once; each disbursement will be paid",
            }
        ],
        "cancelled": 0,
        "cancelled_minor": 0,
        "not_cancelled": [],
    },
    ingestion.SubmissionRejected: {
        "submission_ids": [_CHUNK],
        "topic": "ingestion.inbox-disbursements.v1",
        "partition": 2,
        "offset": 40_817,
        "envelope_id": _ENVELOPE_ID,
        "publisher_envelope_id": _PUBLISHER_ENVELOPE_ID,
        "errors": [
            {
                "code": "INVALID_DISBURSEMENT_QUANTITY",
                "pointer": "/items/2/amount_minor",
                "message": "Input should be greater than 0; "
                "send minor units as a whole number from 1 on, without quotes: 1250 for 12.50 EUR",
            }
        ],
    },
    ingestion.EnvelopeStatus: {
        "submission_ids": [_SUBMISSION],
        "header": _HEADER,
        "state": "SETTLED",
        "declared": 4,
        "declared_minor": _TOTAL,
        "received": 4,
        "received_minor": _TOTAL,
        "batches": 1,
        "funds": "BLOCKED",
        "progress": {
            "revision": 3,
            "blocked_minor": _TOTAL,
            **{
                name: 0
                for part in ("waiting", "in_flight", "unknown", "held", "outstanding")
                for name in (part, f"{part}_minor")
            },
            "confirmed": 1,
            "confirmed_minor": _PAID["amount_minor"],
            "reversed": 1,
            "reversed_minor": _REVERSED["amount_minor"],
            "cancelled": 1,
            "releasing_minor": 0,
            "released_minor": _TOTAL - _PAID["amount_minor"] - _REVERSED["amount_minor"],
        },
        "settlement": {
            "revision": 1,
            "confirmed": 1,
            "reversed": 1,
            "cancelled": 1,
            "blocked_minor": _TOTAL,
            "released_minor": _TOTAL - _PAID["amount_minor"] - _REVERSED["amount_minor"],
            "confirmed_minor": _PAID["amount_minor"],
            "reversed_minor": _REVERSED["amount_minor"],
        },
        "allocation": None,
    },
}

_INGESTION: dict[type[EventData], dict[str, Any]] = {
    ingestion.EnvelopeAccepted: {"header": _HEADER, "declared": 4, "declared_minor": _TOTAL},
    ingestion.EnvelopeAmended: {
        "header": {**_HEADER, "revision": 2},
        "request_id": _AMENDMENT,
        "reason": "A farmer was added to the region's list",
        "beneficiaries": 4,
        "declared": 4,
        "declared_minor": _TOTAL,
    },
    ingestion.EnvelopeRescheduling: {
        "header": {**_HEADER, "revision": 2},
        "request_id": _AMENDMENT,
        "reason": "The sponsor pays a week later",
        "schedule_date": "2026-11-30",
    },
    ingestion.EnvelopeCompleted: {"header": _HEADER, "batches": 1, "count": 4, "total_minor": _TOTAL},
    ingestion.EnvelopeCancelling: {
        "header": _HEADER,
        "request_id": _CANCELLATION,
        "reason": "The region's list was approved twice",
        "batches": 1,
        "count": 4,
        "total_minor": _TOTAL,
    },
    ingestion.DisbursementsCancelling: {
        "header": _HEADER,
        "request_id": _CANCELLATION,
        "reason": "The farm was sold before the season",
        "items": [{"disbursement_id": _CANCELLED["disbursement_id"], "batch_id": _BATCH_ID}],
    },
    ingestion.BatchCut: {"header": _BATCH_HEADER, **_chunk(_ITEMS), "sealed": _SEALED},
    ingestion.StatementOpened: {
        "statement_id": _STATEMENT_ID,
        "account_token": _ACCOUNT,
        "reference": "STMT20261124",
        "number": "328",
        "sequence": "1",
        "currency": "PHP",
        "opening_minor": 9_800_000_000,
        "closing_minor": 9_799_500_000,
        "lines": 4,
        "chunks": 1,
    },
    ingestion.StatementLines: {
        "statement_id": _STATEMENT_ID,
        "account_token": _ACCOUNT,
        "currency": "PHP",
        "chunk": 1,
        "lines": _columns(
            [
                {
                    "line": line,
                    "mark": mark,
                    "amount_minor": item["amount_minor"],
                    "value_date": "2026-11-24",
                    "customer_reference": reference,
                    "bank_reference": f"BANK000047{line}",
                    "fifth_narrative": "",
                }
                for line, mark, item, reference in [
                    (1, "D", _PAID, "A000000001009NZ9"),
                    (2, "D", _REVERSED, "A00000000101BWSE"),
                    (3, "RD", _REVERSED, "A00000000101BWSE"),
                ]
            ]
        ),
        "unparsable": [{"line": 4, "reason": "not in the form of :61: (date, mark, amount, type, references)"}],
        "count": 3,
        "total_minor": _PAID["amount_minor"] + 2 * _REVERSED["amount_minor"],
        "sealed": _SEALED,
    },
}

_RESOLUTION: dict[type[EventData], dict[str, Any]] = {
    resolution.BatchAddressesResolved: {
        "header": _BATCH_HEADER,
        "part": 1,
        **_chunk([_PAID, _REVERSED, _CANCELLED]),
        "sealed": _SEALED,
        "unresolved": _columns([{**_UNRESOLVED, "reason": "NOT_LINKED", "message": "succ.fa.not_linked_to_id"}]),
        "unresolved_count": 1,
        "unresolved_total_minor": _UNRESOLVED["amount_minor"],
    },
}

_RESOLUTION[resolution.BatchZonesResolved] = {
    "header": _RICE_BATCH,
    "part": 1,
    **_located((_SERVED, _VILLAGE), (_UNSERVED, _HAMLET)),
    "sealed": _SEALED,
    "unresolved": {name: [] for name in UnresolvedItems.model_fields},
    "unresolved_count": 0,
    "unresolved_total_minor": 0,
}

_ZONE_SERVED: dict[str, Any] = {
    **_VILLAGE,
    "warehouse": {**_WAREHOUSE, "chosen_by": "LOAD"},
    "agency": {**_AGENCY, "chosen_by": "ONLY_ONE"},
}
_ALLOCATION: dict[type[EventData], dict[str, Any]] = {
    allocation.BatchAllocated: {
        "header": _RICE_BATCH,
        "part": 1,
        **_located((_SERVED, _ZONE_SERVED)),
        "sealed": _SEALED,
        "places": _SEALED,
        "held": _columns([{**_UNSERVED, "reason": "NO_AGENCY", "message": "no agency serves small zone ISA-022"}]),
        "held_count": 1,
        "held_total_minor": _UNSERVED["amount_minor"],
    },
    allocation.ZoneReassigned: {
        "header": _RICE_HEADER,
        "command_id": _AMENDMENT,
        "kind": "agency",
        "zone_id": "ISA-014",
        "from_id": "A-30",
        "to_id": "A-31",
        "who": "a.reyes@example.org",
        "reason": "The other store was flooded",
        "count": 1,
        "total_minor": _SERVED["amount_minor"],
    },
    allocation.EnvelopeAllocated: {
        "header": _RICE_HEADER,
        "revision": 1,
        "declared": 2,
        "declared_minor": 50_000,
        "allocated": 1,
        "allocated_minor": 25_000,
        "held": 1,
        "held_minor": 25_000,
        "cancelled": 0,
        "cancelled_minor": 0,
    },
    allocation.GoodsCancelled: {
        "header": _RICE_HEADER,
        "request_id": _CANCELLATION,
        "cancelled": 1,
        "cancelled_minor": 25_000,
        "already_announced": 1,
        "already_announced_minor": 25_000,
    },
    allocation.EntitlementsCancelled: {
        "header": _RICE_HEADER,
        "request_id": _CANCELLATION,
        "cancelled": [_UNSERVED["disbursement_id"]],
        "cancelled_minor": 25_000,
        "not_cancelled": [{"disbursement_id": _SERVED["disbursement_id"], "reason": "ALREADY_ANNOUNCED"}],
    },
}

_SERVES = [{"programme_id": "RICE", "benefit_code_id": "SEED-01", "capacity_minor": None}]
_REFERENCE: dict[type[EventData], dict[str, Any]] = {
    reference.PersonLocated: {"target_registry": "farmers", "beneficiary_id": "FARMER-1004711", **_VILLAGE},
    reference.WarehouseListed: {**_WAREHOUSE, **_ADMIN, "serves": _SERVES, "large_zone_ids": ["PH-ISA"]},
    reference.AgencyListed: {
        **_AGENCY,
        **_ADMIN,
        "serves": [{"programme_id": "RICE", "benefit_code_id": "SEED-01", "capacity_minor": 5_000_000}],
        "small_zone_ids": ["ISA-014"],
        "account": {"account_number": "001234500042", "account_type": "SAVINGS", "bank_code": "RURALPH", "branch_code": "ALI"},
    },
    reference.ReferenceRejected: {
        "topic": "reference.agencies.v1",
        "partition": 0,
        "offset": 12,
        "key": "A-31",
        "errors": [{"code": "INVALID_DATA", "pointer": "/small_zone_ids", "message": "Field required"}],
    },
}

_NOTIFICATIONS: dict[type[EventData], dict[str, Any]] = {
    notifications.NoticesSent: _notices(_NOTICE),
    notifications.NoticesDelivered: _notices(_NOTICE),
    notifications.NoticesFailed: _notices({**_NOTICE, "reason": "REFUSED", "message": "subscriber_id_missing"}),
    notifications.NoticesUnknown: _notices(
        {**_NOTICE, "reason": "ANSWER_LOST", "message": "the connection ended before the server answered"}, channel="smtp"
    ),
    notifications.NoticesSuppressed: _notices({**_NOTICE, "reason": "NO_CONTACT", "message": ""}, channel=None),
}

_PAYMENTS = {"header": _BATCH_HEADER, "instruction": 1}
_FUNDS: dict[type[EventData], dict[str, Any]] = {
    funds.FundsChecked: {"header": _HEADER, "amount_minor": _TOTAL},
    funds.FundsShort: {
        "header": _HEADER,
        "amount_minor": _TOTAL,
        "reason": "FUNDS_NOT_AVAILABLE",
        "message": "Insufficient funds",
    },
    funds.FundsBlocked: {"header": _HEADER, "block": 1, "amount_minor": _TOTAL, "bank_reference": "BLK0000000000001"},
    funds.FundsReleased: {
        "header": _HEADER,
        "release_id": 1,
        "block": 1,
        "amount_minor": _CANCELLED["amount_minor"] + _UNRESOLVED["amount_minor"],
        "bank_reference": "REL0000000000001",
    },
    funds.EnvelopeCancelled: {
        "header": _HEADER,
        "request_id": _CANCELLATION,
        "cancelled": 2,
        "cancelled_minor": _CANCELLED["amount_minor"] + _UNRESOLVED["amount_minor"],
        "already_dispatched": 2,
        "already_dispatched_minor": _PAID["amount_minor"] + _REVERSED["amount_minor"],
        "unknown": 0,
        "unknown_minor": 0,
    },
    funds.DisbursementsCancelled: {
        "header": _HEADER,
        "request_id": _CANCELLATION,
        "cancelled": [_CANCELLED["disbursement_id"]],
        "cancelled_minor": _CANCELLED["amount_minor"],
        "not_cancelled": [{"disbursement_id": _PAID["disbursement_id"], "reason": "ALREADY_DISPATCHED"}],
    },
    funds.RescheduleDecided: {
        "header": {**_HEADER, "revision": 2, "schedule_date": "2026-11-30"},
        "request_id": _AMENDMENT,
        "reason": "The sponsor pays a week later",
        "refusal": None,
    },
    funds.EnvelopePosition: {
        "header": _HEADER,
        "revision": 2,
        "position": {
            **dict.fromkeys(funds.Position.model_fields, 0),
            "blocked": _TOTAL,
            "held": _UNRESOLVED["amount_minor"],
            "dispatched": _PAID["amount_minor"] + _REVERSED["amount_minor"],
            "releasing": _CANCELLED["amount_minor"],
            "outstanding": _REVERSED["amount_minor"],
            "confirmed": _PAID["amount_minor"],
        },
        "waiting": 0,
        "in_flight": 0,
        "unknown": 0,
        "held": 1,
        "outstanding": 1,
        "confirmed": 1,
        "reversed": 0,
        "cancelled": 1,
    },
    funds.EnvelopeSettled: {
        "header": _HEADER,
        "revision": 1,
        "position": {
            "blocked": _TOTAL,
            "waiting": 0,
            "in_flight": 0,
            "unknown": 0,
            "held": 0,
            "dispatched": _PAID["amount_minor"] + _REVERSED["amount_minor"],
            "releasing": 0,
            "released": _CANCELLED["amount_minor"] + _UNRESOLVED["amount_minor"],
            "outstanding": 0,
            "confirmed": _PAID["amount_minor"],
            "reversed": _REVERSED["amount_minor"],
        },
        "position_revision": 3,
        "confirmed": 1,
        "reversed": 1,
        "cancelled": 1,
    },
    funds.PaymentsDispatched: {**_PAYMENTS, **_chunk(_amounts(_PAID, _REVERSED))},
    funds.PaymentsConfirmed: {**_PAYMENTS, **_chunk(_amounts(_PAID, _REVERSED)), "statement_id": _STATEMENT_ID},
    funds.PaymentsReversed: {
        **_PAYMENTS,
        **_chunk(_amounts(_REVERSED)),
        "statement_id": _STATEMENT_ID,
        "reasons": ["ACCOUNT CLOSED"],
    },
    funds.PaymentsUnknown: {**_PAYMENTS, **_chunk(_amounts(_PAID, _REVERSED)), "reason": "ANSWER_LOST"},
    funds.PaymentsHeld: {
        "header": _BATCH_HEADER,
        **_chunk([{**_amounts(_UNRESOLVED)[0], "reason": "NOT_LINKED", "message": "succ.fa.not_linked_to_id"}]),
    },
    funds.PaymentsRefused: {
        **_PAYMENTS,
        **_chunk([{**_amounts(_REVERSED)[0], "reason": "ACCOUNT_CLOSED", "message": "Account closed"}]),
    },
    funds.PaymentsCancelled: {"header": _BATCH_HEADER, **_chunk(_amounts(_CANCELLED))},
    funds.StatementReconciled: {
        "statement_id": _STATEMENT_ID,
        "account_token": _ACCOUNT,
        "currency": "PHP",
        "lines": 4,
        "confirmed": 2,
        "confirmed_minor": _PAID["amount_minor"] + _REVERSED["amount_minor"],
        "reversed": 1,
        "reversed_minor": _REVERSED["amount_minor"],
        "exceptions": [{"reason": "UNPARSABLE_LINE", "count": 1}],
        "balances_agree": True,
    },
}

_SCHEDULER: dict[type[EventData], dict[str, Any]] = {
    scheduler.Tick: {"job": "funds-due", "due_at": "2026-11-23T16:00:00Z", "missed": 2, "reason": ""},
}

_COMMANDS: dict[type[EventData], dict[str, Any]] = {
    operator.PauseStage: {**_command("The bank has announced maintenance"), "stage": "dispatch"},
    operator.ResumeStage: {**_command("The bank is back"), "stage": "dispatch"},
    operator.RetryWork: {**_command("The mapper is back", 2), "kind": "resolve", "subjects": []},
    operator.RedriveDeadLetters: {**_command("The release with the fix is out", 2), "ids": [17, 18]},
    operator.DiscardDeadLetters: {**_command("A test message from the staging system", 1), "ids": [19]},
    operator.FireTick: {**_command("The sponsor has just topped up the account"), "job": "funds-due"},
    operator.ResolveHeld: {
        **_command("The farmer has registered an account", 1),
        "envelope_id": _ENVELOPE_ID,
        "batch_ids": [],
        "disbursement_ids": [_UNRESOLVED["disbursement_id"]],
    },
    operator.RetryHeld: {
        **_command("The bank has reopened the account", 1),
        "envelope_id": _ENVELOPE_ID,
        "disbursement_ids": [_REVERSED["disbursement_id"]],
    },
    operator.Repay: {
        **_command("The farmer's account was reopened; the bank had sent the money back", 1),
        "envelope_id": _ENVELOPE_ID,
        "disbursement_ids": [_REVERSED["disbursement_id"]],
    },
    operator.SettleException: {
        **_command("The line is the bank's own fee"),
        "ids": [4],
        "evidence": "List of charges of the bank for November 2026, page 2",
    },
    operator.SettleUnknown: {
        **_command("The bank was asked by telephone"),
        "kind": "dispatch",
        "subject": "1",
        "outcome": "happened",
        "reference": "BANK0000471",
        "evidence": "Letter of the bank of 25 November 2026, signed by the desk of bulk payments",
    },
    operator.CancelForPublisher: {
        **_command("The ministry asked by telephone; its own system is away"),
        "source": SOURCE,
        "envelope_id": _PUBLISHER_ENVELOPE_ID,
        "disbursement_ids": [_CANCELLED["disbursement_id"]],
    },
    operator.HandInStatement: {
        **_command("The bank's call-back was down on Friday"),
        "file_id": str(derived_id("statement-file", "2026-11-06")),
        "file": "2026-11-06.sta",
    },
    operator.AmendForPublisher: {
        **_command("The ministry asked by letter"),
        "source": SOURCE,
        "amendment": {
            "envelope_id": _PUBLISHER_ENVELOPE_ID,
            "number_of_beneficiaries": 4,
            "number_of_disbursements": 4,
            "total_minor": _TOTAL,
            "schedule_date": None,
            "reason": "The ministry asked by letter",
        },
    },
    operator.RefreshReference: _command("A cooperative has opened in Jones"),
    operator.ReassignZone: {
        **_command("The other store was flooded", 1),
        "envelope_id": _RICE_HEADER["envelope_id"],
        "kind": "agency",
        "zone_id": "ISA-014",
        "place_id": "A-31",
    },
    operator.SendNotices: {**_command("The farmer has a new number", 1), "notice_ids": [_NOTICE["notice_id"]]},
    operator.SettleNotices: {
        **_command("The mail server's log was read", 1),
        "notice_ids": [_NOTICE["notice_id"]],
        "outcome": "sent",
        "evidence": "Log of the relay, 24 November 2026, 09:14: queued",
    },
    operator.SuppressSubject: {
        **_command("The farmer asked not to be written to"),
        "kind": "BENEFICIARY",
        "subject": _SERVED["beneficiary_id"],
        "suppressed": True,
    },
    operator.CommandHandled: {
        "command_id": "0197aa4e-7f00-7000-8000-00000000000c",
        "action": "almoner.operator.Repay.v1",
        "who": "ann",
        "why": "The account is open again",
        "affected": 0,
        "refused": "cannot be paid again: CONFIRMED: D-0001",
    },
    operator.RequestStatement: {**_command("Nothing has come since Friday"), "sponsor": "default"},
    operator.ReleaseRequested: {
        **_command("The season is over; the sponsor wants the rest back"),
        "envelope_id": _ENVELOPE_ID,
    },
}

EXAMPLES: dict[str, dict[str, Any]] = {
    model.TYPE: data
    for group in (
        _PUBLISHED,
        _ANSWERS,
        _INGESTION,
        _RESOLUTION,
        _REFERENCE,
        _ALLOCATION,
        _FUNDS,
        _NOTIFICATIONS,
        _SCHEDULER,
        _COMMANDS,
    )
    for model, data in group.items()
}
