"""How an adapter is trained, and what its training chose: kept beside a version's weights in `tui_training.json`.

An addition of this program: other tools do not read the file, and a version without it is as valid as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from dlm_tui.errors import UsageError
from dlm_tui.files import write_atomic
from dlm_tui.losses import Loss
from dlm_tui.small_files import read_file
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.versions import current_version

Parameterization = Literal["lora", "pissa"]
Selection = Literal["s_only", "wanda", "act_only", "cho_rej_min_std"]
PARAMETERIZATIONS: tuple[Parameterization, ...] = ("lora", "pissa")
SELECTIONS: tuple[Selection, ...] = ("s_only", "wanda", "act_only", "cho_rej_min_std")
PAIR_SELECTION: Selection = "cho_rej_min_std"
"""Compares the answers of preference pairs."""
TEXT_SELECTIONS: tuple[Selection, ...] = ("wanda", "act_only")
"""Look at what flows into the layers on text: sections, or a prompt set."""
DEEP_ENOUGH = 0.05
"""A mean tail depth above this means that a score looked beyond the largest singular values."""

FILE = "tui_training.json"
_MOST_BYTES = 1 << 24
_LAYER = re.compile(r"(?P<stack>.*)\.layers\.(?P<number>[0-9]+)\.(?P<part>.+)")


class AdapterKind(msgspec.Struct, frozen=True, kw_only=True):
    """How an adapter is trained; None leaves a question to what was before, then to the document.

    `signed`: on preference pairs, chosen at +`coefficient` and rejected at −`coefficient`.
    """

    parameterization: Parameterization | None = None
    selection: Selection | None = None
    rank: int | None = None
    signed: bool | None = None
    coefficient: float | None = None


class KindChoices(msgspec.Struct, frozen=True, kw_only=True):
    """What a person chose for all adapters of a training, and for single ones, which counts more."""

    every: AdapterKind = AdapterKind()
    by_name: dict[str, AdapterKind] = {}

    def of(self, name: str) -> AdapterKind:
        """The choice for one adapter."""
        own = self.by_name.get(name, AdapterKind())
        return AdapterKind(
            **{
                field: getattr(self.every, field) if getattr(own, field) is None else getattr(own, field)
                for field in AdapterKind.__struct_fields__
            }
        )


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`tui_training.json`. `calibration` names the prompt set that a selection looked at, None for the own sections;
    `tail_depth` is that of every layer (see `tail_words`), {} for LoRA; `losses` are those of the last step of every
    phase, in order."""

    kind: AdapterKind = AdapterKind()
    words: str = ""
    calibration: str | None = None
    tail_depth: dict[str, float] = {}
    losses: list[Loss] = []

    @property
    def mean_tail_depth(self) -> float | None:
        """The mean over the layers; None where nothing was selected."""
        return mean_depth(self.tail_depth)


def write_training_record(folder: Path, record: TrainingRecord) -> None:
    """Into a version folder that is being filled. Raises OSError."""
    write_atomic(folder / FILE, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_training_record(folder: Path) -> TrainingRecord:
    """What is known of a version's training: of one from elsewhere only whether its configuration says PiSSA."""
    path = folder / FILE
    try:
        if not path.is_symlink():
            return msgspec.json.decode(read_file(path, _MOST_BYTES), type=TrainingRecord)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the weights are sound without it; the version's record of hashes tells what was damaged
    if _configuration(folder).get("dlm_parameterization") == "pissa":
        return TrainingRecord(kind=AdapterKind(parameterization="pissa"))
    return TrainingRecord()


def training_records(store: Store, names: Iterable[str]) -> dict[str, TrainingRecord]:
    """How the versions in force were trained; adapters without one are left out, and those whose pointer is damaged,
    of which others speak."""
    found = {}
    for name in names:
        try:
            version = current_version(store, name)
        except StoreError:
            continue
        if version is not None:
            found[name] = read_training_record(version.path)
    return found


def kind_words(
    parameterization: str, selection: str | None, rank: int | None, signed: bool | None, coefficient: float | None
) -> str:
    """`pissa wanda r8 ±2`."""
    parts = [
        parameterization,
        selection or "",
        f"r{rank}" if rank else "",
        f"±{coefficient or 1.0:g}" if signed else "",
    ]
    return " ".join(part for part in parts if part)


def check_kind(kind: AdapterKind, place: str) -> None:
    """Raises UsageError for a rank or a coefficient that means nothing; `place` begins the sentence."""
    if kind.rank is not None and not 1 <= kind.rank <= 4096:
        raise UsageError(f"{place}: the rank must be between 1 and 4096, not {kind.rank}")
    if kind.coefficient is not None and not 0.0 < kind.coefficient <= 100.0:
        raise UsageError(f"{place}: the coefficient must be above 0 and at most 100, not {kind.coefficient:g}")


def mean_depth(tail_depth: Mapping[str, float]) -> float | None:
    """The mean over the layers; None without any."""
    return sum(tail_depth.values()) / len(tail_depth) if tail_depth else None


def tail_words(selection: str | None, tail_depth: Mapping[str, float]) -> str:
    """The mean tail depth and how it is read; "" where nothing was selected.

    0 means that a selection took the r largest singular values of every layer, 1 the r smallest. A score that looks at
    activations should be above 0.05; else it chose as `s_only` would.
    """
    mean = mean_depth(tail_depth)
    if mean is None:
        return ""
    lead = f"tail depth {mean:.3f} over {len(tail_depth)} layers"
    if selection in (None, "s_only"):
        return f"{lead}: s_only takes the largest singular values"
    if collapsed_selection(selection, tail_depth):
        return f"{lead}, not above {DEEP_ENOUGH}: {selection} collapsed onto the largest singular values"
    return f"{lead}, above {DEEP_ENOUGH}: {selection} looks beyond the largest singular values"


def collapsed_selection(selection: str | None, tail_depth: Mapping[str, float]) -> bool:
    """Whether a score that looks at activations chose the largest singular values all the same."""
    mean = mean_depth(tail_depth)
    return mean is not None and selection not in (None, "s_only") and mean <= DEEP_ENOUGH


def tail_lines(tail_depth: Mapping[str, float]) -> list[str]:
    """The tail depth of every layer: a line per part of the layers, its values from the first layer to the last."""
    parts: dict[str, list[tuple[int, float]]] = {}
    for name, depth in tail_depth.items():
        match = _LAYER.fullmatch(name)
        part, number = (match["part"], int(match["number"])) if match else (name, 0)
        parts.setdefault(part, []).append((number, depth))
    return [f"{part}: {' '.join(f'{depth:.2f}' for _, depth in sorted(found))}" for part, found in parts.items()]


def _configuration(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        value = json.loads(read_file(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
