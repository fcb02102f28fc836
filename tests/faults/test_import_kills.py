"""An import killed at any file-system step leaves the document readable and the adapters as before or as after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_killed_import_changes_nothing_or_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.test_import_kills", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 20


def main(folder: Path) -> int:
    """An import killed at every third of its steps, until it ends before it is killed; how many kills that were."""
    from dlm_tui.document import load
    from dlm_tui.model.adapters import load_peft_adapter
    from dlm_tui.progress import run_to_end
    from dlm_tui.store import Store, current_version, store_lock
    from dlm_tui.store.version_record import verify_version
    from dlm_tui.training.import_adapter import import_adapter
    from tests.faults.version_kills import killed_at
    from tests.interop.test_adapter_import import KINDS, document, peft_folder
    from tests.tiny_models import tiny_base

    base = tiny_base(folder / "base", "llama")
    source = peft_folder(base, folder / "theirs", **KINDS["attention"])
    for step in count(1, 3):
        work = folder / f"work-{step}"
        work.mkdir()
        path = document(work, base)
        before = path.read_bytes()
        killed = killed_at(
            step, lambda path=path: run_to_end(import_adapter(str(source), "facts", path, path.parent / "home", base))
        )
        store = Store(work / "home", load(path).dlm_id)
        if store.root.exists():
            with store_lock(store, 5.0):
                pass
        version = current_version(store, "facts")
        if version is not None:
            verify_version(store, version)
            load_peft_adapter(version.path, "facts", base)
            assert load(path).adapter_names == ("tone", "facts")
        else:
            assert killed and (path.read_bytes() == before or load(path).adapter_names == ("tone", "facts"))
        run_to_end(import_adapter(str(source), "facts", path, work / "home", base, replace=True))
        assert current_version(store, "facts") is not None
        shutil.rmtree(work)
        if not killed:
            break
    return step // 3


if __name__ == "__main__":
    print(json.dumps({"kills": main(Path(sys.argv[1]))}))
