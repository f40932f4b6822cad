"""Personal data never travels or rests in clear: one blob per batch, compressed and then sealed (AES-GCM).

Keys are named, the first seals, all open, so keys rotate. The associated data binds a blob to its place (type, envelope,
batch, part): a blob copied elsewhere does not open. Account tokens are an HMAC, equal for equal accounts and nothing else.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from typing import Any

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
        pairs = [pair.strip().partition(":") for pair in keys.split(",") if pair.strip()]
        self._keys = {name: AESGCM(base64.b64decode(key)) for name, _, key in pairs}
        self._current = pairs[0][0]
        self._token_key = token_key.encode()

    def seal(self, content: Mapping[str, Any], *place: object) -> Sealed:
        """Seal a JSON-able mapping; `place` is its type, envelope, batch and part."""
        nonce = os.urandom(_NONCE_BYTES)
        clear = zstandard.compress(to_json(content), level=1)
        blob = nonce + self._keys[self._current].encrypt(nonce, clear, _associated(place))
        return Sealed(key_id=self._current, data=base64.b64encode(blob).decode())

    def open(self, sealed: Sealed, *place: object) -> dict[str, Any]:
        """The mapping. Raises Malformed where the key is unknown or the blob was altered or comes from another place."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise Malformed("UNKNOWN_SEAL_KEY", f"sealed with key {sealed.key_id!r}, which is not configured", "/sealed")
        try:
            blob = base64.b64decode(sealed.data, validate=True)
            clear = key.decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], _associated(place))
            content = from_json(zstandard.decompress(clear, max_output_size=MAX_CLEAR_BYTES))
        except (InvalidTag, ValueError, zstandard.ZstdError) as error:
            raise Malformed("BROKEN_SEAL", f"does not open: {type(error).__name__}", "/sealed") from None
        if not isinstance(content, dict):
            raise Malformed("BROKEN_SEAL", "does not hold an object", "/sealed")
        return content

    def token(self, account: str) -> str:
        """A name for an account which tells nothing of it."""
        return hmac.new(self._token_key, account.encode(), hashlib.sha256).hexdigest()[:32]


def masked(value: str) -> str:
    """The tail of an account or phone that people may see: "DE02…4711" -> "…4711"."""
    return "…" + value[-4:] if len(value) > 6 else "…"


def _associated(place: tuple[object, ...]) -> bytes:
    return "\x1f".join(map(str, place)).encode()
