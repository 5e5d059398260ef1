"""One sequence of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bento_service.scorer.prefixes import Prefix


@dataclass(frozen=True, slots=True)
class Row:
    """ids: what is to be computed · type_ids: None when all are 0 · prefix: what stands before ids, computed once for several rows."""

    ids: npt.NDArray[np.uint32]
    type_ids: npt.NDArray[np.uint8] | None
    prefix: Prefix | None = None
