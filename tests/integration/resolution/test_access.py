"""Getting in at the mapper: both versions of its API, tokens, signatures, and consideration for a mapper in difficulties."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey

from libs.common.contracts.operator import RetryWork
from libs.local.client import MapperAdmin
from tests.integration.resolution.batches import COMMANDS, PATIENT, cut, fa, idle, opened, publish, resolved, run
from tests.support.world import World

PATHS = {"spar1": "/sync/resolve", "spar2": "/mapper/resolve"}
MAPPER = "ALMONER_RESOLUTION_MAPPER_"
RESOLVE = "ALMONER_RESOLUTION_RESOLVE_"
CLIENT = {"client_id": "almoner", "client_secret": "a secret of tests"}
KEYS: dict[str, dict[str, Any]] = {
    "RS256": dict(RSAKey.generate_key(2048).as_dict(private=True)),
    "PS256": {**RSAKey.generate_key(2048).as_dict(private=True), "alg": "PS256"},
    "ES256": dict(ECKey.generate_key("P-256").as_dict(private=True)),
    "EdDSA": dict(OKPKey.generate_key("Ed25519").as_dict(private=True)),
}
PRIVATE_PARTS = {"d", "p", "q", "dp", "dq", "qi"}


def public(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name not in PRIVATE_PARTS}


def oauth(mapper: MapperAdmin) -> dict[str, str]:
    return {
        MAPPER + "OAUTH_URL": f"{mapper.base_url}/oauth/token",
        MAPPER + "OAUTH_CLIENT_ID": CLIENT["client_id"],
        MAPPER + "OAUTH_CLIENT_SECRET": CLIENT["client_secret"],
    }


@pytest.fixture
def guarded(mapper: MapperAdmin) -> Iterator[MapperAdmin]:
    """The session's mapper; whom it lets in, and what it says of people, ends with the test."""
    yield mapper
    mapper.set_guard()
    mapper.set_codes()


@pytest.fixture
def log(mapper: MapperAdmin) -> "Log":
    return Log(mapper)


class Log:
    """What the mapper was asked since the test began, by path."""

    def __init__(self, mapper: MapperAdmin) -> None:
        self._mapper = mapper
        self._before = max((request["id"] for request in mapper.requests()), default=0)

    def of(self, path: str) -> list[dict[str, Any]]:
        return [request for request in self._mapper.requests(self._before) if request["path"] == path]

    def outcomes(self, path: str) -> list[str]:
        return [request["outcome"] for request in self.of(path)]


def people_of(world: World, mapper: MapperAdmin, count: int) -> list[str]:
    people = [f"{world.name}-{number}" for number in range(count)]
    mapper.put_people((person, fa(person)) for person in people)
    return people


def stuck(world: World) -> Any:
    """The one work row that is in ERROR."""
    return world.until(lambda: world.sql("resolution", "SELECT * FROM ops_work WHERE state = 'ERROR'"))[0]


@pytest.mark.parametrize("api", PATHS)
def test_both_versions_find_the_same_addresses_and_hold_the_same_people(
    world: World, guarded: MapperAdmin, log: Log, api: str
) -> None:
    people = people_of(world, guarded, 40)
    stranger = f"{world.name}-99"
    codes = {
        "rjct.id.invalid": "REFUSED",
        "rjct.fa.invalid": "REFUSED",
        "rjct.timestamp.invalid": "ASKED_WRONGLY",
        "rjct.resolve_type.not_supported": "ASKED_WRONGLY",
        "succ.fa.inactive": "INACTIVE",
        "succ.id.inactive": "INACTIVE",
        "succ.fa.not_found": "NOT_LINKED",
        "succ.id.not_found": "NOT_FOUND",
    }
    guarded.set_codes({**dict(zip(people, codes, strict=False)), people[39]: "succ.fa.active"})
    run(world, guarded.base_url, **{MAPPER + "API": api}, **PATIENT)
    publish(world, [cut([*people, stranger])])
    [event] = resolved(world, 1)
    held = {one.beneficiary_id: (one.reason, one.message) for one in event.data.unresolved}
    assert held == {
        **{person: (reason, code) for person, (code, reason) in zip(people, codes.items(), strict=False)},
        stranger: ("NOT_LINKED", "succ.fa.not_linked_to_id"),
    }
    found = opened(event)
    assert len(found) == 32
    for address in found.values():
        del address["name"], address["narrative"]
    more = {"mobile_number": "+2219"} if api == "spar1" else {}  # SPAR 2.x tells of a bank account what concerns the bank
    bank = {"fa_type": "BANK_ACCOUNT", "account_number": "ACC9", "branch_code": "B1", "bank_code": "EXB"}
    assert found["D1-9"] == {**bank, **more}
    wallet = {"fa_type": "MOBILE_WALLET", "mobile_number": "+22110", "wallet_provider_name": "Wave"}
    assert found["D1-10"] == {**wallet, "wallet_provider_code": "WV"}
    wallet = {"fa_type": "EMAIL_WALLET", "email_address": "p11@d.example", "wallet_provider_name": "Pay"}
    assert found["D1-11"] == {**wallet, "wallet_provider_code": "PP"}
    assert "D1-39" in found
    assert log.outcomes(PATHS[api]) == ["succ"]


