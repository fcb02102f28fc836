"""An adapter that was trained elsewhere, taken in from the screen."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input

from dlm_tui.app.screens.import_adapter import ImportScreen
from dlm_tui.engine.protocol import Failed, ImportJob, Reload
from tests.tui.conftest import Bench, Opener


async def opened(bench: Bench) -> None:
    command = next(one for one in bench.app.palette_commands() if one.name == "train: import adapter")
    command.run()
    await bench.until(lambda: isinstance(bench.app.screen, ImportScreen), "the dialog")


async def asked(bench: Bench, name: str, source: str) -> None:
    bench.app.screen.query_one("#import-name", Input).value = name
    bench.app.screen.query_one("#import-source", Input).value = source
    await bench.press("ctrl+g")


async def test_an_adapter_is_taken_in_by_a_job_and_used(workbench: Opener, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    async with workbench(size=(120, 40), line=True) as bench:
        await opened(bench)
        for name, source, told in (
            ("humour", "", "There is no adapter without a path"),
            ("humour", "nowhere", "There is no nowhere"),
            ("no name", "elsewhere", "'no name' is not an adapter name"),
        ):
            await asked(bench, name, source)
            await bench.until(lambda told=told: told in " ".join(bench.text.split()), "refused")
        assert bench.jobs == []
        await asked(bench, "humour", "elsewhere")
        await bench.until(lambda: any("humour@1 is in force. The document declares" in t for t in bench.toasts), "said")
        (job,) = bench.jobs
        assert isinstance(job.request, ImportJob)
        assert (job.request.name, job.request.source) == ("humour", str(tmp_path / "elsewhere"))
        assert any(isinstance(one, Reload) for one in bench.world.requests), "the engine has it"
        assert bench.context.board.listed()[0].summary == "humour version 1, rank 8"
        await bench.idle()


async def test_what_the_base_refuses_is_said_and_nothing_is_reloaded(workbench: Opener) -> None:
    async with workbench(size=(120, 40), line=True) as bench:
        bench.world.fail_job = Failed(kind="AdapterError", text="the base has no module q_proj")
        await opened(bench)
        await asked(bench, "humour", "hf:org/name")
        await bench.until(lambda: any("Nothing was imported the base has no" in t for t in bench.toasts), "said")
        assert not any(isinstance(one, Reload) for one in bench.world.requests)
        await bench.idle()


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_how_it_looks(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await opened(bench)
        assert await bench.settled() == screens
