"""Adapters that were trained elsewhere: read, matched to the base's module names, and checked against PEFT itself."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlm_tui.files import temporary_folder
from dlm_tui.model.adapters import (
    Adapter,
    AdapterError,
    check_embedding,
    check_fits,
    check_targets,
    load_peft_adapter,
    read_config,
    refuse_special,
    save_peft_adapter,
)
from dlm_tui.model.base import Base
from dlm_tui.model.mixed import MixedModel
from dlm_tui.model.modulated.base import Modulated
from dlm_tui.model.modulated.checkpoint import read_metadata
from dlm_tui.model.modulated.convert import to_adapter
from dlm_tui.model.modulated.lora import ModulatedLoRA
from dlm_tui.model.modulated.pissa import ModulatedPiSSA
from dlm_tui.progress import Progress
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import first_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LOGITS_TOLERANCE = 1e-4
"""Largest difference of any logit to a plain PEFT forward, relative to the largest logit (float32)."""
_MOST_CONFIG_BYTES = 1 << 20
_PROBE = "Dear neighbour, the ladder you lent me stands behind the shed again. Thank you kindly!"


@dataclass(frozen=True)
class Candidate:
    """An adapter that fits the base. `source` says where it came from, `form` is "peft" or "modulated".

    `difference` is the largest difference of any logit to the plain forward, relative to the largest logit;
    `renamed` how many modules had another prefix than the base's; `made_for` the base that its configuration names.
    """

    adapter: Adapter
    source: str
    form: str
    difference: float
    renamed: int
    made_for: str = ""


def read_candidate(path: Path, name: str, base: Base) -> Generator[Progress, None, Candidate]:
    """A PEFT directory, or a modulated checkpoint (one `.safetensors` file), as an adapter of this base.

    Two steps of the stage "import": read, and compared with the plain forward (PEFT's own for a PEFT directory).
    Raises AdapterError with one sentence for everything that cannot be applied exactly to this base.
    """
    yield Progress("import", 0, 2, f"reading {path.name}")
    form = "modulated" if path.is_file() else "peft"
    if form == "modulated":
        adapter, expected, probe = _read_modulated(path, name, base)
        renamed, made_for = 0, ""
    else:
        made_for = _refuse_other_base(path, base)
        adapter, renamed = _renamed(load_peft_adapter(path, name), base)
        check_fits(adapter, base)
        check_embedding(path, base)
        probe = _probe(base)
        yield Progress("import", 1, 2, "comparing with a plain PEFT forward")
        with _without_patterns(path, adapter, base) as folder:
            expected = _peft_logits(folder, base, probe) if not renamed else _merged_logits(adapter, base, probe)
    difference = _difference(adapter, base, probe, expected)
    if not math.isfinite(difference):
        raise AdapterError(
            f"the adapter in {path} makes logits that are not finite on {base.identity.id}: its weights are damaged, or"
            " of another base; it is not imported"
        )
    if not difference <= LOGITS_TOLERANCE:
        raise AdapterError(
            f"the adapter in {path} gives other logits here than in the library it was made with "
            f"(largest difference {difference:.1e} of the largest logit): it is not imported"
        )
    yield Progress("import", 2, 2, "the adapter answers as it does where it was made")
    return Candidate(adapter, str(path), form, difference, renamed, made_for)


def _refuse_other_base(path: Path, base: Base) -> str:
    """What the configuration says about its base and its vocabulary, before any tensor is read: the base's name."""
    file = path / CONFIG
    refuse_special(file)
    try:
        if file.stat().st_size > _MOST_CONFIG_BYTES:
            raise AdapterError(f"{file} is larger than {_MOST_CONFIG_BYTES >> 20} MiB, which no configuration is")
        config = json.loads(read_file(file))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not a PEFT directory: {CONFIG} cannot be read ({first_line(error)})") from None
    if isinstance(config, dict) and config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterError(f"the adapter in {path} is for the task {config['task_type']}, not for text generation")
    tokens = _added_tokens(path)
    if tokens is not None and tokens > base.vocab_size:
        raise AdapterError(
            f"the adapter in {path} was trained with a vocabulary of {tokens} tokens; {base.identity.id} has "
            f"{base.vocab_size}: resized embeddings are part of the adapter and cannot be mixed"
        )
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


def _added_tokens(path: Path) -> int | None:
    """The highest token id of the tokenizer beside the adapter plus one; None without one."""
    file = path / "tokenizer.json"
    refuse_special(file)
    try:
        data = json.loads(read_file(file))
        ids = [int(token["id"]) for token in data.get("added_tokens", ())]
        vocabulary = data["model"]["vocab"]
        if isinstance(vocabulary, dict):
            ids.append(max(vocabulary.values(), default=-1))
        else:
            ids.append(len(vocabulary) - 1)
        return max(ids) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _renamed(adapter: Adapter, base: Base) -> tuple[Adapter, int]:
    """The adapter with the base's own module names, where a wrapper had put another prefix before them.

    A name is matched by its longest ending that names exactly one module of the base, and all must share the match.
    """
    own = {module for module, _ in cast("Any", base.model).named_modules()}
    if all(module in own for module in adapter.modules):
        return adapter, 0
    found: dict[str, str] = {}
    for module in adapter.modules:
        match = _by_ending(module, own)
        if match is None:
            raise AdapterError(
                f"adapter {adapter.name} does not belong to {base.identity.id}: the base has no module {module}"
            )
        found[module] = match
    if len(set(found.values())) != len(found):
        raise AdapterError(f"adapter {adapter.name} does not belong to {base.identity.id}: two modules are the same")
    changed = sum(module != match for module, match in found.items())
    return replace(adapter, modules={found[module]: pair for module, pair in adapter.modules.items()}), changed


def _by_ending(module: str, own: set[str]) -> str | None:
    """The one module of the base that ends as `module` does, tried from the whole name to its last four parts."""
    parts = module.split(".")
    for start in range(len(parts) - 3):
        ending = ".".join(parts[start:])
        matches = [name for name in own if name == ending or name.endswith(f".{ending}")]
        if len(matches) == 1:
            return matches[0]
    return None


def _probe(base: Base) -> Tensor:
    ids = base.encode_raw(_PROBE, limit=32) or [0, 1, 2]
    return torch.tensor([ids], dtype=torch.long, device=base.device)


@contextlib.contextmanager
def _without_patterns(path: Path, adapter: Adapter, base: Base) -> Iterator[Path]:
    """The folder for PEFT to read; one with regular expressions as a copy that names every module instead.

    PEFT matches them by `re`, which may search without end.
    """
    config = read_config(path)
    if not config.has_patterns:
        yield path
        return
    check_targets(config, adapter, path)
    with temporary_folder("import") as copy:
        save_peft_adapter(adapter, copy, base.identity.id)
        yield copy


@torch.no_grad()
def _peft_logits(path: Path, base: Base, probe: Tensor) -> Tensor:
    """Logits [T, V] of PEFT's own forward. The base's modules are the same objects afterwards."""
    from peft import PeftModel

    noisy = logging.getLogger("peft")
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    wrapped: Any = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(
                cast("Any", base.model), str(path), is_trainable=False, torch_device=str(base.device)
            )
            return cast("Tensor", wrapped(input_ids=probe).logits[0].float().cpu())
    except Exception as error:  # the library raises many types for a broken folder
        raise AdapterError(f"PEFT cannot load the adapter in {path}: {first_line(error)}") from error
    finally:
        noisy.setLevel(before)
        if wrapped is not None:
            with contextlib.suppress(Exception):
                wrapped.unload()
        base.model.requires_grad_(False)


@torch.no_grad()
def _merged_logits(adapter: Adapter, base: Base, probe: Tensor) -> Tensor:
    """Logits [T, V] of the plain forward with the additions merged into the weights, which are put back."""
    kept: list[tuple[Any, Tensor]] = []
    try:
        for module, pair in adapter.modules.items():
            layer: Any = base.target_module(module)
            weight = cast("Tensor", layer.weight)
            delta = (pair.lora_B.double() @ pair.lora_A.double()) * pair.scale
            # GPT-2's Conv1D and embeddings keep their weight [in, out]
            turned = delta if isinstance(layer, nn.Linear) else delta.T
            kept.append((layer, weight))
            # a parameter of its own: an output layer that is tied to the embedding stays as it is
            layer.weight = nn.Parameter((weight.double().cpu() + turned).to(weight), requires_grad=False)
        return cast("Tensor", cast("Any", base.model)(input_ids=probe).logits[0].float().cpu())
    finally:
        for layer, weight in kept:
            layer.weight = weight


@torch.no_grad()
def _difference(adapter: Adapter, base: Base, probe: Tensor, expected: Tensor) -> float:
    """Largest |Δ logit| of the mixed model's solo view, relative to the largest logit."""
    model = MixedModel(base, {adapter.name: adapter})
    logits = model.backbone.logits(model.backbone.forward(probe, None, torch.ones(1, 1)))[0].float().cpu()
    width = min(logits.shape[-1], expected.shape[-1])
    largest = float(expected.abs().max()) or 1.0
    return float((logits[..., :width] - expected[..., :width]).abs().max()) / largest


def _read_modulated(path: Path, name: str, base: Base) -> tuple[Adapter, Tensor, Tensor]:
    """A modulated checkpoint: the adapter at c = 1, and the logits of the original wrapper on the probe."""
    metadata: Mapping[str, str] = read_metadata(path)
    loader: Any = ModulatedPiSSA if metadata.get("kind") == "pissa" else ModulatedLoRA
    modulated: Modulated = loader.from_checkpoint(base.model, path)
    adapter = to_adapter(modulated, name)
    check_fits(adapter, base)
    probe = _probe(base)
    with torch.no_grad(), modulated(base.model, c=1.0):
        expected = cast("Tensor", cast("Any", base.model)(input_ids=probe).logits[0].float().cpu())
    return adapter, expected, probe
