"""How far long work is, in the same words everywhere: what, how much of it, and the time left."""

from __future__ import annotations

from textual.content import Content

from dlm_tui.engine.protocol import Progress
from dlm_widgets.bars import bar_text
from dlm_widgets.sanitize import assemble, sanitize

_WORDS = {
    "adapters": "reading the adapters",
    "answers": "comparing answers",
    "base": "loading the base",
    "best": "looking for the best fixed mix",
    "commit": "putting the adapters in force",
    "download": "fetching the base",
    "drift": "measuring what freezing costs",
    "embed": "embedding prompts",
    "fold": "judging the gate",
    "frozen": "measuring the frozen mix",
    "gate": "gate training",
    "live": "asking the live gate",
    "load": "loading",
    "mix": "working out the mix",
    "prefill": "reading the prompt",
    "prepare": "preparing the base",
    "runtime": "trying the export",
    "score": "measuring the effect",
    "warm-up": "warming up",
    "workbench": "answers to compare the export with",
}
_TRAININGS = {"train": "training", "sft": "training", "dpo": "preferences of", "orpo": "preferences of"}
_BAR_STYLE = "$primary on $foreground 12%"


def stage_words(progress: Progress) -> str:
    """What is being done: the work's own words where it sends some, else those of its stage."""
    stage, scope = progress.stage, progress.scope
    if stage == "hash":
        return f"checking {progress.text or 'the files'}"
    if progress.text:
        return progress.text
    if stage in _TRAININGS:
        return "gate training" if scope == "gate" else f"{_TRAININGS[stage]} {scope or 'the adapters'}"
    if stage in _WORDS:
        return _WORDS[stage]
    if "." in stage or stage in {"tokenizer", "Modelfile"}:
        return f"writing {stage}"
    return f"{stage} {scope}" if scope else stage


def share_of(progress: Progress | None) -> float | None:
    """How much is done, in [0, 1], where that can be told."""
    if progress is None or not progress.total > 0:
        return None
    return min(1.0, max(0.0, progress.done / progress.total))


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


def progress_words(progress: Progress) -> str:
    """`gate training \u00b7 34% \u00b7 12 s left`, then loss (nats per token) and entropy (nats) where they are known.

    Work that has reached its count has no time left, and work without a count says only what it is.
    """
    parts = [stage_words(progress)]
    share = share_of(progress)
    if share is not None:
        parts.append(f"{share:.0%}")
    if progress.eta is not None and share != 1.0:
        parts.append(left_text(progress.eta))
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.entropy is not None:
        parts.append(f"entropy {progress.entropy:.2f} nats")
    return sanitize(" \u00b7 ".join(parts), one_line=True)


def progress_line(progress: Progress, width: int = 20) -> Content:
    """A bar of `width` cells, left out for work without a count, and the words, on one line."""
    share = share_of(progress)
    bar = "" if share is None else bar_text(share, width)
    return assemble((bar, _BAR_STYLE), "  " if bar else "", progress_words(progress))
