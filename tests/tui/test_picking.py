"""Sample and pick: drawn, shown blind, picked by one key or a click, reviewed, written; then trained and compared."""

from __future__ import annotations

import re

from syrupy.assertion import SnapshotAssertion

from dlm_tui.app.screens.draw import DrawScreen
from dlm_tui.app.screens.pick import Blind, PickScreen
from dlm_tui.app.screens.review import ReviewScreen
from dlm_tui.app.screens.set_run import SetRunScreen
from dlm_tui.app.screens.settings_offer import SettingsOffer
from dlm_tui.document import load, preference_triples
from dlm_tui.document.preferences import preference_counts
from dlm_tui.document.prompt_sets import PromptSets
from dlm_tui.engine.protocol import RunSet, TrainJob
from tests.tui import actions, mouse
from tests.tui.conftest import Bench, Opener


async def drawn(bench: Bench, count: str = "4") -> PickScreen:
    """Answers are drawn for the first source."""
    await bench.press("alt+x")
    await bench.until(lambda: actions.showing(bench, DrawScreen), "draw")
    bench.app.screen.query_one("#draw-count").value = count  # type: ignore[attr-defined]
    await bench.press("ctrl+g")
    await bench.until(lambda: actions.showing(bench, PickScreen) and "pair 1 of" in bench.text, "pairs")
    assert isinstance(bench.app.screen, PickScreen)
    return bench.app.screen


async def reviewed(bench: Bench) -> ReviewScreen:
    await bench.until(lambda: actions.showing(bench, ReviewScreen), "review")
    assert isinstance(bench.app.screen, ReviewScreen)
    return bench.app.screen


