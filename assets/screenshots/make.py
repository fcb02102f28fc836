"""Screenshots of the running program: trains the demo, opens it, and saves SVG files here.

python assets/screenshots/make.py
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

LASTING = {"engine", "watch", "sources", "serve", "queue"}
"""Groups of work that go on as long as the screen."""
PROMPT = "Where does the owner of the Grey Heron live?"


def tidy(path: Path) -> None:
    """Fonts come from the reader's machine, not from the internet; random ids become fixed."""
    text = re.sub(r"@font-face \{.*?\}\s*", "", path.read_text(), flags=re.S)
    path.write_text(re.sub(r"terminal-\d+", f"terminal-{path.stem}", text))


async def shoot(document: Path, home: Path) -> None:
    """Drive the real program at two sizes and both themes."""
    from dlm_tui.app.launch import make_app

    for name, size, theme in (
        ("workbench", (120, 38), "dlm-dark"),
        ("workbench-light", (120, 38), "dlm-light"),
        ("workbench-80x24", (80, 24), "dlm-dark"),
    ):
        app = make_app(document, home, None)
        async with app.run_test(size=size) as pilot:
            while not (app.is_open and app.workbench.context.link.ready):
                await pilot.pause(0.05)
            bench = app.workbench
            app.choose_theme(theme)
            bench.prompt_pane.set_text(PROMPT)
            await pilot.pause(2.5)
            bench.action_compare()
            await pilot.pause(0.2)
            while not all(worker.is_finished or worker.group in LASTING for worker in app.workers):
                await pilot.pause(0.05)  # the answers, and behind them the effect of the adapters
            app.clear_notifications()
            await pilot.pause(0.5)
            path = Path(app.save_screenshot(f"{name}.svg", path=str(HERE)))
            tidy(path)
            print(path.name)


def main() -> None:
    """Work on a copy of the demo with throw-away settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            os.environ[variable] = str(folder / variable)
        document = Path(shutil.copy(HERE.parent / "demo" / "harbour.dlm", folder))
        subprocess.run([sys.executable, "-m", "dlm_tui", "train", document, "--home", folder / "home"], check=True)
        asyncio.run(shoot(document, folder / "home"))


if __name__ == "__main__":
    main()
