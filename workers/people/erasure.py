"""Forgetting people in Feast and in the tables of imported embeddings."""

from __future__ import annotations

from workers import embeddings
from workers.features import Features
from workers.forgetting import Forget
from workers.storage import ObjectStore


def forgetter(store: ObjectStore, features: Features) -> Forget:
    """The tables first, so that no segment job that begins now finds the person; then all rows in Feast."""

    def forget(user_id: str) -> dict[str, int]:
        removed = {"users/embeddings": embeddings.remove(store, user_id)}
        features.erase({"user_id": user_id})
        return removed

    return forget
