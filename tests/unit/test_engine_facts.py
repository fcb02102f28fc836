"""The rows of "engine facts": what is resident and how it runs."""

from __future__ import annotations

import msgspec
import pytest

from dlm_tui.app.engine_facts import engine_rows
from dlm_tui.engine.protocol import Opened, Status


@pytest.mark.parametrize(
    ("ood", "words"),
    [
        (("distance", "surprise"), "prompts are marked by distance and surprise"),
        (("distance",), "prompts are marked by distance"),
        ((), "no prompt is marked"),
    ],
)
def test_it_says_what_prompts_are_marked_by(ood: tuple[str, ...], words: str) -> None:
    opened = Opened(
        adapters=["tone"],
        versions={"tone": 3},
        gate="trained",
        gate_reason="",
        base="pocket",
        tier="fused",
        device="cpu",
        parameters=4_557_568,
        static={},
    )
    status = Status(rss=851 << 20, threads=2, tier="fused", uptime=3.0, device="cpu", dtype="float32", ood=ood)
    rows = dict(engine_rows(opened, status, ["tone", "style"]))
    assert rows["unlike"] == words
    assert rows["tier"].startswith("fused: the fast path")
    middle = msgspec.structs.replace(status, tier="onednn", tier_reason="its activation is relu")
    told = dict(engine_rows(opened, middle, []))["tier"]
    assert told.startswith("onednn: transformers' own forward") and told.endswith("(its activation is relu)")
    assert rows["base"] == "pocket"
    kept = dict(engine_rows(msgspec.structs.replace(opened, kept="nf4"), status, []))
    assert kept["base"] == "pocket, nf4"
    assert rows["adapters"] == "tone v3" and rows["memory"] == "851 MiB resident in the engine's process"
