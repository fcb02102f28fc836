"""A small part of the campaign; all of it is `python -m tests.faults.campaign`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.small_store import SmallStore
from tests.faults.stepping import KILLED, run_child


@pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
def test_nothing_is_lost_mixed_silent_raw_or_hangs(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=13)
    campaign.kills(20)
    campaign.mixed(4)
    campaign.damaged(20)
    campaign.full(6)
    assert {kind: lines for kind, lines in campaign.tally.found.items() if lines} == {}
    assert campaign.tally.cases["kills"] >= 15


@pytest.mark.skipif(sys.platform == "win32", reason="children are forked")
def test_two_pointers_flip_together_whenever_the_process_is_killed(tmp_path: Path) -> None:
    """Every step of going back to the versions before: all adapters are old, or all are new."""
    campaign = Campaign(tmp_path, seed=1)
    seen = set()
    for step in range(8, 60):
        small = campaign.fresh()
        ended = run_child(lambda told, small=small: small.use(told), kill_at=step)
        found: list[str] = []
        judged = run_child(lambda told, small=small: [told(text) for text in [*small.mixed(), _versions(small)]])
        assert judged.code == 0, judged.error
        found, (versions,) = judged.acknowledged[:-1], judged.acknowledged[-1:]
        assert found == [], f"step {step}"
        seen.add(versions)
        if ended.code != KILLED:
            break
    assert seen == {"1 1", "2 2"}


def _versions(small: SmallStore) -> str:
    from dlm_tui.store import adapter_versions
    from tests.faults.small_store import NAMES

    return " ".join(str(version.version) for version in adapter_versions(small.store, NAMES).values())
