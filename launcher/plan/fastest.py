"""The fastest setting that fits the GPU with a margin, and the smallest changes to a job that does not fit."""

from __future__ import annotations

from launcher.errors import CompatibilityError
from launcher.job.spec import JobSpec
from launcher.plan.autos import Case, reasons_of
from launcher.plan.candidates import Candidate, candidates_of
from launcher.plan.changes import Change, changes_that_fit
from launcher.plan.situation import Model, Situation
from launcher.plan.types import Reason
from train.memory import GIB, Memory


class DoesNotFit(CompatibilityError):
    """No setting within what the user fixed fits the GPU."""

    def __init__(self, message: str, changes: tuple[Change, ...], smallest: Memory) -> None:
        hint = "; or: ".join(change.text for change in changes[:3]) or "a smaller model or a larger GPU is needed"
        super().__init__(message, hint=hint)
        self.changes = changes
        self.smallest = smallest


def choose(spec: JobSpec, model: Model, situation: Situation) -> tuple[Candidate, tuple[Reason, ...]]:
    """The fastest setting that fits, and why each open setting has its value.

    Raises DoesNotFit with the changes that would help, CompatibilityError for settings that cannot work together, and
    BatchError.
    """

    def fitting(job: JobSpec, place: Situation) -> list[Candidate]:
        return [found for found in candidates_of(job, model, place) if place.holds(found.cost.memory)]

    candidates = tuple(candidates_of(spec, model, situation))
    fits = [found for found in candidates if situation.holds(found.cost.memory)]
    if not fits:
        smallest = min((candidate.cost.memory for candidate in candidates), key=lambda memory: memory.total)
        raise DoesNotFit(
            f"{spec.model.path or 'the model'} does not fit: it needs at least {smallest.total / GIB:.1f} GiB per GPU, "
            f"and {situation.gpu_name} has {situation.room / GIB:.1f} GiB for it",
            tuple(changes_that_fit(spec, situation, fitting)),
            smallest,
        )
    best = best_of(fits)
    return best, reasons_of(Case(spec, situation, best, candidates))


def best_of(fits: list[Candidate]) -> Candidate:
    """Of those within a hundredth of the fastest, the lowest ZeRO stage; then the one that needs least memory."""
    fastest = max(candidate.cost.tokens_per_second for candidate in fits)
    equals = [candidate for candidate in fits if candidate.cost.tokens_per_second >= 0.99 * fastest]
    return min(equals, key=lambda candidate: (candidate.zero_stage, candidate.cost.memory.total))
