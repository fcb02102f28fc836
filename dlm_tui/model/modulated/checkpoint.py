"""The checkpoint form of modulated adapters: safetensors, keys `<part>.<module with __ for dots>`, string
metadata.

The metadata keys r, alpha, targets (joined by commas), layer_range, kind and selection_score are the
established form; the keys `targets_json` and `exclude_json` are added because a regular expression may
hold a comma.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dlm_tui.files import write_atomic
from dlm_tui.model.modulated.base import TargetSpec
from dlm_tui.model.modulated.targets import (
    DEFAULT_EXCLUDE,
    WHOLE_DEPTH,
    ModulationError,
    match_targets,
    range_readings,
)
from dlm_tui.small_files import require_regular

Parts = dict[str, dict[str, Tensor]]
"""part ("A", "U", …) -> encoded module name -> tensor."""


def encode_name(module: str) -> str:
    """Module names as they stand in keys: dots become two underscores."""
    return module.replace(".", "__")


def write_checkpoint(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], spec: TargetSpec, metadata: Mapping[str, str]
) -> None:
    """Write `parts` (part -> module name -> tensor) atomically. Raises OSError when it cannot be written."""
    tensors = {
        f"{part}.{encode_name(module)}": tensor.detach().cpu().contiguous()
        for part, by_module in parts.items()
        for module, tensor in by_module.items()
    }
    described = {
        "targets": ",".join(spec.targets),
        "targets_json": json.dumps(list(spec.targets)),
        "exclude_json": json.dumps(list(spec.exclude)),
        "layer_range": f"{spec.layer_range[0]},{spec.layer_range[1]}",
        **metadata,
    }
    write_atomic(path, save(tensors, metadata=described))


def read_checkpoint(path: Path, part_names: Sequence[str]) -> tuple[Parts, dict[str, str]]:
    """The tensors by part, on the CPU, and the metadata.

    Raises ModulationError when the file is missing, not safetensors, or holds a key of none of `part_names`.
    """
    parts: Parts = {part: {} for part in part_names}
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            for key in handle.keys():  # noqa: SIM118 - not a mapping
                part, _, module = key.partition(".")
                if part not in parts or not module:
                    raise ModulationError(f"{path.name} holds an unexpected tensor {key!r}")
                parts[part][module] = handle.get_tensor(key)
    except (OSError, SafetensorError) as problem:
        raise ModulationError(f"{path} is not a readable adapter checkpoint: {problem}") from None
    return parts, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Only the metadata. Raises ModulationError when the file is missing or not safetensors."""
    try:
        require_regular(path)
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except (OSError, SafetensorError) as problem:
        raise ModulationError(f"{path} is not a readable adapter checkpoint: {problem}") from None


def read_spec(metadata: Mapping[str, str], path: Path) -> TargetSpec:
    """How the targets were chosen. Raises ModulationError when the metadata does not say it."""
    try:
        targets = _strings(metadata["targets_json"]) if "targets_json" in metadata else metadata["targets"].split(",")
        exclude = _strings(metadata["exclude_json"]) if "exclude_json" in metadata else list(DEFAULT_EXCLUDE)
        low, high = (float(part) for part in metadata.get("layer_range", "{},{}".format(*WHOLE_DEPTH)).split(","))
    except (KeyError, ValueError) as problem:
        raise ModulationError(f"the metadata of {path.name} does not say which layers it targets ({problem})") from None
    return TargetSpec(tuple(targets), tuple(exclude), (low, high))


def checkpoint_layers(model: nn.Module, spec: TargetSpec, parts: Parts) -> tuple[dict[str, nn.Linear], TargetSpec]:
    """The layers a checkpoint's tensors belong to, and the spec that chooses them here.

    Its layer range may have been counted over the matched layers alone: the reading that fits the tensors is taken,
    and then written down layer by layer, so that it is read the same everywhere. Raises ModulationError.
    """
    held = {module for by_module in parts.values() for module in by_module}
    if spec.layer_range != WHOLE_DEPTH:
        for place, layers in enumerate(range_readings(model, spec.targets, spec.exclude, spec.layer_range)):
            if {encode_name(name) for name in layers} == held:
                named = TargetSpec(tuple(f"^{re.escape(name)}$" for name in layers), spec.exclude, WHOLE_DEPTH)
                return layers, named if place else spec
    return match_targets(model, spec.targets, spec.exclude, spec.layer_range), spec


def _strings(text: str) -> list[str]:
    value = json.loads(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of strings was expected")
    return value


def number(metadata: Mapping[str, str], key: str, path: Path) -> float:
    """A metadata number. Raises ModulationError when it is missing or not one."""
    try:
        return float(metadata[key])
    except (KeyError, ValueError):
        raise ModulationError(f"the metadata of {path.name} has no number {key!r}") from None


def align(parts: Parts, names: Sequence[str], path: Path) -> dict[str, dict[str, Tensor]]:
    """The same tensors by real module name, after checking that checkpoint and adapter have the same targets.

    Raises ModulationError saying how many tensors would be dropped and how many slots left empty.
    """
    encoded = {encode_name(name): name for name in names}
    dropped = sum(1 for by_module in parts.values() for module in by_module if module not in encoded)
    empty = sum(1 for by_module in parts.values() for module in encoded if module not in by_module)
    if dropped or empty:
        raise ModulationError(
            f"the targets of {path.name} are not those of this adapter: {dropped} trained tensors would be dropped "
            f"and {empty} left empty"
        )
    return {part: {encoded[module]: tensor for module, tensor in by.items()} for part, by in parts.items()}


def check_pairs(
    lora_As: Mapping[str, Tensor], lora_Bs: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], path: Path
) -> None:
    """Each pair must be lora_A [r, d_in] and lora_B [d_out, r]. Raises ModulationError naming the layer."""
    for name, (d_in, d_out) in shapes.items():
        lora_A, lora_B = lora_As[name], lora_Bs[name]
        if (
            lora_A.ndim != 2
            or lora_B.ndim != 2
            or lora_A.shape[1] != d_in
            or lora_B.shape[0] != d_out
            or len(lora_A) != lora_B.shape[1]
        ):
            raise ModulationError(
                f"{path.name} holds {tuple(lora_A.shape)} and {tuple(lora_B.shape)} for {name!r}, "
                f"a layer from {d_in} to {d_out} values"
            )
