"""What the wire costs: an empty request to the engine child and back, and a keystroke through all of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import GetStatus, Open, Route
from tests.benchmarks.harness import Row
from tests.interop.peer_fixture import peer_root

_TEXT = "Say hello to the new neighbour and thank them for the cake. "


def rows(quick: bool) -> list[Row]:
    """Round trips of one child with the peer's routed document open, p50 and p99 in milliseconds."""
    empty, keystrokes = asyncio.run(_measure(200 if quick else 2000, 60 if quick else 240))
    return [
        _row("engine round trip, empty request", empty),
        _row("engine round trip, one more character of a prompt → weights (0.8 M parameters)", keystrokes),
    ]


async def _measure(requests: int, characters: int) -> tuple[list[float], list[float]]:
    client = EngineClient(threads=1)
    await client.start()
    try:
        root: Path = peer_root()
        await client.ask(Open(document=str(root / "routed.dlm"), home=str(root / "home"), base=str(root / "base")))
        for _ in range(50):
            await client.ask(GetStatus())
        empty = [await _timed(client, GetStatus()) for _ in range(requests)]
        text = (_TEXT * (characters // len(_TEXT) + 1))[:characters]
        typed = [await _timed(client, Route(prompt=text[:end])) for end in range(1, characters + 1)]
    finally:
        await client.close()
    return empty, typed


async def _timed(client: EngineClient, request: GetStatus | Route) -> float:
    start = time.perf_counter()
    await client.ask(request)
    return time.perf_counter() - start


def _row(name: str, samples: list[float]) -> Row:
    cuts = statistics.quantiles(samples, n=100)
    return Row(
        name=name,
        ours=statistics.median(samples) * 1e3,
        baseline=cuts[98] * 1e3,
        baseline_name="its own p99",
        ratio=None,
        goal="report p50, p99",
        met=None,
        exact=f"p50 and p99 of {len(samples)} requests",
    )
