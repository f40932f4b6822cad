"""Files that are not what `almoner submit` wants: each is read exactly as it was written, or refused with the place of every
fault; nothing else ever comes of one, and what is printed can be printed."""

import csv
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from libs.cli import sheet
from libs.cli.app import run
from libs.cli.context import Refused
from libs.cli.submit import submit
from libs.common.money import Unit

EUR = Unit("EUR", 2)
HEADER = ["disbursement_id", "beneficiary_id", "amount", "beneficiary_name", "narrative"]
FIELDS = {
    "envelope_id": "E1",
    "programme": {"id": "P"},
    "benefit_code": {"id": "B", "type": "CASH_DIGITAL"},
    "cycle": {"id": "C"},
    "currency": "EUR",
    "schedule_date": "2126-11-21",
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")
# Characters which tell the encodings apart: no run of them is valid in two of those above.
NAMES = st.text("aé ßÖ,;|'\"\t\n", max_size=12).map(str.strip)
ROWS = st.lists(
    st.tuples(
        st.text("ab1-é", min_size=1, max_size=8), st.text("pq2", min_size=1, max_size=8), st.integers(1, 10**9), NAMES, NAMES
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row[0],
)
COMMON = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def dry_run(folder: Path, content: bytes, name: str = "run.csv") -> tuple[str | None, str]:
    """(why it was refused, if it was; what was printed, as the bytes of a terminal)."""
    path = folder / name
    path.write_bytes(content)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    refusal = None
    with redirect_stdout(printed):
        try:
            submit(path, dict(FIELDS), "test", dry_run=True, wait=False, yes=True, as_json=False)
        except Refused as refused:
            refusal = str(refused)
    printed.flush()
    text = printed.buffer.getvalue().decode()
    assert all(character.isprintable() or character == "\n" for character in text + (refusal or ""))
    assert (refusal is None) == ("Nothing was submitted (--dry-run)." in text)
    assert refusal is None or "fault" in text or "envelope" in refusal
    return refusal, text


def written(path: Path) -> list[tuple[str, str, int, str, str]]:
    return [
        (
            one["disbursement_id"],
            one["beneficiary_id"],
            one["amount_minor"],
            one.get("beneficiary_name", ""),
            one.get("narrative", ""),
        )
        for one in sheet.disbursements(path, EUR)
    ]


@COMMON
@given(ROWS, st.sampled_from(",;\t|"), st.sampled_from(ENCODINGS), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_a_table_is_read_as_it_was_written_or_refused(
    tmp_path: Path, rows: list[Any], separator: str, encoding: str, ending: str, quoted: bool
) -> None:
    table = io.StringIO(newline="")
    # Left to itself, the writer quotes no \n where lines end in \r.
    writer = csv.writer(
        table,
        delimiter=separator,
        lineterminator=ending,
        quoting=csv.QUOTE_ALL if quoted or ending == "\r" else csv.QUOTE_MINIMAL,
    )
    writer.writerow(HEADER)
    for disbursement, person, minor, name, narrative in rows:
        writer.writerow([disbursement, person, f"{minor // 100}.{minor % 100:02}", name, narrative])
    refusal, text = dry_run(tmp_path, table.getvalue().encode(encoding))
    unicode = encoding.startswith("utf-8") or (table.getvalue().isascii() and encoding in ("latin-1", "cp1252"))
    if unicode:
        assert refusal is None, text
        assert written(tmp_path / "run.csv") == rows
    else:
        assert "not UTF-8: save the file with that encoding" in text


@COMMON
@given(st.data())
def test_a_damaged_table_is_never_read_as_something_else(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are thrown at it: the faults name lines, and without faults the sums are those of the rows."""
    whole = bytearray(",".join(HEADER).encode() + b"\nD1,P1,1.00,Ana,May\nD2,P2,2.00,,\n")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole)))
        removed = data.draw(st.integers(0, 5))
        whole[place : place + removed] = data.draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from([b"\x00", b'"', b'""', b"\r", b"\x1b[2J", b"\xff\xfe", b"\x85", b"\xc2\x9b"]),
            )
        )
    refusal, _ = dry_run(tmp_path, bytes(whole))
    if refusal is None:
        summary = sheet.check(tmp_path / "run.csv", EUR)
        rows = written(tmp_path / "run.csv")
        assert (summary.count, summary.total_minor) == (len(rows), sum(row[2] for row in rows))


@COMMON
@given(
    st.lists(
        st.one_of(
            st.recursive(
                st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5)),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=6,
            ).map(json.dumps),
            st.fixed_dictionaries(
                {
                    "disbursement_id": st.text(max_size=5),
                    "beneficiary_id": st.text(max_size=5),
                    "amount": st.text("0123456789.,-e", max_size=8),
                }
            ).map(json.dumps),
            st.sampled_from(
                [
                    "[" * 100_000,
                    '{"a":' * 100_000,
                    '{"amount": ' + "9" * 5_000 + "}",
                    '{"\\ud800": "\\udfff"}',
                    '{"envelope": {"envelope_id": "\\u001b[2J"}}',
                    '{"disbursement_id": "\\ud800", "beneficiary_id": "P", "amount": "1"}',
                    '{"amount": NaN}',
                    "\x00",
                    "\x1b[2J",
                ]
            ),
        ),
        max_size=4,
    ),
    st.sampled_from(ENCODINGS),
)
@example(["{" + "a" * 2_000_000], "utf-8")
def test_any_json_lines_are_read_or_refused(tmp_path: Path, lines: list[str], encoding: str) -> None:
    content = "\n".join(lines).encode(encoding, "replace")
    refusal, text = dry_run(tmp_path, content, "run.jsonl")
    if refusal is None:
        assert sum(row[2] for row in written(tmp_path / "run.jsonl")) > 0
    else:
        assert "line 1" in text or "fault" in text or "the envelope is not complete" in refusal


LINE = '{"disbursement_id": "D1", "beneficiary_id": "P1", "amount": "1.00"}'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([LINE, LINE.replace("D1", "D2").replace("}", ', "amount": "1000000.00"}')], "fault: line 2, /amount: the key is there twice"),
        ([LINE.replace("}", ', "beneficiary_id": "P2"}')], "fault: line 1, /beneficiary_id: the key is there twice"),
        ([LINE.replace("}", ', "\\u0061mount": "1.00"}')], "fault: line 1, /amount: the key is there twice"),
        ([LINE.replace("}", ', "more": {"\\u001b[2J": 1, "\\u001b[2J": 2}}')], "fault: line 1, /\ufffd[2J: the key is there twice"),
        (['{"envelope": {"cycle": {"id": "A"}, "cycle": {"id": "B"}}}', LINE], "the envelope in line 1: the key 'cycle' is there twice"),
        (['{"envelope": {"cycle": {"id": "A", "id": "B"}}}', LINE], "the envelope in line 1: the key 'id' is there twice"),
        (['{"envelope": {}, "envelope": {}}', LINE], "the envelope in line 1: the key 'envelope' is there twice"),
    ],
)  # fmt: skip
def test_a_key_that_is_there_twice_is_a_fault_and_none_of_its_values_counts(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    refusal, text = dry_run(tmp_path, "\n".join(lines).encode(), "run.jsonl")
    assert refusal is not None
    assert said in text + refusal
    if "envelope" not in refusal:
        assert text.count("fault: ") == 1


def test_a_key_twice_in_the_file_of_the_envelope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.jsonl").write_text(LINE)
    envelope = tmp_path / "envelope.json"
    envelope.write_text(json.dumps(FIELDS).replace("{", '{"currency": "KWD", ', 1))
    assert run(["submit", str(tmp_path / "run.jsonl"), "--envelope", str(envelope), "--dry-run"]) == 2
    assert "the key 'currency' is there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'"disbursement_id,beneficiary_id,amount\nD1,P1,1\n', "line 1: not CSV: unexpected end of data"),
        (",".join(HEADER).encode() + b"\nD1,P1,1," + b"x" * 200_000 + b",\n", "line 2: not CSV: field larger than field limit"),
        (b"disbursement_id,beneficiary_id,amount\n" + b"D1,P1,1," * 400_000, "line 2: "),
        (b"x" * 5_000_000, "line 1: not CSV: field larger than field limit"),
        (b"disbursement_id,beneficiary_id,b\xe9n\xe9ficiaire\n", "line 1: not UTF-8"),
        (b"disbursement_id,beneficiary_id,amount,\x1b[2J\n", "line 1, \ufffd[2j: a column we don't know"),
    ],
)
def test_what_no_program_writes_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    refusal, text = dry_run(tmp_path, content)
    assert refusal is not None
    assert f"fault: {said}" in text
