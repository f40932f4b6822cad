"""What notifications must be told, and what it does not start with."""

from typing import Any

import pytest
from pydantic import ValidationError

from services.notifications.config import Settings

BASE: dict[str, Any] = {
    "database_url": "postgresql://nobody@127.0.0.1:1/none",
    "seal_keys": "k1:c2l4dGVlbiBieXRlcyB0d2ljZSBpcyAzMiBieXRlcyE=",
    "token_key": "a token key for tests only",
}
NONE: dict[str, Any] = {"warehouse_channel": "none", "agency_channel": "none", "beneficiary_channel": "none"}
NOVU: dict[str, Any] = {"novu_url": "http://novu.example.org", "novu_api_key": "key"}
SMTP: dict[str, Any] = {"smtp_host": "mail.example.org", "smtp_sender": "almoner@example.org"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "warehouse_channel"),
        ({**NONE, "agency_channel": "pigeon"}, "agency_channel"),
        ({**NONE, "agency_channel": "smtp"}, "SMTP_HOST: Should not be empty where ALMONER_NOTIFICATIONS_AGENCY_CHANNEL=smtp"),
        ({**NONE, "beneficiary_channel": "novu", "novu_url": "http://n.example"}, "NOVU_API_KEY"),
        ({**NONE, "warehouse_channel": "file"}, "FILE_FOLDER"),
        ({**NONE, **SMTP, "smtp_username": "almoner"}, "SMTP_PASSWORD"),
        ({**NONE, **SMTP, "smtp_sender": "Almoner <a@b>"}, "smtp_sender"),
        ({**NONE, **SMTP, "smtp_calls_per_second": 0.1}, "Should let 40 requests"),
        ({**NONE, "file_calls_per_second": 1}, "Should let 200 requests"),
        ({**NONE, "language": "../en"}, "language"),
    ],
)
def test_what_cannot_work_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(**BASE, **settings)


def test_nobody_is_told_by_what_is_switched_off() -> None:
    settings = Settings(**BASE, **{**NONE, **NOVU, "beneficiary_channel": "novu"})
    assert (settings.channel("BENEFICIARY"), settings.channel("AGENCY")) == ("novu", None)
    muted = Settings(**BASE, **{**NONE, **NOVU, "beneficiary_channel": "novu", "suppress_notifications": True})
    assert muted.channel("BENEFICIARY") is None
