"""Detached JWS (`header..signature`) over JSON in one form: sorted keys, no spaces, UTF-8. Both sides write it the same way."""

import json
import warnings
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

# Never none, never a shared secret (HS*): who may verify must not be able to sign.
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
_RSA_BITS = 2048

Key = RSAKey | ECKey | OKPKey
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)  # a newer name of the same; the wire has this one


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_key(text: str, *, private: bool) -> Key:
    """A JWK of one of the ALGORITHMS. Raises ValueError, which says nothing of the key."""
    try:
        key = import_key(json.loads(text))
    except (ValueError, TypeError, KeyError, JoseError):
        raise ValueError("is no JWK") from None
    if isinstance(key, RSAKey):
        if key.raw_value.key_size < _RSA_BITS:
            raise ValueError(f"is an RSA key of less than {_RSA_BITS} bits")
    elif not (
        (isinstance(key, ECKey) and key.curve_name == "P-256") or (isinstance(key, OKPKey) and key.curve_name == "Ed25519")
    ):
        raise ValueError("is no key of RSA, P-256 or Ed25519")
    if key.is_private is not private:
        raise ValueError("is no private key" if private else "is a private key, where the public one belongs")
    if algorithm(key) not in _fitting(key):
        raise ValueError(f"has an alg which is none of {', '.join(_fitting(key))}")
    return key


def algorithm(key: Key) -> str:
    """What the key says in `alg`, else the usual one of its type."""
    return str(key.get("alg") or _fitting(key)[0])


def _fitting(key: Key) -> tuple[str, ...]:
    return ("RS256", "PS256") if isinstance(key, RSAKey) else ("ES256",) if isinstance(key, ECKey) else ("EdDSA",)


def sign(body: bytes, key: Key) -> str:
    """`body` is canonical already."""
    header = {"alg": algorithm(key)} | ({"kid": key.kid} if key.kid else {})
    return jws.detach_content(jws.serialize_compact(header, body, key, algorithms=list(ALGORITHMS)))


def is_detached(signature: object) -> bool:
    """Whether it has the form of one, by one of the ALGORITHMS."""
    if not isinstance(signature, str) or not signature.isascii() or signature.count(".") != 2:
        return False
    header, payload, value = signature.split(".")
    try:
        return (
            not payload and bool(value) and jws.extract_compact(f"{header}.e30.{value}".encode()).protected["alg"] in ALGORITHMS
        )
    except (JoseError, ValueError, KeyError, TypeError):
        return False


def verified(signature: str, body: bytes, key: Key) -> bool:
    """Whether this key made this signature over this canonical body, by the algorithm that is the key's own."""
    try:
        jws.deserialize_compact(signature, key, algorithms=[algorithm(key)], payload=body)
    except (JoseError, ValueError, TypeError, KeyError):
        return False
    return True
