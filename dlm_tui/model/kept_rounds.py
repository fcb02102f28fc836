"""Whether the versions that a store keeps of its adapters can be mixed exactly, as `tone@1` beside `tone`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.adapters import load_peft_adapter
from dlm_tui.model.modulated.rounds import Composition, composed
from dlm_tui.store import AdapterVersion, Store, current_version
from dlm_tui.store.version_record import read_record
from dlm_tui.store.versions import all_versions

MOST = 4
"""At most so many versions of one adapter are looked at: the one in force and the newest others."""


@dataclass(frozen=True)
class KeptRounds:
    """One adapter's versions. `found` is None where they could not be composed at all; `text` then says why."""

    adapter: str
    found: Composition | None
    text: str

    @property
    def damaged(self) -> bool:
        """Whether mixing them gives wrong answers."""
        return self.found is not None and not self.found.exact


def kept_rounds(store: Store, names: Sequence[str]) -> list[KeptRounds]:
    """Every adapter that has a version in force and others beside it; reads only, and needs no base."""
    looked = []
    for name in names:
        try:
            one = _of(store, name)
        except DlmTuiError as error:
            one = KeptRounds(name, None, str(error))
        if one is not None:
            looked.append(one)
    return looked


def _of(store: Store, name: str) -> KeptRounds | None:
    """The version in force at 1, the others at 1/2, 1/3, …, so that one taken for another is seen."""
    current = current_version(store, name)
    if current is None:
        return None
    others = [one for one in reversed(all_versions(store, name)) if one.version != current.version and _finished(one)]
    if not others:
        return None
    rounds = [load_peft_adapter(current.path, name)]
    for version in others[: MOST - 1]:
        rounds.append(replace(load_peft_adapter(version.path, name), name=f"{name}@{version.version}"))
    found = composed([(one, 1 / place) for place, one in enumerate(rounds, start=1)])
    return KeptRounds(name, found, found.sentence) if found is not None else None


def _finished(version: AdapterVersion) -> bool:
    """Whether its training came to an end; what one that was killed left is said elsewhere."""
    record = read_record(version.path)
    return any(version.path.iterdir()) and (record is None or record["state"] != "filling")
