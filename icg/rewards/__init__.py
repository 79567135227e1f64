"""Rewards: aesthetic, relevance, preference, one file each; `Judge` loads and asks them all."""

from __future__ import annotations

from icg.rewards.judge import Judge

__all__ = ["Judge"]
