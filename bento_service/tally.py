"""What one Scorer batch did; counted by metrics.py, filled by the scorer, and so in a room of its own without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields


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

    def add(self, other: Tally) -> None:
        """Count what another one has, too."""
        for counted in fields(self):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))