@pytest.mark.parametrize("api", PATHS)
@pytest.mark.parametrize("code", ["rjct.version.invalid", "rjct.total_count.limit_exceeded", "rjct.jwt.invalid"])
def test_a_request_that_is_at_fault_is_an_error_at_once_which_an_operator_retries(
    world: World, guarded: MapperAdmin, log: Log, api: str, code: str
) -> None:
    people = people_of(world, guarded, 3)
    if code == "rjct.total_count.limit_exceeded":
        guarded.set_limits(max_items=2)
    elif code == "rjct.jwt.invalid":
        guarded.set_guard(request_key=public(KEYS["ES256"]))
    else:
        guarded.set_guard(refuse_with=code)
    run(world, guarded.base_url, **{MAPPER + "API": api}, **PATIENT)
    publish(world, [cut(people)])
    row = stuck(world)
    assert (row.code, row.message, row.attempts_started) == ("MAPPER_REFUSED", code, 1)
    assert len(log.of(PATHS[api])) == 1
    assert not world.sql("resolution", "SELECT 1 FROM ops_held")

    guarded.set_guard()
    guarded.set_limits()
    world.publish(COMMANDS, RetryWork(who="ops", why="mended", kind="resolve"), "resolve")
    [event] = resolved(world, 1)
    assert (event.data.count, event.data.unresolved_count) == (3, 0)


@pytest.mark.parametrize("api", PATHS)
def test_a_refusal_for_the_moment_is_tried_again(world: World, guarded: MapperAdmin, log: Log, api: str) -> None:
    people = people_of(world, guarded, 3)
    guarded.add_fault("refuse", path=PATHS[api], count=2)  # rjct.internal.error
    run(world, guarded.base_url, **{MAPPER + "API": api}, **PATIENT)
    publish(world, [cut(people)])
    [event] = resolved(world, 1)
    assert event.data.count == 3
    assert log.outcomes(PATHS[api]) == ["rjct", "rjct", "succ"]


