"""What notices tell, and how: whatever stands in names, nothing of it becomes markup, a line or a header; nothing is left out silently."""

from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.contracts.base import BenefitType
from libs.common.errors import Fatal
from services.notifications import preview
from services.notifications.adapters.mail import Unaddressable, compose
from services.notifications.content import sample
from services.notifications.domain import KINDS, Kind, contact, one_line, pages
from services.notifications.ports import Message
from services.notifications.rendering import TRIED, TemplateFailed, Templates

LANGUAGES = ("en", "fr")
COMMON = """program_mnemonic program_description target_registry disbursement_cycle_mnemonic disbursement_date benefit_code_id
    benefit_code_mnemonic benefit_code_description benefit_type measurement_unit benefit_description warehouse_id
    warehouse_mnemonic warehouse_name agency_id agency_mnemonic agency_name total_quantity no_of_beneficiaries
    no_of_bebeficiaries administrative_zone_id_large administrative_zone_mnemonic_large administrative_zone_id_small
    administrative_zone_mnemonic_small""".split()
MORE: dict[Kind, list[str]] = {
    "WAREHOUSE": [],
    "AGENCY": ["beneficiary_entitlements", "page", "pages"],
    "BENEFICIARY": ["beneficiary_id", "beneficiary_name"],
}
HOSTILE = "<script>alert(1)</script>\r\nBcc: thief@example.org\n\n{{ 7 * 7 }} {% raise %}"


def named(kind: Kind, name: str) -> Message:
    """A notice in which each name that comes from outside is this one, as the contents clean it."""
    message = sample(kind)
    clean = one_line(name)
    payload: dict[str, Any] = {**message.payload, "agency_name": clean, "warehouse_name": clean, "program_mnemonic": clean}
    if kind == "BENEFICIARY":
        payload["beneficiary_name"] = clean
    for one in payload.get("beneficiary_entitlements", []):
        one["beneficiary_name"] = clean
    return replace(message, name=clean, payload=payload, more={**message.more, "recipient_name": clean})


@pytest.mark.parametrize("kind", KINDS)
def test_payloads_have_the_keys_that_workflows_know(kind: Kind) -> None:
    assert sorted(sample(kind).payload) == sorted(COMMON + MORE[kind])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("benefit_type", TRIED)
def test_each_kind_says_in_each_language_how_much_for_whom(kind: Kind, language: str, benefit_type: str) -> None:
    message = sample(kind, benefit_type)
    mail = Templates().render(message, "smtp", language)
    for text in (mail.text, mail.html):
        assert f"{message.payload['total_quantity']} {message.payload['measurement_unit']}" in text
        assert message.name in text
        for one in message.payload.get("beneficiary_entitlements", []):
            assert one["beneficiary_id"] in text
    assert "\n" not in mail.subject
    assert f'lang="{language}"' in mail.html


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_name_is_only_a_name(kind: Kind, language: str) -> None:
    mail = Templates().render(named(kind, HOSTILE), "smtp", language)
    assert "<script>" not in mail.html
    assert "&lt;script&gt;" in mail.html
    assert "{{ 7 * 7 }}" in mail.text  # data is never a template
    assert not any(line.startswith("Bcc") for line in (*mail.text.splitlines(), mail.subject))


@given(name=st.text(max_size=200), subject=st.text(max_size=60))
def test_whatever_a_name_is_the_mail_has_its_own_headers_and_one_recipient(name: str, subject: str) -> None:
    message = named("BENEFICIARY", name + "\r\n" + subject)
    mail = Templates().render(message, "smtp", "en")
    try:
        raw = compose(replace(message, mail=mail), "almoner@almoner.example", "Almoner")
    except Unaddressable:
        return
    read = message_from_bytes(raw, policy=default)
    assert sorted(name.lower() for name in read) == sorted(
        ["from", "to", "subject", "date", "message-id", "auto-submitted", "mime-version", "content-type"]
    )
    assert [one.addr_spec for one in read["To"].addresses] == ["sample@example.org"]
    assert read["Message-ID"] == f"<{message.notice_id}@almoner.example>"


@pytest.mark.parametrize("email", ["a,b@example.org", "a@", "a>@example.org", "a@exa mple", "\u2028@x.example"])
def test_an_address_that_would_be_more_than_one_is_none(email: str) -> None:
    message = sample("BENEFICIARY")
    mail = Templates().render(message, "smtp", "en")
    odd = replace(message, email=email, mail=mail)
    try:
        read = message_from_bytes(compose(odd, "almoner@almoner.example", ""), policy=default)
    except Unaddressable:
        return
    assert len(read["To"].addresses) == 1


