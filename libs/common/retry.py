"""Exponential back-off with jitter (the AWS architecture blog's "equal jitter"): spreads those who wait together."""

import random


def backoff_seconds(attempt: int, longest_seconds: float, first_seconds: float = 0.2) -> float:
    """How long to wait after the nth failure (1, 2, …): the upper half of first·2^(n-1), at most `longest_seconds`."""
    ceiling = min(longest_seconds, first_seconds * 2 ** min(attempt - 1, 30))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 — spreads load, guards nothing
