"""The gate's small files under `adapter/_gate/`: configuration and what it was trained for (formats §11)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from dlm_tui.files import json_bytes, sha256_file, write_atomic
from dlm_tui.small_files import read_file
from dlm_tui.store.errors import GateFileError
from dlm_tui.store.layout import Store
from dlm_tui.store.own_hash import OWN_HASH, own_sha256
from dlm_tui.system_errors import cause
from dlm_tui.tensor_files import TensorFileDamaged, is_finite, stored_shapes

CONFIG_NAME = "gate_config.json"
WEIGHTS_NAME = "gate.safetensors"
RECORD_NAME = "tui_gate.json"
OOD_NAME = "tui_novelty.safetensors"
RECORD_FORMAT = 1
_FILE_LIMIT = 16 << 20
AGAIN = "; train the gate again."
"""How the sentence of a damaged file ends."""

RECORD_KEYS = frozenset(
    {
        "format",
        "base_model",
        "base_id",
        "base_revision",
        "base_settings",
        "weights_sha256",
        "weights_sample",
        "tokenizer_sha256",
        "tokenizer_form_sha256",
        "document_sha256",
        "gate_sha256",
        "config_sha256",
        "novelty_sha256",
        "record_sha256",
        "probes",
        "probes_sha256",
        "run_id",
        "seed",
        "standardisation",
        "static_mean",
        "ood",
        "temperature",
    }
)


@dataclass(frozen=True)
class GateConfig:
    """`gate_config.json`; `mode` is "trained" or "uniform", sizes are numbers of features."""

    adapter_names: tuple[str, ...]
    entropy_lambda: float
    hidden_proj_dim: int
    input_dim: int
    mode: str


def parse_gate_config(obj: object) -> GateConfig:
    """Check types as other readers do: unknown keys ignored, `entropy_lambda` optional.

    Booleans pass as integers. Raises GateFileError naming the key.
    """
    if not isinstance(obj, dict):
        raise GateFileError(f"{CONFIG_NAME} does not hold a JSON object.")
    names = obj.get("adapter_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GateFileError(f"{CONFIG_NAME}: adapter_names must be a list of strings.")
    sizes = {}
    for key in ("hidden_proj_dim", "input_dim"):
        value = obj.get(key)
        if not isinstance(value, int):
            raise GateFileError(f"{CONFIG_NAME}: {key} must be an integer.")
        sizes[key] = int(value)
    strength = obj.get("entropy_lambda", 0.01)
    if not isinstance(strength, (int, float)):
        raise GateFileError(f"{CONFIG_NAME}: entropy_lambda must be a number.")
    mode = obj.get("mode")
    if mode not in ("trained", "uniform"):
        raise GateFileError(f'{CONFIG_NAME}: mode must be "trained" or "uniform".')
    try:
        return GateConfig(tuple(names), float(strength), sizes["hidden_proj_dim"], sizes["input_dim"], mode)
    except OverflowError:
        raise GateFileError(f"{CONFIG_NAME}: entropy_lambda is too large.") from None


def read_gate_config(store: Store) -> GateConfig | None:
    """The stored configuration, or None when no gate was ever written. Raises GateFileError."""
    path = store.gate_dir / CONFIG_NAME
    raw = _read_object(path)
    if raw is None:
        return None
    try:
        return parse_gate_config(raw)
    except GateFileError as error:
        raise GateFileError(f"{path.parent}: {str(error).removesuffix('.')}{AGAIN}") from None


def write_gate_config(store: Store, config: GateConfig) -> None:
    """Replace `gate_config.json`; keys of newer versions in an existing file are kept.

    Raises GateFileError for a configuration that no reader would accept, OSError when the disk fails.
    """
    fields = {**asdict(config), "adapter_names": list(config.adapter_names)}
    parse_gate_config(fields)
    if not math.isfinite(config.entropy_lambda):
        raise GateFileError(f"{CONFIG_NAME}: entropy_lambda must be a finite number.")
    path = store.gate_dir / CONFIG_NAME
    try:
        before = _read_object(path)
    except GateFileError:
        before = None  # a broken configuration holds nothing worth keeping
    write_atomic(path, json_bytes({**(before or {}), **fields}))


def read_gate_record(store: Store) -> dict[str, object] | None:
    """What our gate was trained for (`tui_gate.json`), or None: another tool's gates have none.

    Raises GateFileError when the file is not a JSON object, or not the one that was written.
    """
    path = store.gate_dir / RECORD_NAME
    record = _read_object(path)
    written = record.pop(OWN_HASH, None) if record is not None else None
    # Whoever writes the hash of the configuration writes that of the record as well.
    if record is not None and (written or "config_sha256" in record) and written != own_sha256(record):
        raise GateFileError(f"{path} is not the file that was written (its hash differs){AGAIN}")
    return record


def check_gate_files(store: Store, config: GateConfig, *, former: bool = False) -> None:
    """Raises GateFileError when a file of our gate is not the one that was written.

    A gate that another tool trained since then has a newer run in the metrics; our record then says nothing about it,
    and its weights are looked at for their form. A `former` gate has newer runs behind it and is ours all the same.
    """
    record = read_gate_record(store)
    if record is None:
        _check_form(store, config)
        return
    for key, name in (("gate_sha256", WEIGHTS_NAME), ("config_sha256", CONFIG_NAME)):
        path, wanted = store.gate_dir / name, record.get(key)
        if wanted is None or (name == WEIGHTS_NAME and config.mode != "trained"):
            continue
        try:
            if sha256_file(path) == wanted:
                continue
        except FileNotFoundError:
            raise GateFileError(f"{path} is missing{AGAIN}") from None
        except OSError as error:
            raise GateFileError(f"{path} cannot be read: {cause(error)}.") from error
        if former or not _replaced_by_another_tool(store, record):
            raise GateFileError(f"{path} is not the file that was written (its hash differs){AGAIN}")
        _check_form(store, config)


def weight_shapes(config: GateConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a trained gate."""
    hidden, size, adapters = config.hidden_proj_dim, config.input_dim, len(config.adapter_names)
    return {"0.weight": (hidden, size), "0.bias": (hidden,), "2.weight": (adapters, hidden), "2.bias": (adapters,)}


