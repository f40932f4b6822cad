"""What Novu's answers mean: only `processed` is a success, each item is of its own notice, and what makes no sense is asked again."""

from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from libs.common.envelope import Cause
from libs.common.workqueue import Claim, MaybeDone, NotSent
from services.notifications.adapters.novu import Novu
from services.notifications.adapters.webhook import read
from services.notifications.content import sample
from services.notifications.domain import SENT, Outcome
from services.notifications.ports import Message

NOVU = Novu("http://novu.example.org/", "key", lambda kind: kind.lower(), 3600)
MESSAGES = [sample("BENEFICIARY"), sample("BENEFICIARY", "CASH_DIGITAL")]
ID = str(MESSAGES[0].notice_id)


def answer(*items: object, bulk: bool = True) -> bytes:
    return to_json({"data": list(items) if bulk else items[0]})


def item(status: str, transaction: str | None = ID, **more: object) -> dict[str, object]:
    return {"acknowledged": True, "status": status, "transactionId": transaction, **more}


def test_only_processed_is_a_success() -> None:
    refused = Outcome("FAILED", "REFUSED", "subscriber_id_missing")
    assert NOVU.read(answer(item("processed"), item("subscriber_id_missing")), MESSAGES) == [SENT, refused]
    assert NOVU.read(answer(item("processed"), bulk=False), MESSAGES[:1]) == [SENT]
    unread = NOVU.read(answer(item("processed", acknowledged=False)), MESSAGES[:1])
    assert unread == [Outcome("FAILED", "REFUSED", "processed")]
    personal = NOVU.read(answer(item("Rosa's address", error=["rosa@example.org"])), MESSAGES[:1])
    assert personal == [Outcome("FAILED", "REFUSED", "no known status")]


@given(
    st.one_of(
        st.binary(max_size=30),
        st.builds(
            to_json,
            st.recursive(
                st.none() | st.booleans() | st.text(max_size=5),
                lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["data", "status", "transactionId"]), s),
            ),
        ),
    )
)
def test_an_answer_that_makes_no_sense_is_asked_for_again_by_its_key(content: bytes) -> None:
    found = NOVU.read(content, MESSAGES)
    if isinstance(found, MaybeDone):
        assert found.repeatable
    else:
        assert all(one.state == "FAILED" for one in found)


def test_an_answer_about_other_notices_is_none() -> None:
    assert isinstance(NOVU.read(answer(item("processed"), item("processed", str(uuid4()))), MESSAGES), MaybeDone)
    assert isinstance(NOVU.read(answer(item("processed")), MESSAGES), MaybeDone)


@pytest.mark.parametrize(
    ("status", "ambiguous", "events", "kind"),
    [
        (422, False, 2, "alone"),
        (422, False, 1, "failed"),
        (422, True, 2, "unknown"),  # the key may have come with something else before
        (401, False, 2, "final"),
        (429, False, 2, "again"),
        (409, False, 2, "asked"),
        (500, True, 2, "asked"),
    ],
)
def test_what_a_refusal_of_all_means(status: int, ambiguous: bool, events: int, kind: str) -> None:
    claim = Claim("novu", "1", 0, uuid4(), uuid4(), 1, ambiguous, 0.0, 1.0, Cause("x"))
    found = NOVU._refused(httpx.Response(status), claim, events)
    match found:
        case MaybeDone():
            assert kind == ("asked" if found.repeatable else "unknown")
        case NotSent():
            assert kind == ("final" if found.final else "again")
        case _:
            assert len(found) == events
            assert kind == ("alone" if found[0].alone else "failed")


def test_a_trigger_names_its_notice_and_leaves_out_what_is_not_known() -> None:
    one = MESSAGES[0]
    nobody = Message(one.notice_id, one.kind, one.party, "", "", "", one.created_at, one.payload)
    assert NOVU.event(nobody) == {
        "name": "beneficiary",
        "to": {"subscriberId": "FARMER-1004711"},
        "payload": one.payload,
        "overrides": {},
        "transactionId": ID,
    }


def test_of_what_a_webhook_says_twice_the_bounce_counts() -> None:
    events = [
        {"type": f"message.{kind}", "data": {"transactionId": ID}} for kind in ("delivered", "bounced", "delivered", "seen")
    ]
    assert read(to_json(events)) == ({UUID(ID): "BOUNCED"}, 1)
    assert read(to_json(events[0])) == ({UUID(ID): "DELIVERED"}, 0)
    with pytest.raises(ValueError, match="no object"):
        read(b"[1]")


@given(st.binary(max_size=60))
def test_whatever_is_posted_is_read_or_refused(body: bytes) -> None:
    try:
        said, _ = read(body)
    except ValueError:
        return
    assert said == {}
