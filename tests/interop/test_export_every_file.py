"""Every file of an export is looked at before it is verified: whichever is damaged, the export is refused."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.export import pipeline, targets_hf
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.targets_gguf import OllamaTarget
from dlm_tui.gate import fit_ood
from dlm_tui.progress import run_to_end
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny
from tests.interop.test_export_images import GEMMA3, PROCESSOR
from tests.tiny_models import ARCHITECTURES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp (extra [llama]) is not installed"
)
TARGETS: dict[str, dict[str, Any]] = {
    "ollama": {"target": "ollama", "quant": "q8_0"},
    "weighed": {"target": "ollama", "quant": "q4_k_m", "imatrix": "auto"},
    "legacy": {"target": "ollama", "quant": "q8_0", "legacy_adapter": True},
    "llama-server": {"target": "llama-server", "quant": "q8_0"},
    "live": {"target": "llama-server", "quant": "q8_0", "gate": "live"},
    "peft": {"target": "peft"},
    "vllm": {"target": "vllm"},
    "merged": {"target": "merged"},
    "sharded": {"target": "merged"},
}
COMPARED = ("runtime/", "requirements.txt")
"""Files that one function compares byte by byte: one of them is tried."""


def emptied(data: bytes) -> bytes:
    return b""


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def otherwise(data: bytes) -> bytes:
    """One thing changed in what stays well-formed: of JSON a key, of a text a line, of tensors a name."""
    if data[:1] == b"{" and data[:2] != b"{%":
        found = json.loads(data)
        return json.dumps({f"x{key}" if at == 0 else key: found[key] for at, key in enumerate(found)}).encode()
    if data[:4] == b"GGUF":
        return data.replace(b"general.", b"generaL.").replace(b".in_sum2", b".in_sumx").replace(b".lora_a", b".lora_x")
    if data[8:10] == b'{"':
        return data.replace(b".weight", b".Weight").replace(b'"mean"', b'"mea_"')
    return data + b"x\n"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A base that takes images, too, with what prepares these, and a gate that marks unlike prompts."""
    monkeypatch.setitem(ARCHITECTURES, "gemma3", GEMMA3)
    session = open_tiny(tmp_path, "gemma3")
    assert session.base.source.path is not None and session.gate is not None
    for name in ("preprocessor_config.json", "processor_config.json"):
        (session.base.source.path / name).write_text(json.dumps(PROCESSOR))
    marks = fit_ood(torch.randn(64, session.base.hidden_size), [0] * 64, 0)
    session.gate = replace(session.gate, ood_score=marks)
    return session


@contextmanager
def damaged(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    data = path.read_bytes()
    path.write_bytes(change(data))
    try:
        yield
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_an_export_with_any_file_damaged_is_refused(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    verifying, seen = pipeline.verify, []
    if name == "sharded":
        monkeypatch.setattr(targets_hf, "write_merged", functools.partial(targets_hf.write_merged, shard_bytes=1 << 15))

    def verify(target: Any, context: Any, folder: Path, notes: list[str]) -> Any:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        places = [path.relative_to(folder).as_posix() for path in files]
        alike = [place for place in places if place.startswith(COMPARED)]
        for path, place in zip(files, places, strict=True):
            if place in alike[1:]:
                continue
            for change in (emptied, halved, otherwise):
                if change(path.read_bytes()) == path.read_bytes():
                    continue
                with damaged(path, change):
                    try:
                        run_to_end(verifying(target, context, folder, []))
                        seen.append(f"{place} {change.__name__}: verified")
                    except ExportRefused as error:
                        assert len(str(error)) < 600
                    except Exception as error:
                        seen.append(f"{place} {change.__name__}: {type(error).__name__}: {error}")
        return (yield from verifying(target, context, folder, notes))

    monkeypatch.setattr(pipeline, "verify", verify)
    export(session, **TARGETS[name], verify=True, out=str(tmp_path / "out"))
    assert seen == []


def test_a_copied_importance_matrix_is_the_one_that_was_given(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = export(session, **TARGETS["weighed"], verify=False, out=str(tmp_path / "first")).folder / "imatrix.gguf"
    asked = {**TARGETS["weighed"], "imatrix": str(given)}
    assert export(session, **asked, out=str(tmp_path / "out")).manifest["parity"] is not None
    writing = OllamaTarget.write

    def write(self: OllamaTarget, folder: Path) -> Any:
        yield from writing(self, folder)
        path = folder / "imatrix.gguf"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")

    monkeypatch.setattr(OllamaTarget, "write", write)
    with pytest.raises(ExportRefused, match=r"imatrix\.gguf does not hold what was written there"):
        export(session, **asked, out=str(tmp_path / "out"))
