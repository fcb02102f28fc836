"""Progress in words: one table for every kind of work."""

from __future__ import annotations

import pytest

from dlm_tui.app.progress import left_text, progress_line, progress_words, share_of, time_text
from dlm_tui.engine.protocol import Progress

CASES = [
    (Progress(stage="train", scope="gate", done=34, total=100, eta=12.4), "gate training \u00b7 34% \u00b7 12 s left"),
    (
        Progress(stage="gate", scope="gate", done=34, total=100, eta=0.3),
        "gate training \u00b7 34% \u00b7 under 1 s left",
    ),
    (
        Progress(stage="sft", scope="tone", done=1, total=4, eta=150.0, loss=1.5),
        "training tone \u00b7 25% \u00b7 2 min 30 s left \u00b7 loss 1.500",
    ),
    (Progress(stage="dpo", scope="tone", done=1, total=4), "preferences of tone \u00b7 25%"),
    (
        Progress(stage="dpo", scope="tone", done=1, total=4, loss=0.693, loss_kind="dpo"),
        "preferences of tone \u00b7 25% \u00b7 dpo loss 0.693",
    ),
    (
        Progress(stage="gate", done=1, total=2, loss=0.25, entropy=0.5, loss_kind="gate"),
        "gate training \u00b7 50% \u00b7 loss 0.250 \u00b7 entropy 0.50 nats",
    ),
    (Progress(stage="embed", done=3, total=9, eta=2.0), "embedding prompts \u00b7 33% \u00b7 2 s left"),
    (Progress(stage="fold", done=1, total=5, eta=8.2), "judging the gate \u00b7 20% \u00b7 8 s left"),
    (Progress(stage="answers", done=30, total=40, eta=70.0), "comparing answers \u00b7 75% \u00b7 70 s left"),
    (Progress(stage="score", done=0, total=8), "measuring the effect \u00b7 0%"),
    (Progress(stage="prefill", done=128, total=300, eta=2.0), "reading the prompt \u00b7 43% \u00b7 2 s left"),
    (Progress(stage="base", done=1, total=4, text="reading the weights"), "reading the weights \u00b7 25%"),
    (Progress(stage="warm-up", done=3, total=3, eta=0.0), "warming up \u00b7 100%"),
    (Progress(stage="download"), "fetching the base"),
    (Progress(stage="model-f16.gguf", done=1, total=2), "writing model-f16.gguf \u00b7 50%"),
    (Progress(stage="hash", done=1, total=2, text="a.gguf"), "checking a.gguf \u00b7 50%"),
    (Progress(stage="commit", text="putting the new adapters in force"), "putting the new adapters in force"),
    (Progress(stage="something new", done=9, total=4), "something new \u00b7 100%"),
    (Progress(stage="note", text="[b]\x1b[31mred\nline"), "[b]\u241b[31mred\u240aline"),
]


@pytest.mark.parametrize(("progress", "words"), CASES, ids=[words for _, words in CASES])
def test_words(progress: Progress, words: str) -> None:
    assert progress_words(progress) == words
    line = progress_line(progress, 10).plain
    assert line.endswith(words)
    share = share_of(progress)
    full = "" if share is None else line.removesuffix(words)
    assert len(full) == (0 if share is None else 12)
    assert full.count("\u2588") == int((share or 0.0) * 10)


def test_times_are_said_the_way_people_say_them() -> None:
    assert [time_text(s) for s in (0.4, 12, 119.7, 150, 7300)] == [
        "0.4 s", "12 s", "2 min 00 s", "2 min 30 s", "2 h 01 min"
    ]  # fmt: skip
    assert [left_text(s) for s in (0.0, 1.2, 9.7, 150)] == [
        "under 1 s left", "1 s left", "10 s left", "2 min 30 s left"
    ]  # fmt: skip
