"""One adapter, as trained, in the form another program loads: a PEFT directory, an adapter GGUF, or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dlm_tui.errors import UsageError
from dlm_tui.export.architectures import read_architecture
from dlm_tui.export.concatenate import folded
from dlm_tui.export.gguf_adapter import write_adapter
from dlm_tui.files import clear_scratch_of, scratch_sibling, sync_tree
from dlm_tui.model.adapters import Adapter, load_peft_adapter, save_peft_adapter
from dlm_tui.model.base import Base
from dlm_tui.model.modulated.convert import lora_from_adapter, pissa_from_adapter
from dlm_tui.progress import run_to_end
from dlm_tui.store import Store, current_version
from dlm_tui.store.adapter_history import find_version

Form = Literal["peft", "gguf", "modulated"]


def export_adapter(store: Store, name: str, number: int | None, base: Base, form: Form, out: Path) -> Path:
    """Write a version (default: the one in force) of one adapter to `out`; nothing there is overwritten.

    `peft` is a directory, `gguf` and `modulated` one file. Raises UsageError where there is nothing to write or
    something in the way, AdapterError or ExportRefused for what the form cannot express, OSError for a full disk.
    """
    version = current_version(store, name) if number is None else find_version(store, name, number)
    if version is None:
        raise UsageError(f"adapter {name!r} is not trained yet; run `dlm-tui train`")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; choose another --out")
    adapter = load_peft_adapter(version.path, name, base, version.version)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    clear_scratch_of(out.absolute())
    scratch = scratch_sibling(out.absolute())
    try:
        _write(adapter, base, form, scratch)
        if scratch.is_dir():
            sync_tree(scratch)
        scratch.rename(out)
    except BaseException:
        _remove(scratch)
        raise
    return out


def _write(adapter: Adapter, base: Base, form: Form, path: Path) -> None:
    if form == "peft":
        save_peft_adapter(adapter, path, base.identity.id, extra={"dlm_parameterization": adapter.parameterization})
    elif form == "gguf":
        architecture = read_architecture(base.config.to_dict())
        run_to_end(write_adapter(path, folded(adapter), architecture, name=adapter.name))
    elif adapter.parameterization == "pissa":
        pissa_from_adapter(base.model, adapter).save(path)
    else:
        lora_from_adapter(base.model, adapter).save(path)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
