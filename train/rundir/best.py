"""Which step of a run measured best on data.eval, and whether to stop early. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Best:
    """The best measurement of a run so far; a checkpoint holds it."""

    metric: str
    """What was measured: `loss`, or a score of answers."""
    records: int
    """On how many records of data.eval."""
    data: str
    """Fingerprint of data.eval."""
    step: int | None = None
    """None: nothing was measured that is a number."""
    value: float | None = None
    waited: int = 0
    """Measurements since the last that was better than all before it by early_stopping_min_delta."""

    def after(self, step: int, value: float, min_delta: float) -> Best:
        """With one more measurement. A loss is best where it is smallest, a score where it is largest.

        As transformers' EarlyStoppingCallback counts: every better value is the best one, and one that is better by
        more than `min_delta` ends the wait.
        """
        if not math.isfinite(value):
            return replace(self, waited=self.waited + 1)
        gain = math.inf if self.value is None else value - self.value
        gain = -gain if self.metric == "loss" and self.value is not None else gain
        waited = 0 if gain > min_delta else self.waited + 1
        return replace(self, step=step, value=value, waited=waited) if gain > 0 else replace(self, waited=waited)

    def comparable(self, other: Best) -> bool:
        """Whether values of both can be compared: of the same metric, on the same records.

        The loss of a resumed run is measured on as many records as before.
        """
        same = self.metric == "loss" or self.records == other.records
        return same and (self.metric, self.data) == (other.metric, other.data)
