"""MT940 files: what is read, and that nothing in them can break the reader."""

import re
from collections.abc import Iterable
from datetime import date
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.local import mt940 as bank
from services.ingestion.adapters import mt940_file as mt940

LINES = [
    bank.Line("D", 10025, "REF0000000000001", "BANK1", ["one", "", "three", "Ama Ödegård", "REF0000000000001", ""]),
    bank.Line("RD", 10025, "REF0000000000001", "BANK2", ["one", "", "", "", "REF0000000000001", "account closed"]),
    bank.Line("C", 7, "SALARY", "NONREF", []),
    bank.Line("RC", 7, "SALARY", "NONREF", []),
]


def text(lines: list[bank.Line], account: str = "DE02 1234", currency: str = "EUR", number: int = 7) -> str:
    return bank.statement(
        reference="STMT1",
        account=account,
        number=number,
        currency=currency,
        opening_minor=-50,
        closing_minor=-50 + sum(line.effect_minor for line in lines),
        day=date(2026, 11, 21),
        lines=lines,
    )


def read(data: bytes, piece_bytes: int = 1_000_000) -> list[tuple[mt940.Head, list[mt940.Entry]]]:
    return [
        (head, list(mt940.entries(pieces_of(data, piece_bytes, head.start), head.start, head.end)))
        for head in mt940.scan(pieces_of(data, piece_bytes))
    ]


def pieces_of(data: bytes, piece_bytes: int, start: int = 0) -> list[bytes]:
    return [data[i : i + piece_bytes] for i in range(start, len(data), piece_bytes)]


def test_reads_a_statement_of_the_simulated_bank() -> None:
    [(head, entries)] = read(text(LINES).encode())
    assert head.fault is None
    assert (head.reference, head.account, head.number, head.sequence) == ("STMT1", "DE02 1234", "7", "1")
    assert (head.currency, head.opening_minor, head.closing_minor, head.lines) == ("EUR", -50, -50, 4)
    lines = [mt940.parse(entry, "EUR") for entry in entries]
    assert [(line.mark, line.amount_minor) for line in lines] == [("D", 10025), ("RD", 10025), ("C", 7), ("RC", 7)]
    assert lines[0] == mt940.Line("D", 10025, date(2026, 11, 21), "REF0000000000001", "BANK1")
    assert entries[0].narratives == ["one", "", "three", "Ama Ödegård", "REF0000000000001"]  # the empty one keeps its place
    assert entries[1].narratives[5] == "account closed"
    assert entries[2].narratives == []


def test_several_statements_keep_their_own_balances() -> None:
    first, second = text(LINES[:1], "A"), text(LINES[:2], "B", number=8)
    (one, lines_one), (two, lines_two) = read((first + "-\r\n" + second).encode())
    assert (one.account, one.closing_minor, len(lines_one)) == ("A", -50 - 10025, 1)
    assert (two.account, two.closing_minor, len(lines_two)) == ("B", -50, 2)


def test_same_content_has_the_same_digest_whatever_is_around_it() -> None:
    plain = text(LINES)
    wrapped = "{1:F01BANKXXXX}{2:O940}{4:\n" + plain.replace("\r\n", "\n") + "\n-}{5:{CHK:1}}\n"
    [(one, _)], [(two, _)] = read(plain.encode()), read(wrapped.encode())
    assert one.digest == two.digest
    (three, _), (four, _) = read((plain + plain.replace("STMT1", "STMT2")).encode())
    assert three.digest == one.digest != four.digest


@given(st.lists(st.sampled_from(["", " ", "\t", "-", "-}{5:}", "{1:F01}", "\x0b\r"]), max_size=3), st.integers(0, 40))
def test_what_is_between_the_lines_does_not_change_the_digest(between: list[str], place: int) -> None:
    lines = text(LINES).split("\r\n")
    place = min(place, len(lines))
    changed = "\n".join([*lines[:place], *between, *lines[place:]])
    [(one, _)], [(two, _)] = read(text(LINES).encode()), read(changed.encode())
    assert one.digest == two.digest
    [(three, _)] = read(text(LINES).replace("BANK1", "- BANK1").encode())
    assert three.digest != one.digest


