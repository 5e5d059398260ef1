"""What one Scorer batch did; counted by metrics.py, filled by the scorer, and so in a room of its own without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """What one batch did, for metrics. Times in seconds."""

    pairs: int = 0
    late_pairs: int = 0
    failed_pairs: int = 0
    real_tokens: int = 0
    computed_tokens: int = 0
    forwards: int = 0
    memory_retries: int = 0
    forward_seconds: float = 0.0
