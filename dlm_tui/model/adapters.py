"""Low-rank adapters as pairs per linear layer, read from and written to PEFT directories."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import json_bytes, write_atomic
from dlm_tui.model.base import Base
from dlm_tui.patterns import BoundedPatterns, PatternError
from dlm_tui.small_files import read_file, require_regular
from dlm_tui.system_errors import cause, first_line

_LARGEST_SCALE = 1e6
PREFIX = "base_model.model."
_NAME = re.compile(r"[\w.-]*")
_EVERY_LINEAR = "all-linear"
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_TOKEN_KEY = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.default)?")
# PEFT writes the base's embedding beside the pair, although it is not changed.
_OWN_EMBEDDING = ".base_layer.weight"
# These keep the base as it is; all other named initialisations replace the base weight by a residual.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal")


_T = TypeVar("_T")
Count = Annotated[int, msgspec.Meta(ge=1)]


class PeftConfig(msgspec.Struct, frozen=True):
    """The fields of `adapter_config.json` that decide what an adapter does, with their types; others are not read."""

    r: Count = 8
    lora_alpha: float = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, Count] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = False
    peft_type: str = "LORA"
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    use_dora: bool | None = False
    lora_bias: bool | None = False
    use_qalora: bool | None = False
    modules_to_save: list[str] | str | None = None
    layer_replication: list[list[int]] | None = None
    target_parameters: list[str] | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    alora_invocation_tokens: list[int] | None = None
    arrow_config: dict[str, Any] | None = None
    ensure_weight_tying: bool | None = False
    dlm_parameterization: str = "lora"

    @property
    def has_patterns(self) -> bool:
        """Whether anything in it is a regular expression that is more than a name."""
        given = (self.target_modules, self.exclude_modules, self.layers_pattern)
        texts = [text for one in given for text in ([one] if isinstance(one, str) else one or ())]
        texts += [*(self.rank_pattern or ()), *(self.alpha_pattern or ())]
        return not all(_NAME.fullmatch(text) for text in texts)


class AdapterError(DlmTuiError):
    """An adapter that cannot be read, or that this program cannot apply exactly."""


@dataclass(frozen=True)
class LowRank:
    """The addition `scale · lora_B @ lora_A` to one linear layer: `lora_A` [r, in], `lora_B` [out, r].

    With `tokens` the layer is the token embedding: a token id stands for the column of `lora_A` [r, vocabulary] that a
    one-hot input would choose. A tied output layer keeps the base's weights.
    """

    lora_A: Tensor
    lora_B: Tensor
    scale: float
    tokens: bool = False

    @property
    def rank(self) -> int:
        return int(self.lora_A.shape[0])


@dataclass(frozen=True)
class Adapter:
    """One named adapter: module name (as in `base.model.named_modules()`) → its pair."""

    name: str
    modules: Mapping[str, LowRank] = field(repr=False)
    path: Path | None = None
    version: int | None = None
    parameterization: str = "lora"

    @property
    def rank(self) -> int:
        """The largest rank of any module, 0 for an adapter without modules."""
        return max((pair.rank for pair in self.modules.values()), default=0)

    @property
    def bytes(self) -> int:
        """Memory of the pairs."""
        return sum(t.numel() * t.element_size() for pair in self.modules.values() for t in (pair.lora_A, pair.lora_B))


def load_peft_adapter(path: Path, name: str, base: Base | None = None, version: int | None = None) -> Adapter:
    """Read a PEFT LoRA directory (`adapter_config.json`, `adapter_model.safetensors`) as float32 pairs on the CPU.

    Scale is alpha/r, with rsLoRA alpha/√r, with rank and alpha patterns resolved per module as PEFT does. With `base`
    every module is checked to exist there with these dimensions. Raises AdapterError for anything that a low-rank
    pair per layer does not express exactly (DoRA, biases, modules_to_save, …) and for non-finite weights.
    """
    config = read_config(path)
    _refuse_unsupported(config, path)
    tensors = _read_tensors(path)
    if base is not None:
        _refuse_other_embedding(tensors, base, path)
    halves: dict[str, dict[str, Tensor]] = {}
    of_tokens = set()
    for key, tensor in tensors.items():
        if key.endswith(_OWN_EMBEDDING):
            continue
        module, side, tokens = _split_key(key, path)
        if tokens:
            of_tokens.add(module)
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"adapter {name} in {path} has weights that are not finite in {module}")
        halves.setdefault(module, {})[side] = tensor.to(torch.float32).contiguous()
    if not halves:
        raise AdapterError(f"adapter {name} in {path} has no low-rank weights")
    if of_tokens and config.ensure_weight_tying:
        raise AdapterError(
            f"the adapter in {path} changes the output layer with the embedding (ensure_weight_tying), and cannot be"
            " mixed exactly"
        )
    bounded = BoundedPatterns()
    modules = {
        module: _pair(module, pair, config, bounded, name, path, tokens=module in of_tokens)
        for module, pair in sorted(halves.items(), key=_natural)
    }
    adapter = Adapter(name, modules, path, version, config.dlm_parameterization)
    if base is not None:
        check_fits(adapter, base)
    return adapter


def check_embedding(path: Path, base: Base) -> None:
    """Raise AdapterError where a PEFT directory brings an embedding of its own that is not that of `base`."""
    _refuse_other_embedding(_read_tensors(path), base, path)


def check_fits(adapter: Adapter, base: Base) -> None:
    """Raise AdapterError unless every module of `adapter` is a linear layer of `base` with these dimensions."""
    for module, pair in adapter.modules.items():
        if not base.in_decoder(module):
            raise AdapterError(
                f"adapter {adapter.name} does not belong to {base.identity.id}: its decoder has no module {module}"
            )
        try:
            layer = base.target_module(module)
        except KeyError:
            raise AdapterError(
                f"adapter {adapter.name} does not belong to {base.identity.id}: the base has no module {module}"
            ) from None
        if pair.tokens and layer is not cast("Any", base.model).get_input_embeddings():
            raise AdapterError(f"adapter {adapter.name} changes {module}, which is not the base's token embedding")
        shape = embedding_shape(layer) if pair.tokens else layer_shape(layer)
        wanted = (int(pair.lora_B.shape[0]), int(pair.lora_A.shape[1]))
        if shape != wanted:
            raise AdapterError(
                f"adapter {adapter.name} does not belong to {base.identity.id}: {module} is {shape} (out, in)"
                f" in the base but {wanted} in the adapter"
            )


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, also of GPT-2's Conv1D. Raises AdapterError for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return int(weight.shape[1]), int(weight.shape[0])
    raise AdapterError(f"a module of type {type(module).__name__} cannot carry a low-rank addition")


def embedding_shape(module: nn.Module) -> tuple[int, int]:
    """(width, vocabulary) of a token embedding. Raises AdapterError for other modules."""
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return module.embedding_dim, module.num_embeddings
    raise AdapterError(f"a module of type {type(module).__name__} cannot carry an addition per token")


def save_peft_adapter(
    adapter: Adapter,
    path: Path,
    base_id: str,
    *,
    dropout: float = 0.0,
    target_modules: Iterable[str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write an adapter as a PEFT LoRA directory that PEFT loads to the same numbers.

    The most common rank and alpha become `r` and `lora_alpha`, the others patterns. `target_modules` defaults to the
    full module names, which select exactly these layers. `extra` adds keys to the configuration. Raises AdapterError
    for an empty adapter and for weights that are not finite; OSError when the disk is full.
    """
    if not adapter.modules:
        raise AdapterError(f"adapter {adapter.name} has no modules to save")
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for module, pair in adapter.modules.items():
        if not (torch.isfinite(pair.lora_A).all() and torch.isfinite(pair.lora_B).all()):
            raise AdapterError(f"adapter {adapter.name} has weights that are not finite in {module}")
        key_A, key_B = pair_keys(module, pair.tokens)
        tensors[key_A] = pair.lora_A.detach().cpu().clone()
        tensors[key_B] = pair.lora_B.detach().cpu().clone()
        alphas[module] = _whole(pair.scale * pair.rank)
    ranks = {module: pair.rank for module, pair in adapter.modules.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "base_model_name_or_path": base_id,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "target_modules": sorted(target_modules or adapter.modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **(extra or {}),
    }
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomic(path / "adapter_config.json", json_bytes(config))


def pair_keys(module: str, tokens: bool) -> tuple[str, str]:
    """The names that PEFT gives a module's `lora_A` and `lora_B` in a file."""
    middle, end = ("lora_embedding_", "") if tokens else ("lora_", ".weight")
    return f"{PREFIX}{module}.{middle}A{end}", f"{PREFIX}{module}.{middle}B{end}"


def pattern_value(pattern: Mapping[str, _T], module: str, default: _T, bounded: BoundedPatterns | None = None) -> _T:
    """PEFT's rule: the first key that, as a regular expression, matches the module name or an end of it after a dot.

    Raises PatternError for a key that is none, or that takes longer than `bounded` (default: a second) allows.
    """
    bounded = bounded or BoundedPatterns()
    for key, value in pattern.items():
        if key == module:
            return value
        bounded.check(key)
        if bounded.search(rf"^(.*\.)?({key})$", module):
            return value
    return default


def _pair(
    module: str,
    halves: dict[str, Tensor],
    config: PeftConfig,
    bounded: BoundedPatterns,
    name: str,
    path: Path,
    *,
    tokens: bool,
) -> LowRank:
    if set(halves) != {"A", "B"}:
        raise AdapterError(f"adapter {name} in {path} has only one half of {module}")
    lora_A, lora_B = halves["A"], halves["B"]
    if lora_A.dim() != 2 or lora_B.dim() != 2 or lora_B.shape[1] != lora_A.shape[0]:
        raise AdapterError(
            f"adapter {name} in {path} has mismatched shapes in {module}: "
            f"{tuple(lora_A.shape)} and {tuple(lora_B.shape)}"
        )
    try:
        rank = pattern_value(config.rank_pattern or {}, module, config.r, bounded)
        alpha = pattern_value(config.alpha_pattern or {}, module, config.lora_alpha, bounded)
    except PatternError as error:
        raise AdapterError(f"adapter {name} in {path} cannot be read: {error}") from error
    if rank != lora_A.shape[0]:
        raise AdapterError(
            f"adapter {name} in {path} declares rank {rank} for {module} but its weights have rank {lora_A.shape[0]}"
        )
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    if not math.isfinite(scale) or abs(scale) > _LARGEST_SCALE:
        raise AdapterError(
            f"adapter {name} in {path} has lora_alpha {alpha!r} at rank {rank} for {module}, which no training writes;"
            " adapter_config.json is damaged"
        )
    return LowRank(lora_A, lora_B, scale, tokens)


def read_config(path: Path) -> PeftConfig:
    """The configuration of a PEFT directory. Raises AdapterError."""
    file = path / "adapter_config.json"
    refuse_special(file)
    try:
        return msgspec.json.decode(read_file(file), type=PeftConfig)
    except msgspec.ValidationError as error:
        raise AdapterError(f"{file} is not an adapter's configuration: {error}") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is not a readable adapter folder: {first_line(error)}") from error


def refuse_special(file: Path) -> None:
    """Raise AdapterError for a pipe, a device, a folder: opening one may wait for ever, or never end."""
    try:
        require_regular(file)
    except FileNotFoundError:
        pass  # whoever reads it says what is missing
    except OSError as error:
        raise AdapterError(f"{file} is no file that can be read: {cause(error)}") from None


def check_targets(config: PeftConfig, adapter: Adapter, path: Path) -> None:
    """Raise AdapterError where PEFT would leave a module of `adapter` out, by patterns that may take a second."""
    bounded, targets, excluded = BoundedPatterns(), config.target_modules, config.exclude_modules
    try:
        for module in adapter.modules:
            leave_out = isinstance(excluded, str) and bounded.search(rf"^(?:{excluded})$", module)
            if isinstance(targets, str) and targets != _EVERY_LINEAR:
                leave_out = leave_out or not bounded.search(rf"^(?:{targets})$", module)
            if leave_out:
                raise AdapterError(f"the adapter in {path} has weights for {module}, which its own patterns leave out")
    except PatternError as error:
        raise AdapterError(f"the adapter in {path} cannot be read: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    file = path / "adapter_model.safetensors"
    if not file.is_file() and (path / "adapter_model.bin").is_file():
        raise AdapterError(f"{path} has only pickled weights, which can run code when read; save it as safetensors")
    refuse_special(file)
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own untyped error beside OSError
        raise AdapterError(f"{file} cannot be read: {first_line(error)}") from error


def _refuse_unsupported(config: PeftConfig, path: Path) -> None:
    init = config.init_lora_weights
    problems = (
        (config.peft_type != "LORA", f"is of type {config.peft_type}, not LORA"),
        (bool(config.use_dora), "uses DoRA, which is not a plain low-rank addition"),
        (config.bias != "none" or bool(config.lora_bias), "has trained biases"),
        (bool(config.modules_to_save), "replaces whole modules (modules_to_save)"),
        (bool(config.layer_replication), "replicates layers of the base"),
        (bool(config.target_parameters), "targets bare parameters (target_parameters)"),
        (bool(config.trainable_token_indices), "has trained token embeddings"),
        (bool(config.alora_invocation_tokens), "is active only after invocation tokens (aLoRA)"),
        (bool(config.use_qalora), "uses QALoRA"),
        (config.arrow_config is not None, "routes between adapters of its own (Arrow)"),
        (
            isinstance(init, str) and init not in _HARMLESS_INITS,
            f"was trained on a changed base (init_lora_weights={init!r}); convert it to a plain LoRA",
        ),
    )
    for holds, reason in problems:
        if holds:
            raise AdapterError(f"the adapter in {path} {reason}, and cannot be mixed exactly")


def _split_key(key: str, path: Path) -> tuple[str, str, bool]:
    """Module, A or B, and whether the pair is one of the token embedding."""
    bare = key.removeprefix(PREFIX)
    if match := _TOKEN_KEY.fullmatch(bare):
        return match["module"], match["side"], True
    if match := _KEY.fullmatch(bare):
        return match["module"], match["side"], False
    if bare.endswith((".embed_tokens.weight", ".wte.weight", "lm_head.weight")):
        raise AdapterError(f"the adapter in {path} brings a whole embedding ({key}), and cannot be mixed exactly")
    raise AdapterError(f"the adapter in {path} has {key}, which is not a low-rank pair of a layer")


def _refuse_other_embedding(tensors: Mapping[str, Tensor], base: Base, path: Path) -> None:
    own = cast("Tensor", cast("Any", base.model).get_input_embeddings().weight)
    for key, tensor in tensors.items():
        if not key.endswith(_OWN_EMBEDDING):
            continue
        if own.is_meta or tensor.shape != own.shape or not torch.equal(tensor, own.detach().cpu().to(tensor.dtype)):
            raise AdapterError(
                f"the adapter in {path} brings another embedding than the base's ({key}), and cannot be mixed exactly"
            )


def _natural(item: tuple[str, Any]) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]


def _whole(alpha: float) -> float:
    """Alphas that are whole numbers are written as such, as PEFT itself does."""
    return int(alpha) if alpha == int(alpha) else alpha
