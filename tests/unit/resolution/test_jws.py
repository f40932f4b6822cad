"""Which keys sign, and what a signature holds against."""

import json
from typing import Any

import pytest
from joserfc import jws as wire
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from services.resolution import jws

pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
RSA = RSAKey.generate_key(2048)
EC = ECKey.generate_key("P-256")
OKP = OKPKey.generate_key("Ed25519")
BODY = jws.canonical({"b": [1, "\u00e9"], "a": None})


def text(key: Any, *, private: bool = True, **more: Any) -> str:
    return json.dumps({**key.as_dict(private=private), **more})


@pytest.mark.parametrize(
    ("key", "more", "algorithm"),
    [
        (RSA, {}, "RS256"),
        (RSA, {"alg": "PS256"}, "PS256"),
        (EC, {"alg": "ES256"}, "ES256"),
        (EC, {}, "ES256"),
        (OKP, {}, "EdDSA"),
    ],
)
def test_what_a_key_signs_its_public_half_verifies(key: Any, more: dict[str, Any], algorithm: str) -> None:
    private = jws.read_key(text(key, kid="k1", **more), private=True)
    public = jws.read_key(text(key, private=False, **more), private=False)
    signature = jws.sign(BODY, private)
    header, payload, _ = signature.split(".")
    assert payload == ""
    assert wire.extract_compact(f"{header}.e30.e30".encode()).protected == {"alg": algorithm, "kid": "k1"}
    assert jws.is_detached(signature)
    assert jws.verified(signature, BODY, public)
    assert not jws.verified(signature, BODY + b" ", public)
    other = type(key).generate_key(2048 if key is RSA else "P-256" if key is EC else "Ed25519")
    assert not jws.verified(signature, BODY, jws.read_key(text(other, private=False, **more), private=False))


def test_canonical_json_is_sorted_compact_utf_8() -> None:
    assert BODY.decode() == '{"a":null,"b":[1,"\u00e9"]}'


@pytest.mark.parametrize(
    ("given_", "fault"),
    [
        ("", "is no JWK"),
        ("5", "is no JWK"),
        ('{"kty":"RSA"}', "is no JWK"),
        (text(OctKey.generate_key(256)), "is no key of RSA"),
        (text(ECKey.generate_key("P-384")), "is no key of RSA"),
        (text(OKPKey.generate_key("X25519")), "is no key of RSA"),
        (text(RSA, private=False), "is no private key"),
        (text(RSA, alg="HS256"), "has an alg"),
        (text(RSA, alg="none"), "has an alg"),
        (text(EC, alg="RS256"), "has an alg"),
    ],
    ids=[
        "empty",
        "number",
        "empty RSA",
        "oct",
        "P-384",
        "X25519",
        "public",
        "HS256",
        "none",
        "EC for RS256",
    ],  # keys are new each time
)
def test_what_is_no_key_to_sign_with(given_: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        jws.read_key(given_, private=True)
    assert RSA.as_dict(private=True)["n"] not in str(caught.value)  # type: ignore[operator]


def test_a_private_key_is_not_for_verifying_and_a_short_one_for_nothing() -> None:
    with pytest.raises(ValueError, match="is a private key"):
        jws.read_key(text(RSA), private=False)
    with pytest.raises(ValueError, match="less than 2048 bits"):
        jws.read_key(text(RSAKey.generate_key(1024, auto_kid=False)), private=True)


def test_nobody_signs_with_none_or_with_the_public_key_as_a_secret() -> None:
    public = jws.read_key(text(RSA, private=False), private=False)
    secret = OctKey.import_key(json.dumps(RSA.as_dict(private=False)))
    hs256 = wire.detach_content(wire.serialize_compact({"alg": "HS256"}, BODY, secret, algorithms=["HS256"]))
    none = wire.detach_content(wire.serialize_compact({"alg": "none"}, BODY, None, algorithms=["none"]))
    ps256 = jws.sign(BODY, jws.read_key(text(RSA, alg="PS256"), private=True))
    whole = wire.serialize_compact({"alg": "RS256"}, BODY, RSA, algorithms=["RS256"])
    for forged in (hs256, none, ps256, "", "..", "a.b.c", "\u00e9..x"):
        assert not jws.verified(forged, BODY, public), forged
    assert [jws.is_detached(one) for one in (hs256, none, whole, "..", "x", None, 5)] == [False] * 7
