"""Submission files: what is read, and how every fault is named."""

import json
from pathlib import Path

import pytest

from libs.cli import sample, sheet
from libs.cli.context import Refused
from libs.common.contracts.base import Contact
from libs.common.money import Unit, scale

EUR, JPY, KWD, KES = (Unit(name, scale(name)) for name in ("EUR", "JPY", "KWD", "KES"))
HEADER = "disbursement_id,beneficiary_id,amount,beneficiary_name,narrative\n"


def csv_file(folder: Path, text: str | bytes, name: str = "run.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def faults(path: Path, currency: str = "EUR") -> list[str]:
    return [str(fault) for fault in sheet.check(path, Unit(currency, scale(currency))).faults]


def test_csv_is_read_with_its_control_totals(tmp_path: Path) -> None:
    path = csv_file(tmp_path, HEADER + 'D1,P1,100.25,"Zoë, the\nelder",May\nD2,P2,0.5,,\n')
    summary = sheet.check(path, EUR)
    assert (summary.count, summary.total_minor, summary.beneficiaries, summary.faults) == (2, 10_075, 2, [])
    first, second = sheet.disbursements(path, EUR)
    assert (first["disbursement_id"], first.get("beneficiary_name"), first["amount_minor"]) == ("D1", "Zoë, the\nelder", 10_025)
    assert second["amount_minor"] == 50


def test_semicolons_and_a_byte_order_mark_as_spreadsheets_write_them(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"\xef\xbb\xbfdisbursement_id;beneficiary_id;amount\r\nD1;P1;7\r\n")
    assert [item["amount_minor"] for item in sheet.disbursements(path, JPY)] == [7]


def test_json_lines_with_the_envelope_in_the_first_line(tmp_path: Path) -> None:
    lines = [{"envelope": {"envelope_id": "E1"}}, {"disbursement_id": "D1", "beneficiary_id": "P1", "amount": "1.234"}]
    path = csv_file(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "run.jsonl")
    assert sheet.envelope_from(path) == {"envelope_id": "E1"}
    assert sheet.check(path, KWD).total_minor == 1_234


def test_every_fault_of_csv_is_named_by_line_and_column(tmp_path: Path) -> None:
    rows = "D1,P1,1.00,,\n,P2,1.00,,\nD3,P3,1.005,,\nD4,P4,-5,,\nD1,P5,0,,\nD6,P6\nD7,P\x017,1e3,,\n"
    assert faults(csv_file(tmp_path, HEADER + rows)) == [
        "line 3, disbursement_id: is empty",
        "line 4, amount: 1.005 has more decimals than EUR has (2)",
        "line 5, amount: '-5' is not a positive decimal number as text, such as \"100.25\"",
        "line 6, amount: nothing to pay: the amount is zero",
        "line 6, disbursement_id: D1 stands in line 2 already",
        "line 7: 2 fields, the header has 5",
        "line 8, beneficiary_id: String should match pattern '^[^\\x00-\\x1f\\x7f]+$'",
        "line 8, amount: '1e3' is not a positive decimal number as text, such as \"100.25\"",
    ]


def test_every_fault_of_json_lines_is_named_by_line_and_pointer(tmp_path: Path) -> None:
    lines = (
        '{"disbursement_id": "D1", "beneficiary_id": "P1", "amount": 1.5}\nnonsense\n[1]\n{"disbursement_id": "D2", "x/y": 1}\n'
    )
    found = faults(csv_file(tmp_path, lines, "run.jsonl"))
    assert found[0].startswith("line 1, /amount: '1.5' is not")
    assert found[1].startswith("line 2: not JSON")
    assert found[2] == "line 3: a line is a JSON object"
    assert sorted(found[3:]) == [
        "line 4, /amount: is missing",
        "line 4, /beneficiary_id: is missing",
        "line 4, /x~1y: a field we don't know",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("disbursement_id,beneficiary_id\nD1,P1\n", "line 1, amount: the column is missing in the header"),
        ("disbursement_id,beneficiary_id,amount,amout\n", "line 1, amout: a column we don't know; known are "),
        ("disbursement_id,beneficiary_id,amount,amount\n", "line 1, amount: the column is there twice"),
        ("", "line 1, disbursement_id: the column is missing in the header"),
        (HEADER, "line 1: there is no disbursement in the file"),
        (HEADER + 'D1,P1,1,"open\n', "line 2: not CSV: "),
        (HEADER.encode() + b"D1,P1,1,Jos\xe9,\n", "line 2: not UTF-8: save the file with that encoding"),
    ],
)
def test_a_file_that_is_no_such_file_says_why(tmp_path: Path, text: str | bytes, named: str) -> None:
    assert faults(csv_file(tmp_path, text))[0].startswith(named)


