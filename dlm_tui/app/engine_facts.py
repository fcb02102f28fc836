"""What runs the model: device, numbers, tier, threads, memory, parameters, adapters; as rows of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_tui.app.progress import time_text
from dlm_tui.engine.protocol import Opened, Status

_TIERS = {
    "fused": "fused: the fast path, checked against transformers when the base was loaded",
    "onednn": "onednn: transformers' own forward with quicker matrix products, for every architecture",
    "reference": "reference: transformers' own forward, for every architecture",
}


def engine_rows(opened: Opened, status: Status, names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) per fact; `names` are the adapters in declared order."""
    trained = [name for name in names if name in opened.adapters]
    return [
        ("base", f"{opened.base}{opened.kept and f', {opened.kept}'}"),
        ("parameters", f"{opened.parameters:,}"),
        ("adapters", ", ".join(_adapter(name, opened.versions) for name in trained) or "none trained yet"),
        ("gate", f"{opened.gate}{f': {opened.gate_reason}' if opened.gate_reason else ''}"),
        ("unlike", f"prompts are marked by {' and '.join(status.ood)}" if status.ood else "no prompt is marked"),
        ("device", f"{status.device}, answers in {status.dtype}, gates in float32"),
        ("tier", _TIERS.get(status.tier, status.tier) + (f" ({status.tier_reason})" if status.tier_reason else "")),
        ("threads", str(status.threads)),
        ("memory", f"{bytes_text(status.rss)} resident in the engine's process" if status.rss else "not known here"),
        ("kept", f"{bytes_text(status.cache)} of keys and values for the next prompt and answer"),
        ("running", f"for {time_text(status.uptime)}"),
    ]


def _adapter(name: str, versions: Mapping[str, int]) -> str:
    return f"{name} v{versions[name]}" if name in versions else name


def bytes_text(count: int) -> str:
    """A number of bytes in binary units with three digits: `812 MiB`."""
    size, units = float(count), ("bytes", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if size < 999.5 or unit == units[-1]:
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.{max(0, 3 - len(str(int(size))))}f} {unit}"
