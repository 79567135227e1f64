"""Users in the audit tables: a keyed hash instead of the id, everywhere that the id could stand.

Pure. The key is `settings.audit.user_key`; who does not have it cannot tell whose rows they are, nor try ids out.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re

SHORT = 4
"""Ids under so many characters turn up in any base64 by chance, so they are not looked for there."""


class Pseudonyms:
    """Turns user ids into `user_key`, and whatever spells a user id into something that does not."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("ICG_AUDIT_USER_KEY is empty: user ids would be hashed without a key")
        self._secret = secret.encode()

    def key(self, user_id: str) -> str:
        """HMAC-SHA256 of the id, 64 hex digits."""
        return hmac.digest(self._secret, user_id.encode(), "sha256").hex()

    def veil(self, value: str | None, user_id: str) -> str | None:
        """The value, or its own key where it spells the user id in plain, hex or base64.

        Platforms like to build ids from ids (`u17-imp-3`). The same value gives the same key, so a click still
        finds its impression and a repeated event is still seen as one.
        """
        if value is None or not spells(value, user_id):
            return value
        return "key:" + self.key(value)

    def redact(self, text: str, user_id: str) -> str:
        """A sentence without the user id; a short id only where it is a word of its own."""
        if len(user_id) >= SHORT:
            return text.replace(user_id, "…")
        return re.sub(rf"(?<![A-Za-z0-9]){re.escape(user_id)}(?![A-Za-z0-9])", "…", text) if user_id else text


def spells(value: str, user_id: str) -> bool:
    """Whether the id can be read from the value: in plain, as hex, or inside dot-separated base64 (a token)."""
    if user_id in value:
        return True
    if len(user_id) < SHORT:
        return False
    raw = user_id.encode()
    if raw.hex() in value.lower():
        return True
    return any(raw in piece for piece in _unpacked(value))


def _unpacked(value: str) -> list[bytes]:
    pieces = []
    for piece in value.split("."):
        # Under 8 characters nothing but noise decodes.
        if len(piece) < 8:
            continue
        try:
            pieces.append(base64.b64decode(piece + "=" * (-len(piece) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError):
            continue
    return pieces