def test_a_person_twice_is_a_warning(tmp_path: Path) -> None:
    summary = sheet.check(csv_file(tmp_path, HEADER + "D1,P1,1,,\nD2,P1,1,,\n"), EUR)
    assert summary.faults == []
    assert summary.beneficiaries == 1
    assert [str(warning) for warning in summary.warnings] == [
        "line 3, beneficiary_id: P1 stands in line 2 already; both will be paid"
    ]


def test_many_faults_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    summary = sheet.check(csv_file(tmp_path, HEADER + "D,P,x,,\n" * 5_000), EUR)
    assert (summary.fault_count, len(summary.faults)) == (5_000, sheet.SHOWN_FAULTS)


def test_the_envelope_names_every_missing_field() -> None:
    with pytest.raises(Refused) as refused:
        sheet.parse_envelope({"envelope_id": "E1", "currency": "EUR", "schedule_date": "tomorrow"})
    for pointer in ("/programme", "/benefit_code", "/cycle", "/schedule_date"):
        assert pointer in str(refused.value)


def test_the_published_schemas_are_those_of_this_release() -> None:
    for name, text in sheet.schemas().items():
        assert (sheet.SCHEMAS / name).read_text() == text, f"{name} is old: run `make docs`"


def test_the_sample_is_the_same_each_time_and_without_fault(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    sample.write(first, 500)
    sample.write(second, 500)
    assert first.read_bytes() == second.read_bytes()
    summary = sheet.check(first, KES)
    assert (summary.count, summary.beneficiaries, summary.fault_count, summary.warning_count) == (500, 499, 0, 1)


def test_goods_have_a_unit_of_their_own_and_people_a_contact(tmp_path: Path) -> None:
    text = "disbursement_id,beneficiary_id,amount,email,phone\nD1,P1,25.5,ama@example.org,+233 20 555 0101\nD2,P2,0.001,,\n"
    path = csv_file(tmp_path, text)
    kilograms = Unit("kg", 3)
    assert sheet.check(path, kilograms).total_minor == 25_501
    first, second = sheet.disbursements(path, kilograms)
    assert (first["amount_minor"], second.get("contact")) == (25_500, None)
    assert first.get("contact") == Contact(email="ama@example.org", phone="+233 20 555 0101")
    assert [str(fault) for fault in sheet.check(path, Unit("bag", 0)).faults] == [
        "line 2, amount: 25.5 has more decimals than bag has (0)",
        "line 3, amount: 0.001 has more decimals than bag has (0)",
    ]


def test_a_contact_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "disbursement_id,beneficiary_id,amount,email,phone\nD1,P1,1,nobody,12-x\n")
    assert [fault.place for fault in sheet.check(path, EUR).faults] == ["email", "phone"]


def test_an_envelope_has_a_currency_or_a_unit() -> None:
    fields = {
        "envelope_id": "E",
        "programme": {"id": "P"},
        "benefit_code": {"id": "B", "type": "COMMODITY"},
        "cycle": {"id": "C"},
        "schedule_date": "2126-11-21",
    }
    assert sheet.parse_envelope({**fields, "measurement_unit": "kg", "unit_scale": 3}).unit == Unit("kg", 3)
    for more in ({}, {"measurement_unit": "kg", "currency": "EUR"}):
        with pytest.raises(Refused, match="one of both is needed"):
            sheet.parse_envelope({**fields, **more})
