"""Which of a bank's answers say that nothing was done."""

from libs.common.workqueue import MaybeDone, NotSent
from services.funds.adapters.example_bank import read_response

DID_NOTHING = {400, 401, 403, 404, 413, 415, 422, 429}


def test_only_a_status_that_says_nothing_was_done_lets_a_call_be_repeated() -> None:
    answers = {status: read_response(status, b"{}") for status in range(100, 1000)}
    assert {status for status, answer in answers.items() if isinstance(answer, NotSent)} == DID_NOTHING
    assert {status for status, answer in answers.items() if isinstance(answer, MaybeDone)} == answers.keys() - DID_NOTHING - {
        200
    }
