"""A gate as it is used, and its files: read, checked, written as one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dlm_tui.document import document_side_file
from dlm_tui.files import remove, scratch_sibling, sha256_file, write_atomic
from dlm_tui.gate.network import GateNetwork
from dlm_tui.gate.ood import OodDetector
from dlm_tui.small_files import read_file
from dlm_tui.store import (
    GateConfig,
    GateFileError,
    Store,
    change,
    check_gate_files,
    read_gate_config,
    store_lock,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.former_gates import GateAt, forget_oldest, stage_former
from dlm_tui.store.gate_files import (
    CONFIG_NAME,
    OOD_NAME,
    RECORD_FORMAT,
    WEIGHTS_NAME,
    check_novelty_file,
    matching_record,
    weight_shapes,
)
from dlm_tui.store.gate_state import refuse_foreign_gate, staleness
from dlm_tui.store.trained_on import Identity
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document import Document

_LOCK_SECONDS = 60.0
_FILE_LIMIT = 1 << 30


class HasIdentity(Protocol):
    """A base that says which one it is."""

    @property
    def identity(self) -> Identity: ...
    @property
    def hidden_size(self) -> int: ...


@dataclass(frozen=True)
class Gate:
    """`names` in declared order; `network` is None in uniform mode; `record` is None for another tool's gate.

    `stale` is a sentence when the document changed since the gate was trained, else empty.
    """

    names: tuple[str, ...]
    config: GateConfig
    network: GateNetwork | None = None
    record: Mapping[str, object] | None = None
    ood_score: OodDetector | None = None
    stale: str = ""

    @property
    def mode(self) -> str:
        """ "trained", "uniform" or "stale"."""
        return "stale" if self.stale else self.config.mode

    def weights(self, embeddings: Tensor) -> Tensor:
        """[..., H] -> float32 [..., N] on the CPU; 1/N each in uniform mode."""
        if self.network is None:
            return torch.full((*embeddings.shape[:-1], len(self.names)), 1.0 / len(self.names))
        with torch.no_grad():
            weights: Tensor = self.network(embeddings.detach().cpu().float())
        return weights

    __call__ = weights

    def weights_and_gradients(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """[H] -> (weights [N], gradients [N, H] of each weight with respect to the embedding), float64."""
        size = len(self.names)
        if self.network is None:
            return torch.full((size,), 1.0 / size).double(), torch.zeros(size, embedding.shape[-1]).double()
        exact = GateNetwork(self.network.input_dim, self.network.first.out_features, size).double()
        exact.load_state_dict(self.network.state_dict())
        point = embedding.detach().cpu().double().clone().requires_grad_(True)
        with torch.enable_grad():
            weights: Tensor = exact(point)
            rows = [torch.autograd.grad(weights[index], point, retain_graph=True)[0] for index in range(size)]
        return weights.detach(), torch.stack(rows)


def load_gate(
    store: Store,
    identity: Identity | None = None,
    hidden_size: int | None = None,
    *,
    allow_other_dtype: bool = False,
) -> Gate | None:
    """The stored gate, or None when none was ever written.

    With `identity` (and the base's hidden size) the gate must belong to that base, or with `allow_other_dtype` to the
    same weights in another type: else ForeignGate. Raises GateFileError for files that do not fit together, are damaged
    or hold weights that are not finite.
    """
    config = read_gate_config(store)
    if config is None:
        return None
    check_gate_files(store, config)
    record = matching_record(store, config)
    if identity is not None:
        width = hidden_size if hidden_size is not None else config.input_dim
        refuse_foreign_gate(config, record, identity, width, allow_other_dtype=allow_other_dtype)
    if not config.adapter_names:
        raise GateFileError(f"{store.gate_dir} names no adapters; train the gate again.")
    if config.mode == "uniform":
        return Gate(config.adapter_names, config, record=record)
    network = _read_network(store.gate_dir / WEIGHTS_NAME, config)
    ood_score = _read_ood(store, config) if record is not None else None
    return Gate(config.adapter_names, config, network, record, ood_score)


def load_document_gate(document: Document, store: Store, base: HasIdentity) -> Gate | None:
    """The stored gate for this base, marked stale when it no longer fits the document.

    None when there is none. Raises ForeignGate and GateFileError as `load_gate` does.
    """
    allowed = document_side_file(document).allow_other_dtype
    gate = load_gate(store, base.identity, base.hidden_size, allow_other_dtype=allowed)
    if gate is None:
        return None
    return replace(gate, stale=staleness(document, store, gate.config, gate.record))


def save_gate(store: Store, gate: Gate) -> None:
    """Write all files of the gate as one folder swap; what other tools keep there stays, and the gate before is kept
    as a former one.

    Raises GateFileError for weights that are not finite and OSError when the disk fails; the previous gate then stays.
    """
    if gate.network is not None and not _finite(gate.network.state_dict()):
        raise GateFileError("A gate with weights that are not finite is never written.")
    with store_lock(store, _LOCK_SECONDS):
        with change(store) as together:
            store.adapters_dir.mkdir(parents=True, exist_ok=True)
            folder = scratch_sibling(store.gate_dir)
            folder.mkdir()
            try:
                _fill(store, folder, gate)
                stage_former(store, together)
                together.replace_folder(store.gate_dir, folder)
            except BaseException:
                remove(folder)
                raise
        forget_oldest(store)


def _fill(store: Store, folder: Path, gate: Gate) -> None:
    if store.gate_dir.is_dir():
        _copy_what_can_be_read(store.gate_dir, folder)
    staged = GateAt(store, folder)
    hashes = dict.fromkeys(("gate_sha256", "config_sha256", "novelty_sha256"))
    record = {"format": RECORD_FORMAT, **(gate.record or {}), **hashes}
    (folder / OOD_NAME).unlink(missing_ok=True)
    if gate.network is not None:
        tensors = {key: value.detach().float().contiguous() for key, value in gate.network.state_dict().items()}
        write_atomic(folder / WEIGHTS_NAME, save(tensors))
        record["gate_sha256"] = sha256_file(folder / WEIGHTS_NAME)
    if gate.ood_score is not None:
        ood_score = {key: value.contiguous() for key, value in gate.ood_score.tensors().items()}
        write_atomic(folder / OOD_NAME, save(ood_score))
        record["novelty_sha256"] = sha256_file(folder / OOD_NAME)
    write_gate_config(staged, gate.config)
    record["config_sha256"] = sha256_file(folder / CONFIG_NAME)
    write_gate_record(staged, record)


def _copy_what_can_be_read(source: Path, target: Path) -> None:
    """An unreadable gate must not stand in the way of the one that replaces it."""
    for path in source.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir():
                shutil.copytree(path, target / path.name)
            else:
                shutil.copy2(path, target / path.name)


def _read_network(path: Path, config: GateConfig) -> GateNetwork:
    wanted = weight_shapes(config)
    tensors = _read_tensors(path)
    for key, shape in wanted.items():
        found = tuple(tensors[key].shape) if key in tensors else "nothing"
        if found != shape:
            raise GateFileError(f"{path}: {key} should have the shape {shape}, found {found}; train the gate again.")
    state = {key: tensors[key].float() for key in wanted}
    if not _finite(state):
        raise GateFileError(f"{path} holds weights that are not finite; train the gate again.")
    network = GateNetwork(config.input_dim, config.hidden_proj_dim, len(config.adapter_names))
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _read_ood(store: Store, config: GateConfig) -> OodDetector | None:
    """None when absent or damaged: the hint is then not given, routing does not depend on it."""
    try:
        check_novelty_file(store)
        ood_score = OodDetector.restore(_read_tensors(store.gate_dir / OOD_NAME))
    except (GateFileError, KeyError, ValueError):
        return None
    return ood_score if len(ood_score.mean) == config.input_dim else None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(read_file(path, _FILE_LIMIT))
    except FileNotFoundError:
        raise GateFileError(f"{path} is missing; train the gate again.") from None
    except OSError as error:
        raise GateFileError(f"{path} cannot be read: {cause(error)}.") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise GateFileError(f"{path} is not a safetensors file; train the gate again.") from error


def _finite(state: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in state.values())
