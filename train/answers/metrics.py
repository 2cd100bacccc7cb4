"""Metrics over (expected, given) pairs of answers, overall and per task.

The metrics depend on the kind of the task. Its name tells the kind, else its expected answers do:

classification  accuracy, macro_f1              a small closed set of answers
qa              exact_match                      short answers
translation     bleu, rouge_l                    BLEU as sacrebleu's 0 to 100, Chinese by characters
text            rouge_1, rouge_2, rouge_l, bleu  everything longer; ROUGE's F1 from 0 to 1 over jieba's words

`accuracy` and `exact_match` are one measure, under the name that people expect for each kind. comparison.py says which
answers are the same.
"""

from __future__ import annotations

import logging
import statistics
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from train.answers.comparison import normalize
from train.errors import UserError

Pairs = Sequence[tuple[str, str]]
Kind = Literal["classification", "qa", "translation", "text"]

_NAMES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("classification", ("classif", "sentiment", "nli", "intent", "topic", "label", "分类", "情感", "判断")),
    ("translation", ("transl", "翻译", "nmt")),
    ("text", ("summar", "摘要", "总结", "dialog", "对话", "writing", "写作", "generation")),
    ("qa", ("qa", "question", "问答", "回答", "math", "数学")),
)
"""(kind, parts of task names that show it), tried in this order."""

CLOSED_SET = 20
"""A classification has at most this many different answers."""
SHORT = 24
"""A short answer has at most this many characters."""


def exact_match(pairs: Pairs) -> float:
    """Share of answers that equal the expected one after `normalize`."""
    return sum(normalize(expected) == normalize(given) for expected, given in pairs) / len(pairs)


def macro_f1(pairs: Pairs) -> float:
    """Mean over the labels of 2 TP / (2 TP + FP + FN). The labels are the expected answers; others count as misses."""
    labelled = [(normalize(expected), normalize(given)) for expected, given in pairs]
    scores = []
    for label in {expected for expected, _ in labelled}:
        hits = sum(expected == given == label for expected, given in labelled)
        wrong = sum((expected == label) != (given == label) for expected, given in labelled)
        scores.append(2 * hits / (2 * hits + wrong))
    return statistics.fmean(scores)


def bleu(pairs: Pairs) -> float:
    """Corpus BLEU, 0 to 100 (sacrebleu; tokenization `zh` if the expected answers are Chinese, else `13a`)."""
    import sacrebleu

    expected, given = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    tokenize = "zh" if is_chinese(expected) else "13a"
    return float(sacrebleu.corpus_bleu(given, [expected], tokenize=tokenize).score)


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether more than 30% of the letters are Chinese."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return sum("\u4e00" <= c <= "\u9fff" for c in letters) > 0.3 * len(letters)


def rouge(part: str) -> Callable[[Pairs], float]:
    """The metric that is the mean F1 of ROUGE-1, ROUGE-2 or ROUGE-L; `part` is `1`, `2` or `l`."""

    def measure(pairs: Pairs) -> float:
        return statistics.fmean(_rouge(expected, given)[part] for expected, given in pairs)

    return measure


@lru_cache(maxsize=10_000)
def _rouge(expected: str, given: str) -> dict[str, float]:
    """{"1", "2", "l"}: F1 over sets of n-grams, as in rouge_chinese and so in the papers on ChatGLM.

    RapidFuzz computes the longest common subsequence: rouge_chinese takes seconds for two texts of 1,500 words.
    """
    from rapidfuzz.distance import LCSseq
    from rouge_chinese import Rouge

    wanted, found = words(expected), words(given)
    if not wanted or not found:  # rouge_chinese rejects empty texts
        return dict.fromkeys("12l", 0.0)
    grams = Rouge(metrics=["rouge-1", "rouge-2"]).get_scores(" ".join(found), " ".join(wanted))[0]
    common = LCSseq.similarity(wanted, found)
    return {"1": grams["rouge-1"]["f"], "2": grams["rouge-2"]["f"], "l": 2 * common / (len(wanted) + len(found))}


def words(text: str) -> list[str]:
    """The words of jieba: Chinese by its dictionary, other scripts split at blanks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of jieba's regular expressions
        import jieba
    jieba.setLogLevel(logging.WARNING)
    return [word for word in jieba.lcut(unicodedata.normalize("NFKC", text)) if word.strip() and word != "."]


METRICS: dict[Kind, dict[str, Callable[[Pairs], float]]] = {
    "classification": {"accuracy": exact_match, "macro_f1": macro_f1},
    "qa": {"exact_match": exact_match},
    "translation": {"bleu": bleu, "rouge_l": rouge("l")},
    "text": {"rouge_1": rouge("1"), "rouge_2": rouge("2"), "rouge_l": rouge("l"), "bleu": bleu},
}


FUNCTIONS: dict[str, Callable[[Pairs], float]] = {
    name: function for kind in METRICS.values() for name, function in kind.items()
}


def measured(metric: str, pairs: Pairs) -> float:
    """One metric over all pairs, whatever kind their tasks are. Raises UserError without its library."""
    try:
        return FUNCTIONS[metric](pairs)
    except ImportError as error:
        raise UserError(
            f"eval.keep_best: {metric} cannot be measured: {error}", "set eval.keep_best: loss", code="ZL-PLAN-01"
        ) from error


def kind_of(task: str | None, pairs: Pairs) -> Kind:
    """The kind of a task by its name, else by its expected answers."""
    for kind, parts in _NAMES:
        if task is not None and any(part in task.casefold() for part in parts):
            return kind
    answers = [expected for expected, _ in pairs]
    longest = max(map(len, answers))
    if longest <= SHORT and len({normalize(answer) for answer in answers}) <= min(CLOSED_SET, len(answers) // 3):
        return "classification"
    return "qa" if statistics.median(map(len, answers)) <= SHORT else "text"


def score(pairs: Pairs, tasks: Sequence[str | None]) -> dict[str, Any]:
    """{"records", "accuracy", <metric>: value, "tasks": {name: {"records", <metric>: value}}}

    The overall `accuracy` covers every record, and each other metric the records of all tasks that have it. Records
    without a task count only there.
    """
    if not pairs:
        return {"records": 0, "tasks": {}}
    groups: dict[str | None, list[tuple[str, str]]] = {}
    for pair, task in zip(pairs, tasks, strict=True):
        groups.setdefault(task, []).append(pair)
    kinds = {task: kind_of(task, group) for task, group in groups.items()}
    shared: dict[str, list[tuple[str, str]]] = {}
    for task, group in groups.items():
        for name in METRICS[kinds[task]]:
            shared.setdefault(name, []).extend(group)
    shared.pop("exact_match", None)  # `accuracy` covers it
    shared["accuracy"] = list(pairs)
    overall = _measure({name: FUNCTIONS[name] for name in ("accuracy", *shared)}, shared)
    by_task = {
        str(task): {"records": len(group), **_measure(METRICS[kinds[task]], dict.fromkeys(METRICS[kinds[task]], group))}
        for task, group in sorted(groups.items(), key=lambda item: str(item[0]))
        if task is not None
    }
    return {"records": len(pairs), **overall, "tasks": by_task}


def _measure(metrics: dict[str, Callable[[Pairs], float]], pairs: dict[str, list[tuple[str, str]]]) -> dict[str, float]:
    """Compute metrics; a missing library costs its metric only, not the run that has just been trained."""
    found = {}
    for name, metric in metrics.items():
        try:
            found[name] = metric(pairs[name])
        except ImportError as error:
            print(f"warning: {name} is not measured: {error}", file=sys.stderr)
    return found
