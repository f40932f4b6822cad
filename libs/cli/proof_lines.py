"""Books, proof (b): every confirmed or reversed payment has its line on the bank's statements, and every line its payment."""

import sqlite3
from collections.abc import Iterator

from libs.cli.evidence import Evidence

_STATEMENTS, _PAYMENTS = "ingestion.statements.v1", "funds.payments.v1"
# Whether the topic does not keep statement s any more. Ingestion received it before it published its lines.
_OLDER = f"older('{_STATEMENTS}', s.account, s.received)"


def confirmed_has_its_line(evidence: Evidence) -> Iterator[str]:
    yield from _cited(evidence, "confirmed", "D", "state IN ('CONFIRMED', 'REVERSED')")
    for row in evidence.ledger.query(
        f"""SELECT p.*, older('{_PAYMENTS}', i.batch, i.created) AS older FROM payment p JOIN instruction i USING (instruction)
            WHERE state IN ('CONFIRMED', 'REVERSED') AND confirmed_by IS NULL AND NOT EXISTS (
               SELECT 1 FROM fact f WHERE f.e = p.e AND f.id = p.id AND f.kind = 'confirmed' AND f.statement IS NULL
                   AND f.instruction = p.instruction)"""
    ):
        if evidence.passed(_PAYMENTS, row["older"]):
            continue
        payment = f"payment {row['reference']} of disbursement {row['id']} ({row['minor']})"
        yield f"{evidence.names[row['e']]}: {payment} is {row['state']} by no line and by no operator"


def reversed_has_its_line(evidence: Evidence) -> Iterator[str]:
    yield from _cited(evidence, "reversed", "RD", "state = 'REVERSED'")


def _cited(evidence: Evidence, word: str, mark: str, condition: str) -> Iterator[str]:
    for row in evidence.ledger.query(
        f"""SELECT p.*, l.mark, l.minor AS line_minor, l.reference AS line_reference, l.fifth, l.mark IS NULL AND {_OLDER} AS older
            FROM payment p LEFT JOIN line l ON l.statement = p.{word}_by AND l.line = p.{word}_line
            LEFT JOIN statement s ON s.id = p.{word}_by
            WHERE {condition} AND p.{word}_by IS NOT NULL AND p.head IS NULL
              AND (l.mark IS NOT ? OR l.minor <> p.minor OR p.reference NOT IN (l.reference, l.fifth))""",
        mark,
    ):
        if evidence.passed(_STATEMENTS, row["older"]):
            continue
        payment = f"payment {row['reference']} of disbursement {row['id']} ({row['minor']}) is {word}"
        yield f"{evidence.names[row['e']]}: {payment} {_by(row, word)}"
    # The line of a payment to an agency is the sum of the shares that it confirms.
    for row in evidence.ledger.query(
        f"""SELECT g.*, l.mark, l.minor AS line_minor, l.reference AS line_reference, l.fifth, l.mark IS NULL AND {_OLDER} AS older
            FROM (SELECT e, reference, count(*) AS people, sum(minor) AS minor, {word}_by, {word}_line FROM payment
                  WHERE {condition} AND {word}_by IS NOT NULL AND head IS NOT NULL
                  GROUP BY instruction, head, {word}_by, {word}_line) AS g
            LEFT JOIN line l ON l.statement = g.{word}_by AND l.line = g.{word}_line
            LEFT JOIN statement s ON s.id = g.{word}_by
            WHERE l.mark IS NOT ? OR l.minor <> g.minor OR g.reference NOT IN (l.reference, l.fifth)""",
        mark,
    ):
        if evidence.passed(_STATEMENTS, row["older"]):
            continue
        payment = f"payment {row['reference']} to an agency, for {row['people']} people ({row['minor']}), is {word}"
        yield f"{evidence.names[row['e']]}: {payment} {_by(row, word)}"


def _by(row: sqlite3.Row, word: str) -> str:
    place = f"by line {row[word + '_line']} of statement {row[word + '_by']}"
    if row["mark"] is None:
        return f"{place}, which is not there"
    return f"{place}, which says {row['mark']} {row['line_minor']} {row['fifth'] or row['line_reference']}"


