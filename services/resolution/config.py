"""What resolution is told: where the mapper is, how much it takes at once, how addresses are written."""

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from libs.common.config import ServiceSettings

FIELDS = frozenset(
    "account_number bank_code branch_code mobile_number email_address wallet_provider_name wallet_provider_code fa_type".split()
)


def _pattern(essential: str) -> AfterValidator:
    def check(text: str) -> str:
        try:
            groups = set(re.compile(text).groupindex)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if essential not in groups:
            raise ValueError(f"needs a group (?P<{essential}>…)")
        if groups - FIELDS:
            raise ValueError(f"has groups which are no part of an address: {', '.join(sorted(groups - FIELDS))}")
        return text

    return AfterValidator(check)


class Settings(ServiceSettings):
    SERVICE: ClassVar[str] = "resolution"

    mapper_url: str = Field(pattern="^https?://", description="of the SPAR 1.x mapper; /sync/resolve is appended")
    mapper_sender_id: str = Field(default="almoner", description="who we are to the mapper")
    mapper_sender_uri: str = ""
    mapper_receiver_id: str = ""

    resolve_max_items: int = Field(default=1000, ge=1, le=1000, description="people in one request")
    resolve_concurrency: int = Field(default=4, ge=1, le=100, description="calls at once, per replica")
    resolve_timeout_seconds: float = Field(default=20.0, gt=0, description="of one request; below shutdown_seconds")
    resolve_lease_seconds: float = Field(default=60.0, gt=0, description="of one call, all of its requests together")
    resolve_max_attempts: int = Field(default=10, ge=1)
    resolve_backoff_first_seconds: float = Field(default=0.5, gt=0)
    resolve_backoff_max_seconds: float = Field(default=60.0, gt=0)

    # An address is text whose ending says which of these takes it apart.
    bank_account_pattern: Annotated[str, _pattern("account_number")] = (
        r"^account_number:(?P<account_number>.*)\.branch_code:(?P<branch_code>.*)\.bank_code:(?P<bank_code>.*)"
        r"\.mobile_number:(?P<mobile_number>.*)\.email_address:(?P<email_address>.*)\.fa_type:(?P<fa_type>.*)$"
    )
    mobile_wallet_pattern: Annotated[str, _pattern("mobile_number")] = (
        r"^mobile_number:(?P<mobile_number>.*)\.wallet_provider_name:(?P<wallet_provider_name>.*)"
        r"\.wallet_provider_code:(?P<wallet_provider_code>.*)\.fa_type:(?P<fa_type>.*)$"
    )
    email_wallet_pattern: Annotated[str, _pattern("email_address")] = (
        r"^email_address:(?P<email_address>.*)\.wallet_provider_name:(?P<wallet_provider_name>.*)"
        r"\.wallet_provider_code:(?P<wallet_provider_code>.*)\.fa_type:(?P<fa_type>.*)$"
    )
