"""What a training came to: a table of rules over what its files say. The first rule that applies is the verdict."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from launcher.rundir.picture import HeldOut, Point, Score, Verdict

FLAT = 0.02
"""A loss that fell by less than this share of itself has not fallen."""
RISE = 1.05
"""A held-out loss of this many times its smallest value has risen again."""
LITTLE = 0.05
"""A held-out loss that fell by less than this share of itself has hardly fallen."""
FEW = 10
"""Fewer held-out records than these show little."""
FEW_STEPS = 5
"""Fewer steps than these show no trend."""
SHARED = 0.1
"""Share of the held-out records that may be training records too."""
MANY = 0.5
"""Share of answers that is no accident."""


class Answer(NamedTuple):
    """A held-out record and what the trained model answered."""

    task: str | None
    expected: str
    given: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    ended: bool
    """The training is over, and has succeeded."""
    curve: Sequence[Point]
    held_out: Sequence[HeldOut]
    scores: Sequence[Score]
    after: Mapping[str, Any]
    """Scores of the evaluation after the training, as result.json has them."""
    data: Mapping[str, Any]
    """What the data said of data.eval; empty: there is none."""
    answers: Sequence[Answer]
    learning_rate: float | None
    """The highest of the run."""
    failure: str
    """Message of the failure, if the run failed."""
    adapter_step: int | None = None
    """The step that the adapter is of; None: not known, or there is none yet."""

    @cached_property
    def of_adapter(self) -> list[HeldOut]:
        """The losses up to the step that the adapter is of: what the training did after it is not kept."""
        last = math.inf if self.adapter_step is None else self.adapter_step
        return [point for point in self.held_out if point.step <= last]

    @property
    def went_back(self) -> bool:
        """Whether the adapter is of an earlier step than the last."""
        return self.adapter_step is not None and bool(self.curve) and self.adapter_step < self.curve[-1].step

    @cached_property
    def measured(self) -> list[HeldOut]:
        return over_same_records(self.of_adapter)

    @cached_property
    def compared(self) -> list[HeldOut]:
        """What the verdict names: the losses over all held-out records if there are two, else those over a part."""
        whole = [point for point in self.of_adapter if point.records is None]
        return whole if len(whole) > 1 else self.measured

    @cached_property
    def ends(self) -> tuple[float, float] | None:
        """The training loss at the begin and at the end, each a mean over a tenth of the steps; None: too few."""
        losses = [point.loss for point in self.curve]
        if len(losses) < FEW_STEPS:
            return None
        part = max(1, len(losses) // 10)
        return sum(losses[:part]) / part, sum(losses[-part:]) / part

    @property
    def records(self) -> int:
        """Held-out records that were measured."""
        return int(self.after.get("records") or self.data.get("measured") or self.data.get("records") or 0)


def over_same_records(held_out: Sequence[HeldOut]) -> list[HeldOut]:
    """The longest series of held-out losses over the same records: some may be over a part of them."""
    sizes = Counter(point.records for point in held_out)
    size = max(sizes, key=lambda one: (sizes[one], one or math.inf), default=None)
    return [point for point in held_out if point.records == size]


Finding = tuple[str, str]
"""(line without the name of the rule, reason)."""


@dataclass(frozen=True)
class Rule:
    name: str
    """As in `learned: 4.72 to 1.69 on the held-out records`."""
    tone: str
    applies: Callable[[Facts], Finding | None]
    at_the_end: bool = True
    """Whether only a training that is over can be judged by it."""


def judge(facts: Facts) -> Verdict | None:
    """The verdict; None: the training is not over, and nothing is wrong so far."""
    for rule in RULES:
        found = rule.applies(facts) if facts.ended or not rule.at_the_end else None
        if found is not None:
            line, reason = found
            return Verdict(rule=rule.name, tone=rule.tone, line=f"{rule.name}{line}", reason=reason)
    return None


def _diverged(facts: Facts) -> Finding | None:
    if "training has diverged" in facts.failure:
        return f": {facts.failure.partition(': training')[0]}", "set a lower train.learning_rate"
    if facts.ends is None:
        return None
    begin, end = facts.ends
    if _is_blown_up([point.loss for point in facts.curve], end):
        begin = facts.curve[0].loss
    elif end < 1.2 * begin or end - begin < 0.1:
        return None
    return f": the training loss rose from {begin:.2f} to {end:.2f}", (
        f"the learning rate of {facts.learning_rate or 0:.1e} is too large for this model and batch; try a tenth"
    )


def _is_blown_up(losses: Sequence[float], end: float) -> bool:
    """Whether the first steps ruined the model, after which a loss far above the first one may even fall.

    Losses of single steps differ, so the first must lie outside of what those of the second half spread over.
    """
    half = losses[len(losses) // 2 :]
    middle = statistics.median(half)
    spread = statistics.median(abs(loss - middle) for loss in half)
    return end >= 2 * losses[0] and end - losses[0] >= 1.0 and losses[0] < middle - 3 * spread


def _flat(facts: Facts) -> Finding | None:
    if facts.ends is None or _fall(*facts.ends) >= FLAT:
        return None
    held_out = facts.measured
    if len(held_out) > 1 and _fall(held_out[0].loss, held_out[-1].loss) >= FLAT:
        return None
    begin, end = facts.ends
    return f": the training loss is flat ({begin:.2f} to {end:.2f})", (
        f"is train.learning_rate too small ({facts.learning_rate or 0:.1e})? "
        "or does the model know these records already?"
    )


def _overlap(facts: Facts) -> Finding | None:
    shared, records = int(facts.data.get("in_training") or 0), int(facts.data.get("measured") or 0)
    if not records or shared < SHARED * records:
        return None
    return f": {shared} of {records} held-out records are training records too", (
        "scores on them show memory, not learning; keep records in data.eval that data.train does not have"
    )


def _answers(facts: Facts) -> Finding | None:
    total = len(facts.answers) or int(facts.after.get("records") or 0)
    empty = sum(not answer.given.strip() for answer in facts.answers if answer.expected.strip())
    endless = int(facts.after.get("unended") or 0)
    if total and empty >= MANY * total:
        return f" are empty: {empty} of {total}", (
            "the model ends its answers at once; look at the records (`zlaunch data show`) and at the chat template"
        )
    if total and endless >= MANY * total:
        return f" never end: {endless} of {total} are longer than eval.max_new_tokens, and those expected are not", (
            "the model has not learned the token that ends an answer; `zlaunch data show` says which tokens carry loss"
        )
    return None


def _overfits(facts: Facts) -> Finding | None:
    if facts.went_back and _learned(facts) is not None:
        return None  # what came after the best step is not in the adapter
    points = over_same_records(facts.held_out)
    trained = facts.ends[1] if facts.ends else facts.curve[-1].loss if facts.curve else None
    if not points or trained is None:
        return None
    best, last = min(points, key=_loss_of), points[-1]
    if len(points) == 1:
        is_of_the_end = not facts.curve or last.step >= 0.8 * facts.curve[-1].step
        if not is_of_the_end or last.loss <= 3 * trained or last.loss - trained <= 1.0:
            return None
        return f": training loss {trained:.2f}, held-out loss {last.loss:.2f}", (
            "it knows its records by heart and not others; train fewer steps, or with more records"
        )
    rises = last.loss >= RISE * best.loss and last.loss - best.loss >= 0.02
    if not rises or (facts.ends is not None and facts.ends[1] >= facts.ends[0]):
        return None
    return (
        f" since step {best.step}: held-out loss {best.loss:.2f} to {last.loss:.2f}, training loss {trained:.2f}",
        f"the adapter is that of step {facts.adapter_step}; more records would let it learn for longer"
        if facts.went_back
        else f"it learns its records by heart; train about {max(best.step, 1)} steps, or with more records",
    )


def _majority(facts: Facts) -> Finding | None:
    """Of the tasks that are classifications: their answers are a closed set, so one of them can be guessed always."""
    tasks = {score.task for score in facts.scores if score.metric == "macro_f1"}
    tasks = (tasks - {None}) or tasks  # None: records without a task, or all of them together
    right = {score.task: score.after for score in facts.scores if score.metric == "accuracy"}
    found = []
    for task in sorted(tasks, key=str):
        answers = [answer for answer in facts.answers if task in (None, answer.task)]
        if len(answers) < FEW or task not in right:
            return None
        label, count = Counter(answer.expected.strip() for answer in answers).most_common(1)[0]
        share = count / len(answers)
        if share == 1.0 or right[task] > share + 0.5 * math.sqrt(share * (1 - share) / len(answers)):
            return None
        found.append(
            f"{f'{task}: ' if task else ''}{right[task]:.0%} right, and {share:.0%} by always saying {label!r}"
        )
    if not found:
        return None
    return f": {'; '.join(found)}", "train longer, or balance the answers in data.train"


def _too_few(facts: Facts) -> Finding | None:
    trained = f"; the training loss went from {facts.ends[0]:.2f} to {facts.ends[1]:.2f}" if facts.ends else ""
    if not facts.data and not facts.held_out:
        return f": there are none{trained}", "name records that are not trained on as data.eval"
    if facts.records and facts.records < FEW:
        change = _change(facts.compared)
        return f": {facts.records}{change}", f"give data.eval at least {FEW} records, better some hundred"
    return None


def _learned(facts: Facts) -> Finding | None:
    points = facts.compared
    if len(points) < 2 or _fall(points[0].loss, points[-1].loss) < LITTLE:
        return None
    if facts.went_back:
        return _change(points), f"the adapter is that of step {facts.adapter_step}, the best one of the training"
    series = facts.measured  # over a part of the records, but more often
    falling = series[-1].loss <= min(point.loss for point in series)
    more = "the held-out loss was still falling at the end: training longer may help" if falling else ""
    return _change(points), more or f"the held-out loss was smallest after step {min(series, key=_loss_of).step}"


def _little(facts: Facts) -> Finding | None:
    points = facts.compared
    if len(points) < 2:
        return None
    return _change(points), "train longer, or with a higher train.learning_rate"


def _unmeasured(facts: Facts) -> Finding | None:
    points = facts.measured
    shown = f": held-out loss {points[-1].loss:.2f} after the training, and none before it" if points else ""
    return shown or ": no held-out loss was measured", "set eval.before: true, or leave eval.every at auto"


def _change(points: Sequence[HeldOut]) -> str:
    if len(points) < 2:
        return ""
    part = f"{points[0].records} of " if points[0].records else ""
    return f": {points[0].loss:.2f} to {points[-1].loss:.2f} on {part}the held-out records"


def _loss_of(point: HeldOut) -> float:
    return point.loss


def _fall(begin: float, end: float) -> float:
    """By how much of itself a loss fell."""
    return (begin - end) / begin if begin > 0 else 0.0


RULES: tuple[Rule, ...] = (
    Rule("diverged", "bad", _diverged, at_the_end=False),
    Rule("not learning", "bad", _flat),
    Rule("training and held-out data overlap", "warning", _overlap),
    Rule("answers", "bad", _answers),
    Rule("overfits", "bad", _overfits, at_the_end=False),
    Rule("no better than the majority class", "bad", _majority),
    Rule("too few held-out records to judge", "unknown", _too_few),
    Rule("learned", "good", _learned),
    Rule("learned little", "warning", _little),
    Rule("not judged", "unknown", _unmeasured),
)
"""In order of precedence: what would make a later judgment worthless comes first."""
