"""The simulated bank's statements, brought to funds as ingestion would: parsed with mt-940 into neutral lines."""

import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import mt940

from libs.common.contracts.base import derived_id, totals
from libs.common.contracts.ingestion import Lines, StatementLine, StatementLines, StatementOpened, UnparsableLine
from tests.support.money import Payout


def deliver_statements(payout: Payout, *, chunk: int = 1000, after: int = 0) -> int:
    """Cut a statement, publish it (and those before it that have an id above `after`) in chunks; returns the last one's id."""
    payout.bank.order_statement(payout.profile, payout.account)
    last = after
    for info in payout.bank.statements(payout.profile, payout.account):
        if info["id"] > after:
            publish_statement(payout, payout.bank.statement_content(payout.profile, info["id"]), chunk=chunk)
            last = max(last, info["id"])
    return last


def publish_statement(payout: Payout, content: bytes | str, *, chunk: int = 1000) -> None:
    text = content.decode() if isinstance(content, bytes) else content
    token = payout.sealer.token(payout.account)
    statement_id = derived_id("statement", token, text)
    parsed = mt940.parse(io.StringIO(text))
    lines = [_line(number, item.data) for number, item in enumerate(parsed.transactions, 1)]
    chunks = [lines[start : start + chunk] for start in range(0, len(lines), chunk)]
    narratives = {number: _narratives(item.data) for number, item in enumerate(parsed.transactions, 1)}
    publish_lines(payout, statement_id, token, chunks, narratives)
    opening = _minor(parsed.data["final_opening_balance"].amount.amount)
    closing = _minor(parsed.data["final_closing_balance"].amount.amount)
    publish_opened(payout, statement_id, token, opening, closing, len(lines), len(chunks))


def publish_opened(
    payout: Payout, statement_id: Any, token: str, opening_minor: int, closing_minor: int, lines: int, chunks: int
) -> None:
    opened = StatementOpened(
        statement_id=statement_id,
        account_token=token,
        reference="S",
        number="1",
        sequence="1",
        currency="EUR",
        opening_minor=opening_minor,
        closing_minor=closing_minor,
        lines=lines,
        chunks=chunks,
    )
    payout.world.publish("ingestion.statements.v1", opened, key=token, correlation_id=str(statement_id))


def publish_lines(
    payout: Payout,
    statement_id: Any,
    token: str,
    chunks: list[list[StatementLine]],
    told: Mapping[int, list[str]] | None = None,
    unparsable: Sequence[UnparsableLine] = (),
) -> None:
    """`told`: line -> its narratives. `unparsable`: of each chunk."""
    for number, lines in enumerate(chunks, 1):
        numbers = [line.line for line in lines]
        personal = {"line": numbers, "narratives": [(told or {}).get(n, []) for n in numbers], "text": [None] * len(numbers)}
        data = StatementLines(
            statement_id=statement_id,
            account_token=token,
            currency="EUR",
            chunk=number,
            lines=Lines.of(lines),
            unparsable=list(unparsable),
            **totals([line.amount_minor for line in lines]),
            sealed=payout.sealer.seal(personal, "StatementLines", statement_id, number),
        )
        payout.world.publish("ingestion.statements.v1", data, key=token, correlation_id=str(statement_id))


def _line(number: int, data: dict[str, Any]) -> StatementLine:
    narratives = _narratives(data)
    return StatementLine(
        line=number,
        mark=data["status"],
        amount_minor=abs(_minor(data["amount"].amount)),
        value_date=data["date"],
        customer_reference=data["customer_reference"],
        bank_reference=data["bank_reference"] or "",
        fifth_narrative=narratives[4] if len(narratives) > 4 else "",
    )


def _narratives(data: dict[str, Any]) -> list[str]:
    return str(data.get("transaction_details") or "").split("\n")


def _minor(amount: Decimal) -> int:
    return int(amount.scaleb(2))