@given(st.lists(st.text(" a\té\r\n\u2028\xa0", max_size=5), max_size=4))
def test_what_is_clean_is_left_alone(texts: list[str]) -> None:
    assert mt940.are_clean(texts, 3) == all(mt940.clean(one, 3) == one for one in texts)


@pytest.mark.parametrize(
    ("currency", "minor", "shown"), [("EUR", 10025, "100,25"), ("JPY", 500, "500,"), ("KWD", 1234, "1,234")]
)
def test_amounts_by_the_scale_of_the_currency(currency: str, minor: int, shown: str) -> None:
    data = text([bank.Line("D", minor, "R", "B", [])], currency=currency)
    assert f"D{shown}NTRF" in data
    [(_, [entry])] = read(data.encode())
    assert mt940.parse(entry, currency).amount_minor == minor


def test_long_references_are_not_cut_into_those_of_others() -> None:
    [entry] = mt940.entries([b":61:2611211121D1,00NTRFREF0000000000001X99//BANK1"], 0, 100)
    assert mt940.parse(entry, "EUR").customer_reference == "REF0000000000001X99"
    assert mt940.parse(entry, "EUR").bank_reference == "BANK1"


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b"garbage",
        b"2613321121D1,00NTRFREF//B",  # month 13
        b"2611211121D1,001NTRFREF//B",  # three decimals
        b"2611211121D0,00NTRFREF//B",
        b"2611211121D,NTRFREF//B",
        b"2611211121D1,2,3NTRFREF//B",
        b"2611211121X1,00NTRFREF//B",
        b"2611211121D10,0x2NTRFREF//B",  # must not pass as 10,0
        b"2611211121D10.02NTRFREF//B",
        b"2611211121D10,02",
        b"2611211121D1,00NTRF" + b"A" * 1500,
        "2611211121D١٢,00".encode() * 30,
    ],
)
def test_bad_lines_are_told_apart(field: bytes) -> None:
    [entry] = mt940.entries([b":61:" + field], 0, 10_000)
    with pytest.raises(mt940.Unreadable) as error:
        mt940.parse(entry, "EUR")
    assert "REF" not in str(error.value)  # nothing of the content


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (text(LINES).replace(":62F:", ":99X:"), "NO_CLOSING_BALANCE"),
        (text(LINES).split(":62F:")[0], "NO_CLOSING_BALANCE"),
        (text(LINES).replace(":60F:", ":99X:"), "NO_OPENING_BALANCE"),
        (text(LINES).replace("EUR", "E1R"), "NO_OPENING_BALANCE"),
        (text(LINES).replace(":25:DE02 1234", ":25:"), "NO_ACCOUNT"),
        (text(LINES).split("\r\n", 1)[1], "NO_REFERENCE"),
    ],
)
def test_statements_that_cannot_be_used_say_why(data: str, code: str) -> None:
    [(head, _)] = read(data.encode())
    assert head.fault is not None
    assert head.fault[0] == code