def test_the_same_notice_is_the_same_mail() -> None:
    message = sample("AGENCY")
    once, again = (replace(message, mail=Templates().render(message, "file", "fr")) for _ in range(2))
    assert compose(once, "a@b.example", "") == compose(again, "a@b.example", "")


def test_what_is_missing_is_named_and_nothing_of_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "agency.text.j2").write_text("{{ agency_nam }}")
    templates = Templates(tmp_path)
    with pytest.raises(TemplateFailed, match=r"^en/agency\.text\.j2: UndefinedError: 'agency_nam' is undefined$"):
        templates.render(sample("AGENCY"), "smtp", "en")
    (tmp_path / "en" / "agency.text.j2").write_text("{{ agency_name + 1 }}")
    with pytest.raises(TemplateFailed, match=r"^en/agency\.text\.j2: TypeError$"):
        templates.render(sample("AGENCY"), "smtp", "en")
    (tmp_path / "en" / "agency.text.j2").write_text("a\n{% if %}")
    with pytest.raises(TemplateFailed, match=r"line 2: TemplateSyntaxError"):
        templates.render(sample("AGENCY"), "smtp", "en")
    with pytest.raises(Fatal, match="agency"):
        templates.check("en", ["smtp"])
    with pytest.raises(Fatal, match="ALMONER_NOTIFICATIONS_LANGUAGE"):
        Templates().check("xx", ["smtp"])


def test_a_template_is_kept_from_what_it_has_no_business_with(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    for text in ("{{ ''.__class__.__mro__ }}", "{{ beneficiary_entitlements.clear() }}", "{% include '/etc/hostname' %}"):
        (tmp_path / "en" / "agency.text.j2").write_text(text)
        with pytest.raises(TemplateFailed):
            Templates(tmp_path).render(sample("AGENCY"), "smtp", "en")


def test_a_template_of_a_channel_comes_before_that_of_all(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "agency.file.text.j2").write_text("for the printer")
    templates = Templates(tmp_path)
    assert templates.render(sample("AGENCY"), "file", "en").text == "for the printer\n"
    assert "Ana Reyes" in templates.render(sample("AGENCY"), "smtp", "en").text


def test_every_benefit_type_is_tried_and_can_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(TRIED) == sorted(get_args(BenefitType))
    for benefit_type in TRIED:
        preview.preview(["agency", "novu", "--benefit-type", benefit_type])
        assert f'"benefit_type": "{benefit_type}"' in capsys.readouterr().out


@pytest.mark.parametrize("benefit_type", get_args(BenefitType))
def test_a_template_that_fails_for_one_benefit_type_is_found_at_the_start(tmp_path: Path, benefit_type: str) -> None:
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "agency.text.j2").write_text(
        f"{{% if benefit_type == '{benefit_type}' %}}{{{{ nothing }}}}{{% endif %}}"
    )
    with pytest.raises(Fatal, match="'nothing' is undefined"):
        Templates(tmp_path).check("en", ["smtp"])


def test_a_preview_needs_no_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALMONER_NOTIFICATIONS_LANGUAGE", "ALMONER_NOTIFICATIONS_TEMPLATE_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    preview.preview(["beneficiary", "smtp", "--language", "fr"])
    assert "Bonjour Rosa Dela Cruz" in capsys.readouterr().out
    preview.preview(["AGENCY", "novu"])
    assert '"beneficiary_entitlements"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("person", "found"),
    [
        ({"contact": {"email": "a@b.example", "phone": "1"}, "mobile_number": "2"}, ("a@b.example", "1")),
        ({"contact": {"email": "", "phone": "1"}, "email_address": "c@d.example"}, ("c@d.example", "1")),
        ({"contact": {"email": "", "phone": ""}, "email_address": "c@d.example"}, ("c@d.example", "")),
        ({"contact": None, "mobile_number": "2"}, ("", "2")),
        ({}, ("", "")),
    ],
)
def test_what_the_disbursement_says_comes_before_the_address(person: dict[str, object], found: tuple[str, str]) -> None:
    assert contact(person) == found


def test_pages() -> None:
    assert [pages(items, 200) for items in (1, 200, 201, 1000)] == [1, 1, 2, 5]
