"""What moved between two runs of a prompt set."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dlm_tui.store.set_runs import SetAnswer, SetRun


class MovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt and view in two runs. `weight` is the largest change of any gate weight, `logprob` the change of the
    log-probability of the former answer (nats, None where either is not known)."""

    before: SetAnswer
    after: SetAnswer
    weight: float
    logprob: float | None

    @property
    def changed(self) -> bool:
        """Whether the answer is another one."""
        return self.before.text != self.after.text


def compare_runs(before: SetRun, after: SetRun) -> list[MovedAnswer]:
    """What moved for every prompt and view that is in both runs, in the order of the later one."""
    earlier = {(answer.prompt, answer.view): answer for answer in before.answers}
    moved = []
    for answer in after.answers:
        was = earlier.get((answer.prompt, answer.view))
        if was is None:
            continue
        names = {*was.weights, *answer.weights}
        weight = max((abs(answer.weights.get(name, 0.0) - was.weights.get(name, 0.0)) for name in names), default=0.0)
        known = after.former == before.run_id and answer.former_logprob is not None and was.logprob is not None
        logprob = answer.former_logprob - was.logprob if known else None  # type: ignore[operator]
        moved.append(MovedAnswer(before=was, after=answer, weight=weight, logprob=logprob))
    return moved


def new_answers(before: SetRun | None, after: SetRun) -> list[SetAnswer]:
    """The answers whose prompt and view the run before has not, in order."""
    earlier = {(answer.prompt, answer.view) for answer in before.answers} if before is not None else set()
    return [answer for answer in after.answers if (answer.prompt, answer.view) not in earlier]


def drawn_otherwise(before: SetRun, after: SetRun) -> str:
    """How answers were drawn then and are now where that differs, else empty: it moves answers by itself."""
    was, now = before.drawing, after.drawing
    parts = [
        f"{name} {was[name]:g} → {now[name]:g}" if name in was and name in now else f"{name} {(was | now)[name]:g}"
        for name in dict.fromkeys([*now, *was])
        if was.get(name) != now.get(name)
    ]
    return ", ".join(parts)


SORTS = ("order", "weights", "answer", "logprob", "checks")
"""By what a comparison can be sorted."""


def sorted_moves(moved: Sequence[MovedAnswer], by: str) -> list[MovedAnswer]:
    """What moved most first, by one of `SORTS`: the weights, changed answers, former answers that became least likely,
    expectations that are newly broken and then those that still are; `order` is that of the set."""
    match by:
        case "weights":
            return sorted(moved, key=lambda move: -move.weight)
        case "answer":
            return sorted(moved, key=lambda move: not move.changed)
        case "logprob":
            return sorted(moved, key=lambda move: 0.0 if move.logprob is None else move.logprob)
        case "checks":
            return sorted(moved, key=_by_checks)
        case _:
            return list(moved)


def _by_checks(move: MovedAnswer) -> tuple[int, int]:
    return len(move.before.broken) - len(move.after.broken), -len(move.after.broken)


def sorted_answers(answers: Sequence[SetAnswer], by: str) -> list[SetAnswer]:
    """Answers that have none before them to compare with: by `checks` the most broken first, else as they are."""
    return sorted(answers, key=lambda answer: -len(answer.broken)) if by == "checks" else list(answers)