def _check_form(store: Store, config: GateConfig) -> None:
    """Raises GateFileError for weights without a hash that are not whole, do not fit the configuration, or are not
    finite."""
    path = store.gate_dir / WEIGHTS_NAME
    if config.mode != "trained":
        return
    try:
        shapes = stored_shapes(path)
        for name, wanted in weight_shapes(config).items():
            if (found := shapes.get(name)) != wanted:
                raise GateFileError(f"{path}: {name} should have the shape {wanted}, found {found or 'nothing'}{AGAIN}")
        if not is_finite(path):
            raise GateFileError(f"{path} holds weights that are not finite{AGAIN}")
    except TensorFileDamaged as error:
        raise GateFileError(f"{error}{AGAIN}") from error
    except FileNotFoundError:
        raise GateFileError(f"{path} is missing{AGAIN}") from None
    except OSError as error:
        raise GateFileError(f"{path} cannot be read: {cause(error)}.") from error


def check_novelty_file(store: Store) -> None:
    """Raises GateFileError when what tells prompts that are unlike the training prompts is not what was written.

    Routing goes on without it, so this is no error of the gate.
    """
    path, wanted = store.gate_dir / OOD_NAME, (read_gate_record(store) or {}).get("novelty_sha256")
    try:
        if wanted is None or sha256_file(path) == wanted:
            return
    except OSError as error:
        raise GateFileError(f"{path} cannot be read: {cause(error)}{AGAIN}") from error
    raise GateFileError(f"{path} is not the file that was written (its hash differs){AGAIN}")


def _replaced_by_another_tool(store: Store, record: dict[str, object]) -> bool:
    from dlm_tui.store.metrics_reader import MetricsReader

    run = record.get("run_id")
    latest = MetricsReader(store).latest_gate_run()
    return not isinstance(run, int) or (latest is not None and latest > run)


def matching_record(store: Store, config: GateConfig) -> dict[str, object] | None:
    """Our record, unless another tool replaced the gate after it was written; None for damaged ones too."""
    try:
        record = read_gate_record(store)
    except GateFileError:
        return None
    if record is None:
        return None
    wanted = record.get("gate_sha256")
    if config.mode != "trained":
        return record if wanted is None else None
    try:
        return record if wanted == sha256_file(store.gate_dir / WEIGHTS_NAME) else None
    except OSError:
        return None


def write_gate_record(store: Store, record: dict[str, object]) -> None:
    """Replace `tui_gate.json`. Keys of newer versions (not in RECORD_KEYS) are kept, known ones are not."""
    path = store.gate_dir / RECORD_NAME
    try:
        before = _read_object(path) or {}
    except GateFileError:
        before = {}
    kept = {key: value for key, value in before.items() if key not in RECORD_KEYS}
    whole = {**kept, **record}
    write_atomic(path, json_bytes({**whole, OWN_HASH: own_sha256(whole)}))


def _read_object(path: Path) -> dict[str, object] | None:
    try:
        raw = json.loads(read_file(path, _FILE_LIMIT).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise GateFileError(f"{path} is not JSON text in UTF-8{AGAIN}") from error
    except OSError as error:
        raise GateFileError(f"{path} cannot be read: {cause(error)}.") from error
    if not isinstance(raw, dict):
        raise GateFileError(f"{path} does not hold a JSON object{AGAIN}")
    return raw
