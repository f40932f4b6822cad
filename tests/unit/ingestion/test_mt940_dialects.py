"""Statements in the shapes in which banks write them: each is read into lines, or refused with a reason.

The shapes are those of the banks' format descriptions and of public samples; people, accounts and amounts are invented."""

from typing import NamedTuple

import pytest

from services.ingestion.adapters import mt940_file as mt940

Wanted = list[tuple[str, int, str, str]]  # mark, minor units, customer reference, bank reference


class Statement(NamedTuple):
    number: str
    sequence: str
    opening_minor: int
    closing_minor: int
    lines: Wanted


ABN_AMRO = """ABNANL2A
940
ABNANL2A
:20:ABN AMRO BANK NV
:25:512345678
:28C:19321/1
:60F:C261122EUR3236,28
:61:2611241124D9,N192NONREF
:86:GIRO   123456 AID FUND          BETALINGSKENM.  000000042188659
A00000000101BWSE                   BETREFT UITKERING D.D. 20-11-2026
INCL. 1,44 KOSTEN
:61:2611210523D11,8N426NONREF
:86:BEA   NR:XXX1234   21.11.26/12.54 MARKT KATWIJK,PAS999

:61:2611221123RD107,N426NONREF
:86:STORNO
:62F:C261123EUR3322,48
-
ABNANL2A
940
ABNANL2A
:20:ABN AMRO BANK NV
:25:512345678
:28C:19322/1
:60M:C261123EUR3322,48
:61:2611241124D9,49N426NONREF
:86:52.89.39.882                    MARKT DEN HAAG
:62M:C261124EUR3312,99
-
"""
ING = """0000 01INGBNL2AXXXX00001
0000 01INGBNL2AXXXX00001
940 00
:20:MPBZ
:25:0001234567
:28C:000
:60F:C261122EUR0,00
:61:261122D25,03NOV NONREF
:86: AFREKENING BETALINGSVERKEER
BETREFT REKENING 1234567 PERIODE: 01-10-2026 / 31-12-2026
:61:261122D1,11NGT A00000000101BWSE
:86:0111111111 UITKERING KN: 10062026 15:32\tAID FUND
:61:261123C1,00NGT NONREF
:86:0111111111 Hr J Jansen
ROSMALEN Hr J Jansen ROSMALEN
:62F:D261123EUR25,14
:86:D000002C000001D26,14C1,00
-XXX
"""
RABOBANK = """:940:
:20:940S261101
:25:NL71RABO0123456789 EUR
:28C:26305
:60F:C261031EUR000000001000,00
:61:261101D000000000025,00N102EREF            \nNL70ABNA0987654321
:86:/EREF/A00000000101BWSE/BENM//NAME/CONTRA ACCOUN
T HOLDER/REMI//ISDT/2026-11-01
:61:261101C000000000010,00N154NONREF          \nP001234567
:86:/ORDP//NAME/JOHN DOE/REMI/Reference 201301234/ISDT/2026-11-01
:62F:C261101EUR000000000985,00
"""
KNAB = """:20:B6G30MS9D00A003D
:25:123456789
:28C:999/1
:60F:C261129EUR3058,98
:61:2611291129D7260,NTRFNONREF//B6G29PGCVO7Q06US
:86:FACTUUR 201403110, 201403113
REK: NL65INGB0123456789/NAAM: AID FUND
:61:2611291129C500NTRF29-11-2026 10:05//B6G29PGDCK1QFV3E
:86:12160475 0050001631430920 ORDERID: 264267
:62F:D261130EUR3701,02
-
"""
# One statement over two messages; a reversed debit; subfields that go on over the ends of lines.
SPARKASSE = """{1:F01SPARDEFFXXXX0000000000}{2:O940}{4:
:20:T089414006000001
:25:50880050/0194781300
:28C:00004/00001
:60F:D260903EUR40432,20
:61:2609040904CR19990,05NTRFNONREF//0724710333377198
:86:166?00GUTSCHRIFT?100399?20EREF+EndToEndId TFNR 22 001?21 00001?22
SVWZ+Verwendungszweck TF?23Nr 22 001?30DRESDEFF508?31DE89508800500194
784900?32ERIKA?33        MUSTER
:61:2609040904DR57,34NTRFKREF+//0724710352996674
:86:116?00SEPA-UEBERW?100399?20KREF+A00000000101BWSE?21SVWZ+Beihilfe
November?30SOGEFRPPXXX?31FR1420041010050500013M02606?32Max Muster
:61:2609040904RCR204,88NRTINONREF
:86:079?00SAMMLER/STORNO?109800?200904059003
:62M:D260904EUR20704,37
-}
{1:F01SPARDEFFXXXX0000000000}{2:O940}{4:
:20:T089414006000002
:25:50880050/0194781300
:28C:00004/00002
:60M:D260904EUR20704,37
:61:2609040904DR5002,17NTRFKREF+//0724710353002818
:86:116?00SEPA-UEBERW?100399?20EREF+NONREF?21KREF+A000000002
:62F:D260904EUR25706,54
:64:D260904EUR25706,54
-}
"""
MBANK = """
:20:ST261119CYC/1
:25:PL29114010810000267002001002
:28C:1/1
:60F:C261119PLN0,40
:61:2611191119CN0,01NTRFNONREF//MB261119012058
911-TRANSAKCJA IPH
:86:911 TRANSAKCJA COLLECT; ID IPH: XX000000000001; Z RACH.:
56114010810000267002001001; OD: JAN NOWAK
UL. NIJAKA 1 M 2; TYT.: PRZELEW SRODKOW   ;
TNR: 179171073864111.010001
:61:2611191119DN0,31NTRFA00000000101BWSE//MB261119012085
911-TRANSAKCJA
:86:911 PRZELEW ZBIORCZY
:62F:C261119PLN0,10
:64:C261119PLN0,10
-
"""
JAKARTA = """:20:26112101
:25:0206-01-000123-30-5
:28C:00325/001
:60F:C261120IDR128000000000,00
:61:261121    D125050,00NTRFA00000000101BWSE//0324517
:86:BANTUAN NOVEMBER 2026
:61:261121    D750000,00NTRFA0000000020296RE//0324518
:86:BANTUAN NOVEMBER 2026
:61:2611211121RD125050,00NTRFA00000000101BWSE//0324999
:86:REK TUTUP
:62F:C261121IDR127999250000,00
-
"""
TRIODOS = """:20:1308728725026/1
:25:TRIODOSBANK/0390123456
:28:1
:60F:C260101EUR4975,09
:61:260101D15,70N000NONREF
:86:000>100987654321
>20ALGEMENE TUSSENREKENING KOS>21TEN VAN 01-10-2025 TOT EN M
>22ET 31-12-2025>310390123456
:61:260125D700,00N000NONREF
:86:000>100133967858
>20 HUUR>21 KANTOOR - FEB 2026
:62F:C260201EUR4259,39
-

"""
ASN = """{1:F01ASNBNL21XXXX0000000000}{2:O940ASNBNL21XXXXN}{3:}{4:
:20:0000000000
:25:NL81ASNB9999999999
:28C:1/1
:60F:C260101EUR444,29
:61:2601010101D65,00NOVBNL47INGB9999999999
hr j jansen
:86:NL47INGB9999999999 hr j jansen
                                                                 \nBetaling
                                                                 \n:61:2601010101D1,65NDIV
:86: \n                                                                 \nKosten gebruik betaalrekening
:62F:C260101EUR377,64
-}{5:}
"""

