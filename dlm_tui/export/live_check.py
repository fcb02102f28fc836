"""The gate beside a llama-server export, and all that its live server consists of, held against the workbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dlm_tui.export.gate_files import EMBEDDING, NETWORK
from dlm_tui.export.reader_check import check_settings, wrong
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.export.requests import Session

WEIGHTS = "gate.safetensors"


def check_gate_files(folder: Path, session: Session, adapters: Sequence[str], static: Mapping[str, float]) -> None:
    """Raises ExportRefused unless gate.json and gate.safetensors say what the document's gate does, and number the
    `adapters` as the start script loads them, the mix before them; without a gate neither may be there."""
    gate, identity = session.gate, session.base.identity
    trained = gate is not None and gate.network is not None
    for name, there in (("gate.json", gate is not None), (WEIGHTS, trained)):
        if (folder / name).is_file() != there:
            raise wrong(name, "is missing" if there else "is there, and the document has no such gate")
    if gate is None:
        return
    check_settings(folder / "gate.json", {
        "adapter_names": list(gate.names),
        "mode": "trained" if trained else "uniform",
        "input_dim": gate.network.first.in_features if gate.network is not None else gate.config.input_dim,
        "hidden_proj_dim": gate.network.first.out_features if gate.network is not None else gate.config.hidden_proj_dim,
        "entropy_lambda": gate.config.entropy_lambda,
        "embedding": EMBEDDING,
        "network": NETWORK,
        "base": {
            "id": identity.id,
            "revision": identity.revision,
            "weights_sha256": identity.weights_sha256,
            "tokenizer_sha256": identity.tokenizer_sha256,
        },
        "static_mix": dict(static),
        "mix_lora_id": 0,
        "lora_ids": {name: number for number, name in enumerate(adapters, start=1)},
    })  # fmt: skip
    if gate.network is not None:
        _check_tensors(folder / WEIGHTS, gate.network.state_dict())


def check_live_settings(
    path: Path,
    session: Session,
    weights: str,
    adapters: Sequence[str],
    static: Mapping[str, float],
    context_length: int,
    base_context: int,
    probes: Sequence[str],
) -> None:
    """Raises ExportRefused unless the settings of a live export, and the record of unlike prompts that they name, say
    what the workbench has, and nothing else."""
    from dlm_tui.store import adapter_versions

    base, document, gate = session.base, session.document, session.gate
    assert gate is not None
    asked = document.frontmatter.export
    plain = 0.6 if base.source.reasoning else 0.7
    ood = path.with_name("ood.safetensors")
    check_settings(path, {
        "format": 1,
        "base": base.identity.id,
        "base_gguf": weights,
        "base_context": base_context,
        "hidden_size": base.hidden_size,
        "context_length": context_length,
        "adapters": [{"name": name, "file": f"adapter.{name}.gguf"} for name in adapters],
        "versions": {name: one.version for name, one in adapter_versions(session.store, adapters).items()},
        "gate": WEIGHTS,
        "gate_names": list(gate.names),
        "gate_mode": gate.mode,
        "gate_reason": gate.stale,
        "gate_enabled": document.gate_enabled,
        "ood": ood.name if gate.ood_score is not None else None,
        "static_mix": dict(static),
        "chat_template": base.renderer.template,
        "special_tokens": _as_said(base.tokenizer.special_tokens_map),
        "system_prompt": document.system_prompt,
        "temperature": plain if asked.default_temperature is None else asked.default_temperature,
        "top_p": 1.0 if asked.default_top_p is None else asked.default_top_p,
        "probes": list(probes),
        "document_sha256": document.sha256,
    })  # fmt: skip
    if gate.ood_score is not None:
        _check_tensors(ood, gate.ood_score.distance_tensors())
    elif ood.exists():
        raise wrong(ood, "is there, and the gate has no such record")


def check_program(folder: Path, meant: Mapping[Path, bytes], runtime: str) -> None:
    """Raises ExportRefused unless the files of a server, by their place below `folder`, are there byte by byte, and
    no more below `runtime`."""
    for place, data in meant.items():
        path = folder / place
        if not path.is_file():
            raise wrong(place.as_posix(), "is missing")
        if path.read_bytes() != data:
            raise wrong(place.as_posix(), "is not this program's own")
    found = {path.relative_to(folder) for path in (folder / runtime).rglob("*") if not path.is_dir()}
    if more := found - set(meant):
        raise wrong(min(more).as_posix(), "is not written here")


def _as_said(tokens: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [str(one) for one in said] if isinstance(said, (list, tuple)) else str(said)
        for name, said in tokens.items()
    }


def _check_tensors(path: Path, meant: Mapping[str, Tensor]) -> None:
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise wrong(path, f"cannot be read: {cause(error)}") from error
    for name in sorted(set(meant) | set(found)):
        if name not in found or name not in meant:
            raise wrong(path, f"{'lacks' if name in meant else 'has'} the tensor {name!r}")
        if not torch.equal(found[name].double(), meant[name].detach().cpu().double()):
            raise wrong(path, f"has other numbers in {name!r} than the gate")
