"""A session on the real engine: train, train again, dislike it, go back, compare both, keep the better."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.app.launch import make_app
from dlm_tui.app.screens.adapters import AdaptersScreen
from dlm_tui.app.screens.comparison import ComparisonScreen
from dlm_tui.store import current_version
from dlm_tui.store.adapter_history import version_history
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from tests.tui.test_real import has_base, write

LITTLE = (("num_epochs: 1", "num_epochs: 8"), ("{lora_r: 2}", "{lora_r: 2, learning_rate: 0.003}"))
"""What the first training is given, and what teaches instead."""


def teach_more(path: Path) -> None:
    """Save the document with settings that teach."""
    text = path.read_text()
    for little, much in LITTLE:
        text = text.replace(little, much)
    path.write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not has_base(), reason="the embedded base has not been built")
async def test_train_dislike_go_back_compare_and_keep_the_better(tmp_path: Path) -> None:
    path = write(tmp_path)
    app = make_app(path, tmp_path / "home", None)

    async def until(condition: Callable[[], Any], what: str, seconds: float = 400.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, what
            await pilot.pause(0.02)

    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: app.is_open and app.workbench.context.link.ready, "the engine opens the document")
        bench = app.workbench
        store = bench.context.store

        def in_force() -> dict[str, int]:
            found = {name: current_version(store, name) for name in ("tide", "bread")}
            return {name: version.version for name, version in found.items() if version is not None}

        async def train(versions: int) -> None:
            bench.action_train()
            await until(lambda: set(in_force().values()) == {versions}, f"training {versions}")
            await until(lambda: not bench.context.board.running("train"), "the training is over")
            await until(lambda: bench.context.link.ready, "the engine has taken it in")

        async def listed() -> PickList:
            bench.action_adapters()
            await until(lambda: isinstance(app.screen, AdaptersScreen) and app.screen.query(PickList), "the versions")
            return app.screen.query_one(PickList)

        def note() -> str:
            return str(app.screen.query_one("#version-note", LiteralStatic).text)

        # a training that teaches next to nothing, which is said, and one that teaches
        await train(1)
        record = bench.context.board.records[0]
        assert record.training is not None
        assert all("learned next to nothing" in item.warning for item in record.training.adapters.values())
        teach_more(path)
        await until(lambda: bench.context.document.training.num_epochs == 8, "the document is read again")
        await train(2)

        # dislike it: one key goes back to before
        listing = await listed()
        assert "tide@2" in str(listing.get_option_at_index(0).prompt)
        await pilot.press("b")
        await until(lambda: in_force() == {"tide": 1, "bread": 1}, "back")
        await until(lambda: "Back to" in note(), "said")

        # compare both: as faders and answers side by side, and by what moved
        await pilot.press("space")
        assert bench.context.state.desk_versions == ["tide@2"]
        await pilot.press("c", "down", "c")
        await until(lambda: isinstance(app.screen, ComparisonScreen), "asked")
        told = app.screen.query_one("#comparison-note", LiteralStatic)
        await until(lambda: "tide@1 is worse than tide@2 on 4 of its own answers" in str(told.text), "what moved")
        await pilot.press("escape", "escape")
        await until(lambda: bench.context.link.ready, "the engine is back at the first versions")
        bench.prompt_pane.set_text("When does the tide reach post 2?")
        await until(lambda: bench.controllers.routing.routed is not None, "routed")
        bench.action_compare()
        views = {"tide", "tide@2"}
        await until(lambda: views <= {card.view for card in bench.answers.cards if card.text}, "answers of both")
        texts = {card.view: card.text for card in bench.answers.cards}
        assert texts["tide"] != texts["tide@2"]
        await until(lambda: not bench.controllers.generation.running, "answered")

        # keep the better
        listing = await listed()
        listing.highlighted = 0
        await pilot.press("enter")
        await until(lambda: in_force() == {"tide": 2, "bread": 1}, "the better one is in force")
        await pilot.press("k")
        await until(lambda: "is kept" in note(), "and kept")
        newest, oldest = sorted(version_history(store, ["tide"])["tide"], key=lambda one: -one.version)
        assert newest.kept and newest.in_force and newest.effect is not None and oldest.effect is not None
        assert newest.effect.kl > 10 * oldest.effect.kl
