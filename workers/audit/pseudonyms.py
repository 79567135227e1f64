"""Users in the audit tables: a keyed hash instead of the id, everywhere that the id could stand.

Pure. The key is `settings.audit.user_key`; who does not have it cannot tell whose rows they are, nor try ids out.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping

from workers.erased import user_key

_STANDARD = str.maketrans("-_", "+/")  # URL-safe base64 to the one that binascii reads

SHORT = 4
"""Ids under so many characters turn up in any base64 by chance, so they are not looked for there."""


class Pseudonyms:
    """Turns user ids into `user_key`, and whatever spells a user id into something that does not."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise ValueError("ICG_AUDIT_USER_KEY is empty: user ids would be hashed without a key")
        self._secret = secret

    def key(self, user_id: str) -> str:
        """HMAC-SHA256 of the id, 64 hex digits."""
        return user_key(self._secret, user_id)

    def veil(self, values: Mapping[str, str | None], user_id: str) -> dict[str, str | None]:
        """The values by name; instead of one that spells the user id in plain, hex or base64, its own key.

        Platforms like to build ids from ids (`u17-imp-3`). The same value gives the same key, so a click still
        finds its impression and a repeated event is still seen as one.
        """
        # Nearly always none does, and one look at all of them is four times as fast as one at each.
        if not spells(".".join(filter(None, values.values())), user_id):
            return dict(values)
        return {
            name: "key:" + self.key(value) if value is not None and spells(value, user_id) else value
            for name, value in values.items()
        }

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
    # In base64 the id takes four characters for three bytes: what is shorter cannot hold it.
    return any(raw in _unpacked(piece) for piece in value.split(".") if 3 * len(piece) >= 4 * len(raw))


def _unpacked(piece: str) -> bytes:
    try:
        return binascii.a2b_base64(piece.translate(_STANDARD) + "=" * (-len(piece) % 4))
    except (binascii.Error, ValueError):
        return b""
