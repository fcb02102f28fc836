"""How far long work is, in the same words on the screen and on the command line. No torch."""

from __future__ import annotations

from typing import Protocol

from dlm_tui.counting import counted
from dlm_tui.losses import GATE, loss_name
from dlm_tui.progress import EarlyLook

STAGES = {
    "adapters": "reading the adapters",
    "answers": "comparing answers",
    "base": "loading the base",
    "best": "looking for the best fixed mix",
    "best static": "measuring the best fixed mix",
    "cluster": "waiting for the cluster",
    "commit": "putting the adapters in force",
    "download": "fetching the base",
    "effect": "measuring the effect",
    "embed": "embedding prompts",
    "fold": "judging the gate",
    "formats": "comparing formats",
    "frozen": "measuring the frozen mix",
    "gate": "gate training",
    "importance": "weighing the columns",
    "live": "asking the live gate",
    "load": "loading",
    "mix": "working out the mix",
    "prefill": "reading the prompt",
    "prepare": "preparing the base",
    "prompts": "running the set",
    "runtime": "trying the export",
    "score": "measuring the effect",
    "search": "comparing fixed mixes",
    "server": "trying the server of the export",
    "suite": "scoring the adapters",
    "surprise": "reading the prompts",
    "text": "scoring the text",
    "weights": "checking what was written",
    "trial": "trying settings",
    "warm-up": "warming up",
    "workbench": "answers to compare the export with",
}
"""What each stage is called. A stage that is a file's name is called "writing" it."""
_TRAININGS = {
    "train": "training",
    "sft": "training",
    "dpo": "preferences of",
    "orpo": "preferences of",
    "signed": "both signs of",
}

NO_ANSWER = "(nothing)"
"""What is shown of an answer that ends at once."""


class Step(Protocol):
    """A `progress.Progress`, or the wire's message of one."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> float: ...
    @property
    def total(self) -> float: ...
    @property
    def text(self) -> str | None: ...
    @property
    def scope(self) -> str | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def loss_kind(self) -> str | None: ...
    @property
    def entropy(self) -> float | None: ...
    @property
    def eta(self) -> float | None: ...


def stage_words(step: Step) -> str:
    """What is being done: the work's own words where it sends some, else those of its stage."""
    stage, scope = step.stage, step.scope
    if stage == "hash":
        return f"checking {step.text or 'the files'}"
    if step.text:
        return step.text
    if stage in _TRAININGS:
        return "gate training" if scope == "gate" else f"{_TRAININGS[stage]} {scope or 'the adapters'}"
    if stage in STAGES:
        return STAGES[stage]
    if "." in stage or stage in {"tokenizer", "Modelfile"}:
        return f"writing {stage}"
    return f"{stage} {scope}" if scope else stage


def share_of(step: Step | None) -> float | None:
    """How much is done, in [0, 1], where that can be told."""
    if step is None or not step.total > 0:
        return None
    return min(1.0, max(0.0, step.done / step.total))


def time_text(seconds: float) -> str:
    """Seconds as a person says them; tenths below ten."""
    return f"{seconds:.1f} s" if seconds < 10 else _whole(seconds)


def left_text(seconds: float) -> str:
    """The time left as a person says it: a guess has no tenths."""
    return f"{_whole(seconds)} left" if seconds >= 1 else "under 1 s left"


def _whole(seconds: float) -> str:
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def progress_words(step: Step) -> str:
    """`gate training \u00b7 34% \u00b7 12 s left`, then loss (named where it is not nats per token) and entropy (nats).

    Work that has reached its count has no time left, and work without a count says only what it is. The work's own
    words are passed on as they are: a front end makes them safe to show.
    """
    return " \u00b7 ".join(progress_parts(step))


def progress_parts(step: Step) -> list[str]:
    """The pieces of `progress_words`, the weightiest first."""
    parts = [stage_words(step)]
    share = share_of(step)
    if share is not None:
        parts.append(f"{share:.0%}")
    if step.eta is not None and share != 1.0:
        parts.append(left_text(step.eta))
    if step.loss is not None:
        parts.append(f"{loss_name(step.loss_kind if step.loss_kind != GATE else None)} {step.loss:.3f}")
    if step.entropy is not None:
        parts.append(f"entropy {step.entropy:.2f} nats")
    return parts


def look_words(name: str, look: EarlyLook) -> str:
    """`facts \u00b7 step 12 of 24 \u00b7 held-out loss 3.214 before, 2.871 now (2 rows)`, losses in nats per token.

    The first look, which is at the untrained adapter, says what a document without held-out rows can do about it.
    """
    at = f"{name} \u00b7 " + (f"step {look.step} of {look.total}" if look.step else "before")
    if not look.rows:
        remedy = "" if look.step else " (one in ten is: add sections, or change training.seed)"
        return f"{at} \u00b7 no held-out loss, none of its rows is held out{remedy}"
    rows = f"({counted(look.rows, 'row')})"
    before, now = ("not finite" if loss is None else f"{loss:.3f}" for loss in (look.held_out_before, look.held_out))
    return f"{at} \u00b7 held-out loss {f'{before} before, {now} now' if look.step else now} {rows}"


def look_lines(name: str, look: EarlyLook) -> list[str]:
    """A look as lines without control over a terminal: the loss, then a line per prompt with its answers."""
    lines = [look_words(name, look)]
    for answer in look.answers:
        told = f"before: {answer.before or NO_ANSWER}"
        now = f" \u00b7 now: {answer.now or NO_ANSWER}" if look.step else ""
        lines.append(f"  {answer.prompt} \u00b7 {told}{now}")
    return lines