async def test_picks_become_preferences_of_the_adapters_that_answered(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        before = bench.path.read_bytes()
        await actions.prompt(bench)
        screen = await drawn(bench, "8")
        (asked,) = [request for request in bench.world.requests if isinstance(request, RunSet)]
        assert [view.name for view in asked.views] == ["gated", "knowledge", "tone", "style"] * 2
        assert asked.seeds == list(range(asked.seed, asked.seed + 8)) and asked.temperature == 0.8
        shown = [str(blind.query_one(".blind--text").text) for blind in screen.query(Blind)]  # type: ignore[attr-defined]
        first = screen._pairs[0]
        assert (
            shown == [first.first.text, first.second.text]
            and first.first.view not in screen.query_one("#pick-note").text
        )  # type: ignore[attr-defined]
        await bench.press("2", "1", "0", "1")
        await reviewed(bench)
        assert bench.path.read_bytes() == before, "nothing is written before it was seen"
        await bench.press("ctrl+g")
        await bench.until(lambda: any("3 preferences written" in toast for toast in bench.toasts), "written")
        total = sum(preference_counts(load(bench.path)).values())
        said = next(toast for toast in bench.toasts if "3 preferences written" in toast)
        assert sum(int(number) for number in re.findall(r"(?:knowledge|tone|style) (\d)", said)) == total == 3
        most = max(preference_counts(load(bench.path)).values())
        assert said.endswith(f" needs {4 - most} more to be trained on them.") and "alt+j" not in said
        sections = load(bench.path).sections[-3:]
        assert [section.type for section in sections] == ["preference"] * 3
        triple = preference_triples(sections[0])[0]
        assert (triple.chosen, triple.rejected) == (first.second.text, first.first.text)
        source = str(sections[0].harvest_source)
        seed, chosen, rejected = asked.seed, first.second, first.first
        assert source == (
            f"dlm-tui/pick/blind seed {seed}: {chosen.view} {chosen.seed} over {rejected.view} {rejected.seed}"
        )
        for section, pair in zip(sections, (first.second, None, None), strict=True):
            if pair is not None and pair.view != "gated":
                assert section.adapter == pair.view
        assert sum(preference_counts(load(bench.path)).values()) == 3
        await bench.leave_prompt()
        for _ in range(3):
            await bench.press("u")
            await bench.idle()
        assert bench.path.read_bytes() == before


async def test_what_was_picked_is_trained_where_an_adapter_has_enough(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await actions.with_preferences(bench)
        await actions.prompt(bench)
        await drawn(bench, "2")
        await bench.press("1")
        await reviewed(bench)
        assert "1 preference to write" in bench.text
        await bench.press("ctrl+g")
        await bench.until(lambda: any("1 preference written" in toast for toast in bench.toasts), "written")
        said = next(toast for toast in bench.toasts if "1 preference written" in toast)
        assert said.endswith("alt+j trains tone on them.")


async def test_a_set_is_picked_from_by_clicks_alone(workbench: Opener) -> None:
    async with workbench(size=(80, 24)) as bench:
        PromptSets(bench.path).save({"smoke": ["Rime me", "Say please"]})
        bench.screen.action_pick()
        await bench.until(lambda: actions.showing(bench, DrawScreen), "draw")
        await mouse.press_button(bench, "accept")
        await bench.until(lambda: "pair 1 of 4" in bench.text, "pairs")
        for number in (1, 2):
            blind = bench.app.screen.query_one(f"#blind-{number}")
            await mouse.click(
                bench, (blind.region.x + 4, blind.region.y), mouse.under(bench, (blind.region.x + 4, blind.region.y))
            )
            await bench.until(lambda number=number: f"{number} picked" in bench.text, "picked")
        await mouse.press_button(bench, "accept")
        await reviewed(bench)
        await mouse.press_button(bench, "accept")
        await bench.until(lambda: len(load(bench.path).sections) == 15, "written")


async def test_all_answers_alike_say_so_and_leaving_keeps_nothing(workbench: Opener) -> None:
    async with workbench() as bench:
        before = bench.path.read_bytes()
        await actions.prompt(bench)
        await drawn(bench)
        await bench.press("1", "escape")
        await bench.idle()
        assert bench.app.screen is bench.screen and bench.path.read_bytes() == before
        bench.app.push_screen(screen := PickScreen())
        await bench.until(lambda: actions.showing(bench, PickScreen), "again")
        screen.show_pairs([])
        await bench.until(lambda: "are the same" in bench.text, "said")


async def test_preferences_train_their_adapter_and_the_set_shows_before_and_after(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        PromptSets(bench.path).save({"smoke": ["Rime me", "Say please"]})
        await bench.press("alt+j")
        await bench.until(lambda: any("No adapter has 4 preferences" in toast for toast in bench.toasts), "said")
        await actions.with_preferences(bench)
        before = bench.path.read_bytes()
        await bench.press("alt+j")
        await bench.until(lambda: actions.showing(bench, SettingsOffer), "offer")
        assert "+ preference.hyperparams.num_epochs: 10" in bench.text
        await bench.press("ctrl+g")
        await bench.until(lambda: actions.showing(bench, SetRunScreen), "before and after")
        await bench.until(lambda: "answers changed" in bench.text, "compared")
        training = load(bench.path).training
        assert (training.preference.hyperparams.learning_rate, training.preference.hyperparams.num_epochs) == (5e-5, 10)
        (job,) = bench.jobs
        assert isinstance(job.request, TrainJob) and job.request.adapters == ["tone"]
        asked = [request for request in bench.world.requests if isinstance(request, RunSet)]
        assert [[view.name for view in request.views] for request in asked] == [["gated", "tone"]] * 2
        assert not asked[0].former and len(asked[1].former) == 4
        assert re.search(r"2 of 4 answers changed", bench.text) and "version 1 \u2192 version 2" in bench.text
        await bench.press("escape")
        await bench.leave_prompt()
        await bench.press("u")
        await bench.until(lambda: bench.path.read_bytes() == before, "the settings are taken back")


async def test_a_training_behind_another_is_compared_when_it_is_over_itself(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        PromptSets(bench.path).save({"smoke": ["Rime me", "Say please"]})
        await actions.with_preferences(bench)

        def hold_the_next() -> None:
            bench.world.hold.clear()
            bench.world.on_trained = lambda: None

        bench.world.on_trained = hold_the_next
        assert bench.context.board.line is not None
        await bench.context.board.line.pause()
        await bench.press("ctrl+t", "alt+j")
        await bench.until(lambda: actions.showing(bench, SettingsOffer), "offer")
        await bench.press("ctrl+g")
        await bench.until(lambda: len(bench.context.board.waiting()) == 2, "both wait")
        await bench.context.board.line.work()
        await bench.until(lambda: len(bench.jobs) == 2 and bench.jobs[1].request.adapters == ["tone"], "its turn")
        await bench.until(lambda: any("Trained: done" in toast for toast in bench.toasts), "the other one is over")
        await bench.idle()
        assert bench.app.screen is bench.screen, "what the other one did is not shown"
        bench.world.hold.set()
        await bench.until(lambda: actions.showing(bench, SetRunScreen), "before and after")
        await bench.until(lambda: "version 1 \u2192 version 3" in bench.text, "compared")


async def test_a_training_that_fails_shows_no_comparison(workbench: Opener) -> None:
    from dlm_tui.engine.protocol import Failed

    async with workbench() as bench:
        PromptSets(bench.path).save({"smoke": ["Rime me"]})
        await actions.with_preferences(bench)
        bench.world.fail_job = Failed(kind="Diverged", text="the loss became nan")
        await bench.press("alt+j")
        await bench.until(lambda: actions.showing(bench, SettingsOffer), "offer")
        await bench.press("ctrl+g")
        await bench.until(lambda: any("the loss became nan" in toast for toast in bench.toasts), "failed")
        await bench.idle()
        assert bench.app.screen is bench.screen


async def test_dialogs_fit_every_size(workbench: Opener, screens: SnapshotAssertion, monkeypatch: object) -> None:
    monkeypatch.setattr("dlm_tui.app.controllers.picking.secrets.randbelow", lambda most: 7)  # type: ignore[attr-defined]
    frames = []
    for size in ((60, 18), (80, 24), (120, 40)):
        async with workbench(size=size) as bench:
            await actions.prompt(bench)
            await bench.press("alt+x")
            await bench.until(lambda bench=bench: actions.showing(bench, DrawScreen), "draw")
            frames.append(f"== draw {size}\n{await bench.settled()}")
            await bench.press("ctrl+g")
            await bench.until(lambda bench=bench: "pair 1 of" in bench.text, "pairs")
            frames.append(f"== pick {size}\n{await bench.settled()}")
            await bench.press("1", "2")
            await reviewed(bench)
            frames.append(f"== review {size}\n{await bench.settled()}")
    assert "\n\n".join(frames) == screens
