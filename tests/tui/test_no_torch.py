"""The screen never brings torch or transformers in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, sys
from pathlib import Path
from dlm_tui.app.app import Opening, WorkbenchApp
from dlm_tui.app.setup import Setup
from dlm_tui.app.config import load_config
from dlm_tui.app.state import StateFile
from dlm_tui.document import load
from dlm_tui.engine.job_client import start_job
from tests.tui.recorded import RecordedEngine, World

async def main(path):
    world = World()
    setup = Setup(document=load(path), path=path, home=path.parent / "home", base=None, config=load_config(),
                  state_file=StateFile(path, path.parent / "state"),
                  engine_factory=lambda: RecordedEngine(world), job_starter=start_job)
    app = WorkbenchApp(Opening(path.name, setup.config, setup.config.theme, lambda: setup))
    async with app.run_test(size=(200, 60)) as pilot:
        while not (app.is_open and app.workbench.context.link.ready):
            await pilot.pause(0.01)
        answered = asyncio.Event()
        app.workbench.controllers.keeping.kept.connect(lambda answers: answered.set())
        await pilot.press("w", "ctrl+o", "f4", "f4")
        async with asyncio.timeout(90):
            await answered.wait()
    assert app.workbench.failures == [], app.workbench.failures

asyncio.run(main(Path(sys.argv[1])))
heavy = [name for name in ("torch", "transformers", "peft") if name in sys.modules]
assert not heavy, heavy
import dlm_tui.app.launch, dlm_tui.cli.serve, dlm_tui.cli.web
assert "torch" not in sys.modules
print("light")
"""


def test_a_session_leaves_torch_out(tmp_path: Path) -> None:
    from tests.tui.document import write_document

    path = write_document(tmp_path)
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=600)
    assert result.stdout.strip() == "light", result.stderr
