"""Personal data never travels or rests in clear: one blob per batch, compressed and then sealed (AES-GCM).

Keys are named, the first seals, all open, so keys rotate. The associated data binds a blob to its place (type, envelope,
batch, part): a blob copied elsewhere does not open. Account tokens are an HMAC, equal for equal accounts and nothing else.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeAlias

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic_core import from_json, to_json

from libs.common.contracts.base import Sealed
from libs.common.errors import Malformed

MAX_CLEAR_BYTES = 8_000_000
_NONCE_BYTES = 12


class Sealer:
    """Seals and opens with `keys` ("name:base64 of 32 bytes", comma between; the first one seals)."""

    def __init__(self, keys: str, token_key: str) -> None:
        self._keys = {name: AESGCM(key) for name, key in parse_keys(keys).items()}
        self._current = next(iter(self._keys))
        self._token_key = token_key.encode()

    def seal(self, content: Mapping[str, Any], *place: object) -> Sealed:
        """Seal a JSON-able mapping; `place` is its type, envelope, batch and part."""
        return Sealed(key_id=self._current, data=base64.b64encode(self._encrypt(to_json(content), place)).decode())

    def seal_bytes(self, content: bytes, *place: object) -> bytes:
        """Seal bytes for a column of a table: the key's name, a NUL, nonce and ciphertext."""
        return self._current.encode() + b"\x00" + self._encrypt(content, place)

    def open_bytes(self, blob: bytes, *place: object) -> bytes:
        """What `seal_bytes` sealed. Raises Malformed as `open` does."""
        name, _, sealed = blob.partition(b"\x00")
        return self._decrypt(name.decode("utf-8", "replace"), sealed, place)

    def open(self, sealed: Sealed, *place: object) -> dict[str, Any]:
        """The mapping. Raises Malformed where the key is unknown or the blob was altered or comes from another place."""
        try:
            blob = base64.b64decode(sealed.data, validate=True)
            content = from_json(self._decrypt(sealed.key_id, blob, place), cache_strings="keys")
        except ValueError as error:
            raise Malformed("BROKEN_SEAL", f"does not open: {type(error).__name__}", "/sealed") from None
        if not isinstance(content, dict):
            raise Malformed("BROKEN_SEAL", "does not hold an object", "/sealed")
        return content

    def open_people(self, sealed: Sealed, *place: object) -> "People":
        """What is known of people. Raises Malformed as `open` does, and for what are no columns of one length."""
        columns = self.open(sealed, *place)
        lists = all(isinstance(column, list) for column in columns.values())
        if not lists or WHO not in columns or len({len(column) for column in columns.values()}) != 1:
            raise Malformed("BROKEN_SEAL", f"does not hold columns of one length, {WHO} among them", "/sealed")
        return columns

    def _encrypt(self, clear: bytes, place: tuple[object, ...]) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._keys[self._current].encrypt(nonce, zstandard.compress(clear, level=1), _associated(place))

    def _decrypt(self, key_id: str, blob: bytes, place: tuple[object, ...]) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            raise Malformed("UNKNOWN_SEAL_KEY", f"sealed with key {key_id!r}, which is not configured", "/sealed")
        try:
            compressed = key.decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], _associated(place))
            return zstandard.decompress(compressed, max_output_size=MAX_CLEAR_BYTES)
        except (InvalidTag, ValueError, zstandard.ZstdError) as error:
            raise Malformed("BROKEN_SEAL", f"does not open: {type(error).__name__}", "/sealed") from None

    def token(self, account: str) -> str:
        """A name for an account which tells nothing of it."""
        return hmac.new(self._token_key, account.encode(), hashlib.sha256).hexdigest()[:32]


# What is known of people, by column, as it is sealed (a thousand are read and written as a few lists, ADR 17): `disbursement_id`,
# and fields of theirs; None where somebody has it not.
People: TypeAlias = dict[str, list[Any]]
WHO = "disbursement_id"


def by_column(people: Mapping[str, Mapping[str, Any]]) -> People:
    """Disbursement id -> fields, as columns."""
    fields = dict.fromkeys(chain.from_iterable(people.values()))
    return {WHO: list(people), **{name: [one.get(name) for one in people.values()] for name in fields}}


def by_person(people: People) -> dict[str, dict[str, Any]]:
    """The same, back again."""
    names = [name for name in people if name != WHO]
    rows = zip(people[WHO], *(people[name] for name in names), strict=True)
    return {who: {name: v for name, v in zip(names, values, strict=True) if v is not None} for who, *values in rows}


def pick(people: People, ids: list[str]) -> People:
    """These people, in this order; None for all of somebody who is not there."""
    if people[WHO] == ids:
        return people
    index = {who: number for number, who in enumerate(people[WHO])}
    chosen = [index.get(one) for one in ids]
    found = {name: [None if n is None else column[n] for n in chosen] for name, column in people.items()}
    return {**found, WHO: ids}


def parse_keys(text: str) -> dict[str, bytes]:
    """name -> 32 bytes, the sealing one first. Raises ValueError with the rule, never with a key."""
    pairs = [pair.strip().partition(":") for pair in text.split(",") if pair.strip()]
    try:
        keys = {name: base64.b64decode(key, validate=True) for name, _, key in pairs}
    except ValueError:
        raise ValueError("a key is not base64") from None
    if not keys or len(keys) < len(pairs) or not all(0 < len(name) <= 40 and len(key) == 32 for name, key in keys.items()):
        raise ValueError("must be name:base64 of 32 bytes, comma between, each name once and of up to 40 characters")
    return keys


def masked(value: str) -> str:
    """The tail of an account or phone that people may see: "DE02…4711" -> "…4711"."""
    return "…" + value[-4:] if len(value) > 6 else "…"


def _associated(place: tuple[object, ...]) -> bytes:
    return "\x1f".join(map(str, place)).encode()