@pytest.mark.parametrize(
    ("balance", "minor"),
    [
        ("EUR40,10", 4010), ("EUR40,1", None), ("EUR40,", None), ("EUR40", None), ("EUR4", None), ("EUR", None),
        ("JPY40,", 40), ("JPY40", None), ("KWD40,100", 40100), ("KWD40,10", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece_bytes", [7, 10_000])
def test_a_file_that_ends_in_its_closing_amount_must_show_all_of_it(balance: str, minor: int | None, piece_bytes: int) -> None:
    currency = balance[:3]
    data = f":20:R\n:25:A\n:28C:1/1\n:60F:C181126{currency}0,\n:62F:C181126{balance}".encode()
    [(head, _)] = read(data, piece_bytes)
    assert head.closing_minor == minor
    assert (head.fault and head.fault[0]) == (None if minor else "NO_CLOSING_BALANCE")
    # With its line end nothing was cut from the amount, however a bank writes it.
    [(ended, _)] = read(data + b"\n", piece_bytes)
    assert (ended.fault is None) == (balance != "EUR")


def test_a_narrative_after_the_balance_belongs_to_no_line() -> None:
    data = text(LINES[2:3]) + ":86:about the whole statement\r\n"
    [(_, entries)] = read(data.encode())
    assert entries[0].narratives == []


@given(st.integers(0, 1200), st.integers(0, 1200), st.integers(1, 50))
def test_cut_anywhere(start: int, end: int, piece_bytes: int) -> None:
    data = (text(LINES) + text(LINES, "B")).encode()[start:end]
    for head, entries in read(data, piece_bytes):
        assert len(entries) == head.lines
        for entry in entries:
            try:
                mt940.parse(entry, "EUR")
            except mt940.Unreadable:
                continue


_FRAGMENTS = st.sampled_from(
    [b":20:", b":25:", b":28C:", b":60F:", b":61:", b":86:", b":62F:", b"\n", b"\r\n", b"-", b"-}", b"C261121EUR1,00", b"{4:"]
)


@given(st.lists(st.one_of(_FRAGMENTS, st.binary(max_size=40))), st.integers(1, 20))
def test_any_bytes(parts: list[bytes], piece_bytes: int) -> None:
    data = b"".join(parts)
    for head, entries in read(data, piece_bytes):
        assert len(entries) == head.lines
        for entry in entries:
            try:
                line = mt940.parse(entry, "EUR")
            except mt940.Unreadable:
                continue
            assert line.amount_minor > 0
            assert line.customer_reference.isprintable()


@given(st.lists(st.one_of(_FRAGMENTS, st.binary(max_size=40))), st.integers(1, 20))
def test_heads_do_not_depend_on_the_pieces(parts: list[bytes], piece_bytes: int) -> None:
    data = b"\n:20:R\n".join([b"", *parts])
    assert mt940.scan(pieces_of(data, piece_bytes)) == mt940.scan([data])


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(1, 20))
def test_lines_do_not_depend_on_the_pieces(lines: list[bytes], piece_bytes: int) -> None:
    data = b"\n".join(lines)
    found = placed(mt940.blocks(pieces_of(data, piece_bytes)))
    assert found == (placed(mt940.blocks([data])) if data else [])
    assert all(data[start : start + len(line)] == line for start, line in found)


def placed(blocks: Iterable[tuple[int, bytes, bool]]) -> list[tuple[int, bytes]]:
    """(first byte, line) of every line."""
    found = []
    for start, text, _ in blocks:
        for line in text.split(b"\n"):
            found.append((start, line))
            start += len(line) + 1
    return found


def test_a_file_without_line_ends_costs_no_memory() -> None:
    pieces = [b":20:" + b"x" * 1_000_000] * 20
    [(_, line, ended)] = mt940.blocks(pieces)
    assert not ended
    assert len(line) == mt940.MAX_LINE_BYTES


@given(
    st.lists(st.sampled_from([b":61:1", b":86:n", b"x" * 5, b"y" * 3000, b":20:R", b":62F:", b"", b"-"])), st.integers(1, 4000)
)
def test_long_lines_do_not_move_the_others(lines: list[bytes], piece_bytes: int) -> None:
    data = b"\n".join(lines)
    for head, entries in read(data, piece_bytes):
        assert all(data[entry.start :].startswith(b":61:") for entry in entries)
        assert len(entries) == head.lines
        assert head.start == 0 or data[head.start - 1 : head.start] == b"\n"


@pytest.mark.parametrize("piece_bytes", [1000, 79_999, 1_000_000])
def test_an_endless_entry_costs_no_memory_and_moves_nothing(piece_bytes: int) -> None:
    one, two = b":61:1\n:86:" + b"n\n" * 60_000, b":61:2"
    first, second = mt940.entries(pieces_of(one + two, piece_bytes), 0, 1_000_000)
    assert (first.start, second.start) == (0, len(one))
    assert first.narratives == ["n"] * mt940.MAX_NARRATIVES
    assert second.fields == ["2"]


@given(
    st.from_regex(r"\d{6}(\d{4})?R?[DC]\d{1,13},\d{0,4}[NSFA][A-Z0-9 ]{3}[ -~]{0,18}(//[ -~]{0,18})?", fullmatch=True),
    st.sampled_from(["EUR", "JPY", "KWD"]),
)
def test_what_nearly_all_lines_look_like_is_read_as_the_library_reads_it(text: str, currency: str) -> None:
    def read() -> mt940.Line | str:
        try:
            return mt940.parse(mt940.Entry(0, [text]), currency)
        except mt940.Unreadable as error:
            return str(error)

    quick = read()
    with patch.object(mt940, "_USUAL_LINE", re.compile("(?!)")):  # matches nothing
        assert read() == quick