@pytest.mark.parametrize("api", PATHS)
def test_whoever_has_a_whole_request_refused_is_held_and_the_others_go_on(
    world: World, guarded: MapperAdmin, log: Log, api: str
) -> None:
    """Two of sixteen are at fault: in halves they are found within one attempt."""
    people = people_of(world, guarded, 16)
    guarded.set_codes({people[4]: "rjct.id.invalid", people[13]: "rjct.id.invalid"})
    guarded.set_guard(too_many_from=1)
    guarded.set_limits(refuse_repeated_message_id=True)
    run(world, guarded.base_url, **{MAPPER + "API": api}, **PATIENT)
    publish(world, [cut(people)])
    [event] = resolved(world, 1)
    assert (event.data.count, event.data.unresolved_count) == (14, 2)
    assert {(one.beneficiary_id, one.reason, one.message) for one in event.data.unresolved} == {
        (people[4], "REFUSED", "rjct.errors.too_many"),
        (people[13], "REFUSED", "rjct.errors.too_many"),
    }
    assert opened(event).keys() == {item.disbursement_id for item in event.data.items}
    [row] = world.sql("resolution", "SELECT state, attempts_started FROM ops_work")
    assert (row.state, row.attempts_started) == ("DONE", 1)
    items = [request["items"] for request in log.of(PATHS[api])]
    assert items == [16, 8, 8, 4, 4, 4, 4, 2, 2, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("algorithm", KEYS)
def test_requests_and_answers_are_signed(world: World, guarded: MapperAdmin, log: Log, algorithm: str) -> None:
    people = people_of(world, guarded, 3)
    ours, theirs = KEYS[algorithm], {**KEYS[algorithm], "kid": "theirs"}
    guarded.set_guard(request_key=public(ours), answer_key=theirs)
    api = "spar2" if algorithm in ("RS256", "EdDSA") else "spar1"
    env = {
        MAPPER + "API": api,
        MAPPER + "SIGN_KEY": json.dumps(ours),
        MAPPER + "ANSWER_KEY": json.dumps(public(theirs)),
        MAPPER + "SENDER_ID": "Almon\u00e9r",
    }
    process = run(world, guarded.base_url, **env, **PATIENT)
    publish(world, [cut([*people, f'{world.name}-\u00e9\u2028\\"'])])
    [event] = resolved(world, 1)
    assert (event.data.count, event.data.unresolved_count) == (3, 1)
    assert log.outcomes(PATHS[api]) == ["succ"]
    private = [ours[name] for name in PRIVATE_PARTS & ours.keys()]
    assert not any(part in process.log_text() for part in private)


@pytest.mark.parametrize("signs", [None, "RS256"])
def test_an_answer_that_is_not_signed_by_the_mapper_is_none(world: World, guarded: MapperAdmin, signs: str | None) -> None:
    people = people_of(world, guarded, 3)
    guarded.set_guard(answer_key=KEYS[signs] if signs else None)
    answer_key = json.dumps(public(KEYS["PS256"]))
    run(world, guarded.base_url, **{MAPPER + "ANSWER_KEY": answer_key, RESOLVE + "MAX_ATTEMPTS": "2"}, **PATIENT)
    publish(world, [cut(people)])
    row = stuck(world)
    assert (row.code, row.attempts_started) == ("ANSWER_UNSIGNED", 2)
    guarded.set_guard(answer_key=KEYS["PS256"])
    world.publish(COMMANDS, RetryWork(who="ops", why="signed now", kind="resolve"), "resolve")
    assert resolved(world, 1)[0].data.count == 3


def test_a_keymanager_signs_with_a_key_that_stays_there(world: World, guarded: MapperAdmin, log: Log) -> None:
    people = people_of(world, guarded, 3)
    guarded.set_guard(**CLIENT, request_key=public(KEYS["RS256"]))  # the keymanager has no key yet
    env = {MAPPER + "KEYMANAGER_URL": f"{guarded.base_url}/keymanager", MAPPER + "API": "spar2"}
    run(world, guarded.base_url, **env, **oauth(guarded), **PATIENT)
    publish(world, [cut(people)])
    row = stuck(world)
    assert (row.code, row.attempts_started) == ("KEYMANAGER_REFUSED", 1)
    assert log.of(PATHS["spar2"]) == []  # nothing is asked without a signature

    guarded.set_guard(**CLIENT, request_key=public(KEYS["RS256"]), keymanager_key=KEYS["RS256"])
    guarded.add_fault("error_500", path="/jwtSign", count=1)
    guarded.revoke_tokens()
    world.publish(COMMANDS, RetryWork(who="ops", why="there is a key", kind="resolve"), "resolve")
    assert resolved(world, 1)[0].data.count == 3
    assert log.outcomes("/jwtSign") == ["refused", "not done", "unauthorised", "signed"]
    assert log.outcomes(PATHS["spar2"]) == ["succ"]
    assert log.outcomes("/oauth/token") == ["given", "given"]


def test_one_token_serves_many_calls_and_a_refused_one_is_renewed_once(world: World, guarded: MapperAdmin, log: Log) -> None:
    people = people_of(world, guarded, 3)
    guarded.set_guard(**CLIENT)
    guarded.add_fault("late", path="/oauth/token", seconds=0.3)  # all the calls at once wait for one token
    process = run(world, guarded.base_url, **oauth(guarded), **PATIENT)
    world.until(process.ready)
    publish(world, [cut(people, number) for number in range(1, 9)])
    resolved(world, 8)
    assert log.outcomes("/oauth/token") == ["given"]
    assert log.outcomes(PATHS["spar1"]) == ["succ"] * 8

    guarded.revoke_tokens()
    publish(world, [cut(people, number) for number in range(9, 17)])
    resolved(world, 16)
    assert log.outcomes("/oauth/token") == ["given"] * 2
    outcomes = log.outcomes(PATHS["spar1"])
    assert outcomes.count("succ") == 16
    assert 1 <= outcomes.count("unauthorised") <= 4  # as many calls as are made at once
    [row] = world.sql("resolution", "SELECT max(attempts_started) AS most FROM ops_work")
    assert row.most == 1
    assert "token-" not in process.log_text()
    assert CLIENT["client_secret"] not in process.log_text()


def test_a_token_is_renewed_before_its_end(world: World, guarded: MapperAdmin, log: Log) -> None:
    people = people_of(world, guarded, 3)
    guarded.set_guard(**CLIENT, token_seconds=0.001)  # it has always ended by the time it is looked at
    run(world, guarded.base_url, **oauth(guarded), **{RESOLVE + "MAX_ATTEMPTS": "1"}, **PATIENT)
    publish(world, [cut(people)])
    row = stuck(world)
    assert row.code == "HTTP_401"
    assert log.outcomes("/oauth/token") == ["given", "given"]
    guarded.set_guard(**CLIENT)
    world.publish(COMMANDS, RetryWork(who="ops", why="longer tokens", kind="resolve"), "resolve")
    assert resolved(world, 1)[0].data.count == 3
    assert log.outcomes(PATHS["spar1"]) == ["unauthorised", "unauthorised", "succ"]


def test_wrong_credentials_are_an_error_at_once(world: World, guarded: MapperAdmin, log: Log) -> None:
    people = people_of(world, guarded, 3)
    guarded.set_guard(client_id="almoner", client_secret="another")
    run(world, guarded.base_url, **oauth(guarded), **PATIENT)
    publish(world, [cut(people)])
    row = stuck(world)
    assert (row.code, row.attempts_started) == ("TOKEN_HTTP_401", 1)
    assert log.of(PATHS["spar1"]) == []


@pytest.mark.parametrize("kind", ["error_429", "error_503"])
def test_a_mapper_that_asks_for_time_gets_it(world: World, guarded: MapperAdmin, log: Log, kind: str) -> None:
    people = people_of(world, guarded, 3)
    guarded.add_fault(kind, count=1, seconds=2)
    process = run(world, guarded.base_url, **{RESOLVE + "CONCURRENCY": "1"}, **PATIENT)
    world.until(process.ready)
    publish(world, [cut(people, number) for number in range(1, 4)])
    resolved(world, 3)
    times = [datetime.fromisoformat(request["at"]) for request in log.of(PATHS["spar1"])]
    assert len(times) == 4
    assert (times[1] - times[0]).total_seconds() >= 2  # nobody of this replica asks meanwhile
    [row] = world.sql("resolution", "SELECT code FROM ops_attempts WHERE outcome = 'NotSent'")
    assert row.code == f"HTTP_{kind[-3:]}"


def test_requests_keep_to_their_rate(world: World, guarded: MapperAdmin, log: Log) -> None:
    people = people_of(world, guarded, 3)
    env = {**PATIENT, RESOLVE + "CALLS_PER_SECOND": "4", RESOLVE + "LEASE_SECONDS": "60", RESOLVE + "MAX_ITEMS": "100"}
    process = run(world, guarded.base_url, **env)
    world.until(process.ready)
    began = time.monotonic()
    publish(world, [cut(people * 50, number) for number in range(1, 6)])  # two requests each
    resolved(world, 5)
    assert len(log.of(PATHS["spar1"])) == 10
    assert time.monotonic() - began >= 2.2  # the tenth is sent 2.25 s after the first


def test_a_mapper_out_of_order_is_left_alone_until_one_request_finds_it_well(
    world: World, guarded: MapperAdmin, log: Log
) -> None:
    people = people_of(world, guarded, 3)
    fault = guarded.add_fault("error_500")
    breaker = {RESOLVE + "BREAKER_FAILURES": "3", RESOLVE + "CONCURRENCY": "2", RESOLVE + "MAX_ATTEMPTS": "100"}
    quick = {RESOLVE + "BACKOFF_FIRST_SECONDS": "0.01", RESOLVE + "BACKOFF_MAX_SECONDS": "0.02"}
    process = run(world, guarded.base_url, **PATIENT, **breaker, **quick, **{RESOLVE + "BREAKER_SECONDS": "600"})
    publish(world, [cut(people, number) for number in range(1, 11)])
    world.until(lambda: process.metric("almoner_breaker_open", kind="resolve") == 1)
    world.until(lambda: not world.sql("resolution", "SELECT 1 FROM ops_work WHERE state = 'CLAIMED'"))
    asked = len(log.of(PATHS["spar1"]))
    assert 3 <= asked <= 4  # the second call was under way
    publish(world, [cut(people, number) for number in range(11, 16)])
    world.until(lambda: len(world.sql("resolution", "SELECT 1 FROM ops_work")) == 15)
    time.sleep(1.5)  # time enough for hundreds of requests
    assert len(log.of(PATHS["spar1"])) == asked
    [row] = world.sql("resolution", "SELECT sum(attempts_started) AS n FROM ops_work")
    assert row.n == asked  # and what was not let through is no attempt
    process.kill()

    process = run(world, guarded.base_url, **PATIENT, **breaker, **quick, **{RESOLVE + "BREAKER_SECONDS": "0.5"})
    world.until(lambda: process.metric("almoner_breaker_open", kind="resolve") == 1)
    world.until(lambda: len(log.of(PATHS["spar1"])) > asked + 5)  # one by one it is tried
    guarded.delete_faults(fault)
    assert len(resolved(world, 15)) == 15
    world.until(lambda: idle(world))
    assert process.metric("almoner_breaker_open", kind="resolve") == 0
    assert process.logged("the breaker is open")
    assert process.logged("the breaker is closed")