READ: dict[str, tuple[str, str, str, list[Statement]]] = {
    "ABN AMRO": (
        ABN_AMRO,
        "512345678",
        "EUR",
        [
            Statement(
                "19321",
                "1",
                323628,
                332248,
                [("D", 900, "NONREF", ""), ("D", 1180, "NONREF", ""), ("RD", 10700, "NONREF", "")],
            ),
            Statement("19322", "1", 332248, 331299, [("D", 949, "NONREF", "")]),
        ],
    ),
    "ING": (
        ING,
        "0001234567",
        "EUR",
        [
            Statement(
                "0",
                "",
                0,
                -2514,
                [("D", 2503, "NONREF", ""), ("D", 111, "A00000000101BWSE", ""), ("C", 100, "NONREF", "")],
            )
        ],
    ),
    "Rabobank": (
        RABOBANK,
        "NL71RABO0123456789 EUR",
        "EUR",
        [Statement("26305", "", 100000, 98500, [("D", 2500, "EREF", ""), ("C", 1000, "NONREF", "")])],
    ),
    "Knab": (
        KNAB,
        "123456789",
        "EUR",
        [
            Statement(
                "999",
                "1",
                305898,
                -370102,
                [("D", 726000, "NONREF", "B6G29PGCVO7Q06US"), ("C", 50000, "29-11-2026 10:05", "B6G29PGDCK1QFV3E")],
            )
        ],
    ),
    "Sparkasse": (
        SPARKASSE,
        "50880050/0194781300",
        "EUR",
        [
            Statement(
                "4",
                "1",
                -4043220,
                -2070437,
                [
                    ("C", 1999005, "NONREF", "0724710333377198"),
                    ("D", 5734, "KREF+", "0724710352996674"),
                    ("RC", 20488, "NONREF", ""),
                ],
            ),
            Statement("4", "2", -2070437, -2570654, [("D", 500217, "KREF+", "0724710353002818")]),
        ],
    ),
    "mBank": (
        MBANK,
        "PL29114010810000267002001002",
        "PLN",
        [Statement("1", "1", 40, 10, [("C", 1, "NONREF", "MB261119012058"), ("D", 31, "A00000000101BWSE", "MB261119012085")])],
    ),
    "Jakarta": (
        JAKARTA,
        "0206-01-000123-30-5",
        "IDR",
        [
            Statement(
                "325",
                "1",
                12800000000000,
                12799925000000,
                [
                    ("D", 12505000, "A00000000101BWSE", "0324517"),
                    ("D", 75000000, "A0000000020296RE", "0324518"),
                    ("RD", 12505000, "A00000000101BWSE", "0324999"),
                ],
            )
        ],
    ),
    "Triodos": (
        TRIODOS,
        "TRIODOSBANK/0390123456",
        "EUR",
        [Statement("1", "", 497509, 425939, [("D", 1570, "NONREF", ""), ("D", 70000, "NONREF", "")])],
    ),
    "ASN": (
        ASN,
        "NL81ASNB9999999999",
        "EUR",
        [Statement("1", "1", 44429, 37764, [("D", 6500, "NL47INGB9999999999", ""), ("D", 165, "", "")])],
    ),
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("bank", READ)
def test_a_bank_s_statements_are_read(bank: str, line_end: str) -> None:
    text, account, currency, wanted = READ[bank]
    data = text.replace("\n", line_end).encode()
    heads = mt940.scan([data])
    assert [head.fault for head in heads] == [None] * len(wanted)
    for head, statement in zip(heads, wanted, strict=True):
        assert (head.account, head.currency) == (account, currency)
        assert (head.number, head.sequence) == (statement.number, statement.sequence)
        assert (head.opening_minor, head.closing_minor) == (statement.opening_minor, statement.closing_minor)
        assert head.closing_date is not None
        assert head.closing_date.year == 2026
        entries = list(mt940.entries([data[head.start :]], head.start, head.end))
        lines = [mt940.parse(entry, currency) for entry in entries]
        found = [(line.mark, line.amount_minor, line.customer_reference, line.bank_reference) for line in lines]
        assert found == statement.lines
        signs = {"D": -1, "RD": 1, "C": 1, "RC": -1}
        effect = sum(signs[line.mark] * line.amount_minor for line in lines)
        assert statement.opening_minor + effect == statement.closing_minor  # the sample itself is right
        assert all(text.isprintable() for entry in entries for text in (mt940.clean(n, 100) for n in entry.narratives))


REFUSED = {
    # An interim report (MT942) has no balances: nothing tells whether it is whole.
    "an interim report": (
        ":20:ST261119CYC/1\n:25:PL29114010810000267002001002\n:28C:1/1\n:34F:PLND0,\n:13D:2611191200+0100\n"
        ":61:2611191119CN0,01NTRFNONREF//MB261119012058\n:90D:0PLN0,\n:90C:1PLN0,01\n-\n",
        "NO_OPENING_BALANCE",
    ),
    "a closing balance in another currency": (KNAB.replace(":62F:D261130EUR", ":62F:D261130USD"), "NO_CLOSING_BALANCE"),
    "an amount with a point": (KNAB.replace("EUR3058,98", "EUR3058.98"), "NO_OPENING_BALANCE"),
    "no account": (TRIODOS.replace(":25:TRIODOSBANK/0390123456\n", ""), "NO_ACCOUNT"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_says_why(what: str) -> None:
    text, code = REFUSED[what]
    [head] = mt940.scan([text.encode()])
    assert head.fault is not None
    assert head.fault[0] == code


# A line break in the amount, a tag torn apart, the 30th of February, another currency's decimals.
@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (":61:1811261126CR3\n0,00N062NONREF", "not in the form"),
        (":61:1802300230C30,00NTRFNONREF", "not a date"),
        (":61:1811261126C30,001NTRFNONREF", "decimals"),
        (":61:1811261126C30,00Z62 NONREF", "not in the form"),
        (":61:1811261126C30,00 NTRFNONREF", "not in the form"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(field: str, reason: str) -> None:
    text = f":20:R\n:25:A\n:28C:1/1\n:60F:C181126EUR0,\n{field}\n:86:x\n:62F:C181126EUR30,00\n"
    [head] = mt940.scan([text.encode()])
    assert (head.fault, head.lines) == (None, 1)
    [entry] = mt940.entries([text.encode()[head.start :]], head.start, head.end)
    with pytest.raises(mt940.Unreadable, match=reason):
        mt940.parse(entry, "EUR")
