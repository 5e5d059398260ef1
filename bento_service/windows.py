"""One pair's score from those of its windows: the best counts."""

from __future__ import annotations

from dataclasses import dataclass

from bento_service.pairs import KnownScore, PairScore
from bento_service.tokenizer import TokenizedPair


class Windows:
    """The windows of one pair on their way through the Scorers; most pairs have one. failed: one has no score, so the pair has none."""

    def __init__(self, pair: TokenizedPair) -> None:
        self._pair = pair
        self._scores: dict[int, PairScore] = {}
        self.failed = False

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come: every window has its score, or one has none."""
        return self.failed or len(self._scores) == len(self._pair.windows)

    @property
    def known(self) -> KnownScore:
        """The pair's score, of complete windows that have not failed; of equal windows the first counts."""
        best = max(sorted(self._scores), key=lambda number: self._scores[number].raw)
        span = self._pair.spans[best] if self._pair.spans else None
        return KnownScore(self._scores[best].raw, self._pair.token_count, self._pair.truncated, span)

    @property
    def fingerprint(self) -> str | None:
        """The model that gave the score; None where several did, one window each."""
        prints = {score.fingerprint for score in self._scores.values()}
        return prints.pop().hex() if len(prints) == 1 else None

    def parts(self) -> list[Window]:
        """List the windows, in order."""
        return [Window(self, number) for number in range(len(self._pair.windows))]

    def add(self, number: int, score: PairScore) -> None:
        """Take a window's score; see Window.add."""
        self._scores[number] = score
        self.failed |= score.failed


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a pair."""

    of: Windows
    number: int

    def add(self, score: PairScore) -> Windows | None:
        """Take its score; the pair's windows if that makes them complete."""
        if self.of.complete:
            return None
        self.of.add(self.number, score)
        return self.of if self.of.complete else None
