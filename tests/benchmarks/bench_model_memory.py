"""Peak memory of the base alone and of the base with eight adapters, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.harness import Row, adapters, skipped, smol_folder

_CHILD = """
import json, sys
from pathlib import Path
import torch
from dlm_tui.model.adapters import load_peft_adapter
from dlm_tui.model.base import load_base
from dlm_tui.model.generation import generate
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.progress import drain
from dlm_tui.model.registry import resolve_base
from dlm_tui.model.sampling import Sampling

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

def status(field):
    # getrusage would count what the parent process had before it started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

before = status("VmRSS")
base = drain(load_base(resolve_base("hf:bench/smol", Path(sys.argv[1])), device="cpu"))
prompt = list(range(5, 69))
if sys.argv[2:]:
    model = MixedModel(base, {Path(p).name: load_peft_adapter(Path(p), Path(p).name, base) for p in sys.argv[2:]})
    mix = {name: 1 / len(model.names) for name in model.names}
    drain(generate(model, prompt, [mix], Sampling(max_tokens=8), stop_ids=()))
else:
    with torch.no_grad():
        cache = base.model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values
        for _ in range(8):
            base.model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
print(json.dumps([before, status("VmHWM")]))
"""


def rows(quick: bool) -> list[Row]:
    """One row: what base + 8 adapters may take is base + the adapters' own bytes + 10 %."""
    if not Path("/proc/self/status").is_file():
        return [skipped("peak memory: base + 8 adapters", "base alone", "≤ 1.1×", "this system has no /proc")]
    places = peers.folders(adapters(8))
    own = sum(adapter.bytes for adapter in adapters(8).values())
    before, alone = _peak()
    _, together = _peak(*(str(path) for path in places.values()))
    # the libraries' own memory is the same in both and would flatter the ratio
    base_bytes, ours_bytes = alone - before, together - before
    allowed = base_bytes + own
    ratio = ours_bytes / allowed
    return [
        Row(
            "peak memory: base + 8 adapters",
            ours_bytes / 1e6,
            allowed / 1e6,
            f"plain transformers base ({base_bytes / 1e6:.0f} MB) + adapters ({own / 1e6:.0f} MB)",
            ratio,
            "≤ 1.1×",
            ratio <= 1.1,
            "peak resident memory above an empty process with the libraries loaded",
            "MB",
        )
    ]


def _peak(*paths: str) -> tuple[int, int]:
    """Peak resident bytes of a child before loading and at its end."""
    command = [sys.executable, "-c", _CHILD, str(smol_folder()), *paths]
    before, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return int(before), int(peak)
