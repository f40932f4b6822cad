"""Both versions of the mapper's API as samples written by hand: what we send is compared whole, what it answers has every field."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from services.resolution.adapters.spar import Spar
from services.resolution.adapters.spar2 import Spar2
from services.resolution.config import Settings
from services.resolution.domain import Hold

PATTERNS = {"BANK_ACCOUNT": Settings.model_fields["bank_account_pattern"].default}
PEOPLE = [("b7-0", "P-1"), ("b7-1", "P-1"), ("b7-2", "P-3")]  # one is paid twice

# SENT stands for the moment of sending, the same wherever it is told.
REQUEST_1 = """
{
  "signature": "",
  "header": {
    "version": "1.0.0",
    "message_id": "m-1",
    "message_ts": "SENT",
    "action": "resolve",
    "sender_id": "almoner",
    "sender_uri": "http://almoner.example",
    "receiver_id": "spar.example",
    "total_count": 3,
    "is_msg_encrypted": false,
    "meta": {}
  },
  "message": {
    "transaction_id": "b7",
    "resolve_request": [
      {"reference_id": "b7-0", "timestamp": "SENT", "fa": "", "id": "P-1", "scope": "details", "locale": "en"},
      {"reference_id": "b7-1", "timestamp": "SENT", "fa": "", "id": "P-1", "scope": "details", "locale": "en"},
      {"reference_id": "b7-2", "timestamp": "SENT", "fa": "", "id": "P-3", "scope": "details", "locale": "en"}
    ]
  }
}
"""
REQUEST_2 = """
{
  "request_header": {
    "sender_app_mnemonic": "almoner",
    "sender_app_url": "http://almoner.example",
    "request_id": "m-1",
    "request_timestamp": "SENT",
    "instance_id": "spar.example"
  },
  "request_body": {
    "pagination_request": null,
    "request_payload": {
      "transaction_id": "b7",
      "resolve_request": [
        {"reference_id": "b7-0", "timestamp": "SENT", "fa": "", "id": "P-1", "scope": "details", "locale": "en"},
        {"reference_id": "b7-1", "timestamp": "SENT", "fa": "", "id": "P-1", "scope": "details", "locale": "en"},
        {"reference_id": "b7-2", "timestamp": "SENT", "fa": "", "id": "P-3", "scope": "details", "locale": "en"}
      ]
    }
  }
}
"""

# One who is known, one who is not (whose id comes back as null), one who is refused; in another order than they were asked for.
ANSWER_1 = """
{
  "signature": "",
  "header": {
    "version": "1.0.0",
    "message_id": "m-1",
    "message_ts": "2026-11-21T09:30:01.123456+00:00",
    "action": "resolve",
    "status": "succ",
    "status_reason_code": null,
    "status_reason_message": null,
    "total_count": 3,
    "completed_count": 2,
    "sender_id": "spar.example",
    "receiver_id": "almoner",
    "is_msg_encrypted": false,
    "meta": {}
  },
  "message": {
    "transaction_id": "b7",
    "correlation_id": "c-9",
    "resolve_response": [
      {
        "reference_id": "b7-2",
        "timestamp": "2026-11-21T09:30:01.123456+00:00",
        "fa": "",
        "id": null,
        "account_provider_info": null,
        "status": "succ",
        "status_reason_code": "succ.fa.not_linked_to_id",
        "status_reason_message": "ID doesnt exist please link first",
        "additional_info": null,
        "locale": "en"
      },
      {
        "reference_id": "b7-0",
        "timestamp": "2026-11-21T09:30:01.123456+00:00",
        "fa": "account_number:0110.branch_code:014.bank_code:EXB.mobile_number:.email_address:.fa_type:BANK_ACCOUNT",
        "id": "P-1",
        "account_provider_info": {"name": "Example Bank", "code": "EXB", "subcode": "014", "additional_info": null},
        "status": "succ",
        "status_reason_code": "succ.id.active",
        "status_reason_message": null,
        "additional_info": [{"name": "strategy", "value": "1"}],
        "locale": "en"
      },
      {
        "reference_id": "b7-1",
        "timestamp": "2026-11-21T09:30:01.123456+00:00",
        "fa": "",
        "id": null,
        "account_provider_info": null,
        "status": "rjct",
        "status_reason_code": "rjct.id.invalid",
        "status_reason_message": "P-1 is no id",
        "additional_info": null,
        "locale": "en"
      }
    ]
  }
}
"""
ANSWER_2 = """
{
  "response_header": {
    "request_id": "m-1",
    "response_status": "SUCCESS",
    "response_error_code": null,
    "response_error_message": null,
    "response_timestamp": "2026-11-21T09:30:01.123456+00:00"
  },
  "response_body": {
    "pagination_response": null,
    "response_payload": {
      "transaction_id": "b7",
      "correlation_id": "c-9",
      "resolve_response": [
        {
          "reference_id": "b7-2",
          "timestamp": "2026-11-21T09:30:01.123456+00:00",
          "fa": null,
          "id": null,
          "account_provider_info": null,
          "status": "succ",
          "status_reason_code": "succ.fa.not_linked_to_id",
          "status_reason_message": "ID doesnt exist please link first",
          "additional_info": null,
          "locale": "en"
        },
        {
          "reference_id": "b7-0",
          "timestamp": "2026-11-21T09:30:01.123456+00:00",
          "fa": {
            "account_number": "0110",
            "branch_name": "Example Road",
            "branch_code": "014",
            "bank_name": "Example Bank",
            "bank_code": "EXB",
            "fa_type": "BANK",
            "strategy_id": 1
          },
          "id": "P-1",
          "account_provider_info": {"name": "Example Bank", "code": "EXB", "subcode": "014", "additional_info": null},
          "status": "succ",
          "status_reason_code": "succ.id.active",
          "status_reason_message": null,
          "additional_info": [{"name": "strategy", "value": "1"}],
          "locale": "en"
        },
        {
          "reference_id": "b7-1",
          "timestamp": "2026-11-21T09:30:01.123456+00:00",
          "fa": null,
          "id": null,
          "account_provider_info": null,
          "status": "rjct",
          "status_reason_code": "rjct.id.invalid",
          "status_reason_message": "P-1 is no id",
          "additional_info": null,
          "locale": "en"
        }
      ]
    }
  }
}
"""


def adapter(kind: type[Spar]) -> Spar:
    return kind(
        "http://mapper.example",
        PATTERNS,
        sender_id="almoner",
        sender_uri="http://almoner.example",
        receiver_id="spar.example",
        max_items=9,
    )


@pytest.mark.parametrize(("kind", "sample"), [(Spar, REQUEST_1), (Spar2, REQUEST_2)])
def test_a_request_is_what_the_api_says(kind: type[Spar], sample: str) -> None:
    body = json.loads(adapter(kind).request("m-1", "b7", PEOPLE))
    sent = body["header"]["message_ts"] if kind is Spar else body["request_header"]["request_timestamp"]
    assert body == json.loads(sample.replace("SENT", sent))
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(sent) < timedelta(minutes=1)


@pytest.mark.parametrize(("kind", "sample"), [(Spar, ANSWER_1), (Spar2, ANSWER_2)])
def test_an_answer_with_all_its_fields_is_read(kind: type[Spar], sample: str) -> None:
    """Of the mapper's words only its codes go on."""
    assert adapter(kind).read(sample.encode(), "m-1", {reference for reference, _ in PEOPLE}) == {
        "b7-0": {"account_number": "0110", "branch_code": "014", "bank_code": "EXB", "fa_type": "BANK_ACCOUNT"},
        "b7-1": Hold("REFUSED", "rjct.id.invalid"),
        "b7-2": Hold("NOT_LINKED", "succ.fa.not_linked_to_id"),
    }
