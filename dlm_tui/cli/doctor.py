"""`dlm-tui doctor`: what is installed, what is missing, where things are."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from dlm_tui import __version__
from dlm_tui.output import emit

_OPTIONAL = {
    "xllamacpp": "checks exports on a real llama.cpp: pip install 'dlm-tui[llama]'",
    "starlette": "answers OpenAI clients: pip install 'dlm-tui[serve]'",
    "textual_serve": "shows the workbench in a browser: pip install 'dlm-tui[web]'",
    "bitsandbytes": "8-bit optimisers, needs a GPU",
}
_PROGRAMS = {"ollama": "serves an exported model", "llama-server": "serves an exported model"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> int:
    """Print the report; exit 1 when something the program needs is missing."""
    report = examine(args.home)
    if args.json:
        emit(report)
    else:
        for line in _lines(report):
            sys.stdout.write(line + "\n")
    return 0 if report["ok"] else 1


def examine(home: str | None) -> dict[str, Any]:
    """Versions, device, folders, the embedded base, optional parts. Never raises for what is merely missing."""
    import torch

    from dlm_tui.assets import asset
    from dlm_tui.engine.stdio_transport import package_versions
    from dlm_tui.errors import DlmTuiError
    from dlm_tui.store import resolve_home

    problems = []
    try:
        base = asset("base")
        weights = base / "model.safetensors"
        size = weights.stat().st_size if weights.exists() else None
        if size is None:
            problems.append("the embedded base has no weights")
    except DlmTuiError as error:
        size = None
        problems.append(str(error))
    folder = resolve_home(home)
    return {
        "ok": not problems,
        "problems": problems,
        "version": __version__,
        "versions": package_versions(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "bfloat16": _has_bfloat16(),
        "home": str(folder),
        "stores": len(list((folder / "store").glob("*"))) if (folder / "store").is_dir() else 0,
        "embedded_base_bytes": size,
        "model_cache": str(_model_cache()),
        "optional": {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL},
        "programs": {name: shutil.which(name) for name in _PROGRAMS},
    }


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def _model_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"dlm-tui     {report['version']}  ({'ready' if report['ok'] else 'not ready'})"]
    lines += [f"problem     {text}" for text in report["problems"]]
    versions = "  ".join(f"{name} {value}" for name, value in report["versions"].items() if name != "dlm-tui")
    lines.append(f"packages    {versions}")
    lines.append(f"device      {report['device']}, {report['cores']} cores, {report['threads']} threads")
    lines.append(f"home        {report['home']}  ({report['stores']} stores)")
    lines.append(f"models      {report['model_cache']}")
    lines.append(f"base        {report['embedded_base_bytes'] or 0:,} bytes embedded")
    for name, present in report["optional"].items():
        lines.append(f"{name:<11} {'present' if present else 'missing: ' + _OPTIONAL[name]}")
    for name, path in report["programs"].items():
        lines.append(f"{name:<11} {path or 'not on the PATH: ' + _PROGRAMS[name]}")
    return lines