def line_has_its_payment(evidence: Evidence) -> Iterator[str]:
    """Every debit and reversal counts for a payment, repeats one that does, or is an exception (line 0: all of the statement). Which
    line it repeats can't be told where that is too old to be there."""
    every = "TRUE" if len(evidence.rows) > 1 or not _only_some(evidence) else "known.e IS NOT NULL"
    for row in evidence.ledger.query(
        f"""SELECT l.*, known.id AS id, known.e AS e, known.state AS state,
                   {_OLDER} AND NOT EXISTS (SELECT 1 FROM line o WHERE o.statement = s.id AND o.line = CASE l.mark
                       WHEN 'D' THEN known.confirmed_line ELSE known.reversed_line END) AS older
            FROM line l
            LEFT JOIN payment known ON known.reference = CASE WHEN l.fifth = '' THEN l.reference ELSE l.fifth END
                AND known.position = coalesce(known.head, known.position)
            LEFT JOIN statement s ON s.id = CASE l.mark WHEN 'D' THEN known.confirmed_by ELSE known.reversed_by END
            WHERE l.mark IN ('D', 'RD') AND {every}
              AND NOT EXISTS (SELECT 1 FROM exception x WHERE x.statement = l.statement AND x.line IN (l.line, 0))
              AND NOT EXISTS (SELECT 1 FROM payment p
                              WHERE l.mark = 'D' AND p.confirmed_by = l.statement AND p.confirmed_line = l.line)
              AND NOT EXISTS (SELECT 1 FROM payment p
                              WHERE l.mark = 'RD' AND p.reversed_by = l.statement AND p.reversed_line = l.line)
              AND NOT EXISTS (SELECT 1 FROM line o JOIN payment p ON
                                  CASE l.mark WHEN 'D' THEN p.confirmed_by = o.statement AND p.confirmed_line = o.line
                                              ELSE p.reversed_by = o.statement AND p.reversed_line = o.line END
                              WHERE o.reference = l.reference AND o.mark = l.mark AND o.minor = l.minor
                                AND o.bank_reference = l.bank_reference AND l.bank_reference NOT IN ('', 'NONREF')
                                AND p.reference = known.reference)"""
    ):
        if evidence.passed(_STATEMENTS, row["older"]):
            continue
        whose = f"disbursement {row['id']}, which is {row['state']}" if row["id"] else "no payment"
        yield (
            f"line {row['line']} of statement {row['statement']} ({row['mark']} {row['minor']}, reference "
            f"{row['fifth'] or row['reference']}) counts for {whose}, and is no exception either"
        )


def bookings_that_count_twice(evidence: Evidence) -> Iterator[str]:
    """One booking of the bank, by its own reference, and two payments that it confirms: no sum shows that. Looked for here, since
    looking at each line as it comes would cost most of what reconciling it does."""
    # To be asked about, and no fault of the books: there are banks which give every line of a list the list's own reference, and the
    # lines themselves do not tell that from one booking taken for two.
    for row in evidence.ledger.query(
        """SELECT l.bank_reference, count(DISTINCT p.reference) AS payments, min(p.reference) AS first, max(p.reference) AS last
           FROM payment p JOIN line l ON l.statement = p.confirmed_by AND l.line = p.confirmed_line
           WHERE p.confirmed_by IS NOT NULL AND l.bank_reference NOT IN ('', 'NONREF')
           GROUP BY l.account, l.bank_reference HAVING count(DISTINCT p.reference) > 1"""
    ):
        yield (
            f"the bank's reference {row['bank_reference']} confirms {row['payments']} payments, {row['first']} and {row['last']} among "
            "them: ask the bank whether it made more than one"
        )


def _only_some(evidence: Evidence) -> bool:
    all_envelopes = evidence.views.one("SELECT count(*) AS n FROM funds.ops_envelopes").n
    return bool(all_envelopes > len(evidence.rows))
