"""What allocation must be told."""

import base64

import pytest
from pydantic import ValidationError

from services.allocation.config import Settings

COMMON = {
    "database_url": "postgresql://nobody@127.0.0.1:1/none",
    "seal_keys": "k1:" + base64.b64encode(bytes(32)).decode(),
    "token_key": "a token key for tests only",
}


def test_pbms_needs_an_address_and_topics_do_not() -> None:
    with pytest.raises(ValidationError, match="ALMONER_ALLOCATION_PBMS_URL: Should not be empty"):
        Settings.model_validate(COMMON)
    settings = Settings.model_validate({**COMMON, "pbms_url": "postgresql://reader:hidden@127.0.0.1:1/pbms"})
    assert "hidden" not in repr(settings)
    assert Settings.is_secret("pbms_url")
    assert Settings.model_validate({**COMMON, "reference_source": "topic"}).pbms_url.get_secret_value() == ""
