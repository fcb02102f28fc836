"""Names of bases: the table, the hub cache, local folders, and every refusal as one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_tui.document import SideFile, load, side_file_path, write_side_file
from dlm_tui.model import base_of
from dlm_tui.model.memory import gigabytes, weights_text
from dlm_tui.model.registry import (
    BASES,
    BaseUnavailable,
    family_of,
    find_cached,
    missing_message,
    resolve_base,
    weight_files,
)
from dlm_tui.progress import Progress, in_thread, run_to_end
from tests.training_samples import write_document

REVISION = "12fd25f77366" + "0" * 28


def snapshot(root: Path, hf_id: str, revision: str, main: bool = True) -> Path:
    folder = root / f"models--{hf_id.replace('/', '--')}"
    path = folder / "snapshots" / revision
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 77}')
    (path / "model.safetensors").write_bytes(b"")
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_table_has_every_text_base() -> None:
    assert len(BASES) == 21
    assert BASES["phi-3.5-mini"].target_modules == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert all(len(entry.revision) == 12 for entry in BASES.values())
    assert [key for key, entry in BASES.items() if entry.reasoning] == [
        "qwen3-1.7b",
        "qwen3-1.7b-thinking",
        "qwen3-4b",
        "qwen3-8b",
        "smollm3-3b",
        "phi-4-mini-reasoning",
    ]


def test_a_base_that_is_not_here_has_no_path_and_a_command(hub: Path) -> None:
    source = resolve_base("smollm2-135m")
    assert source.path is None
    message = missing_message(source)
    assert "hf download HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "\n" not in message


def test_the_pinned_revision_is_preferred_over_main(hub: Path) -> None:
    hf_id = BASES["smollm2-135m"].hf_id
    snapshot(hub, hf_id, "f" * 40)
    assert find_cached(hf_id, "12fd25f77366") == hub / f"models--{hf_id.replace('/', '--')}/snapshots/{'f' * 40}"
    pinned = snapshot(hub, hf_id, REVISION, main=False)
    source = resolve_base("smollm2-135m")
    assert (source.path, source.revision, source.context_length) == (pinned, REVISION, 8192)


def test_an_hf_name_reads_its_configuration(hub: Path) -> None:
    snapshot(hub, "org/llama-3-thing", "a" * 40)
    source = resolve_base("hf:org/llama-3-thing")
    assert (source.family, source.context_length, source.kind) == ("llama3", 77, "hub")
    assert source.revision == "a" * 40


def test_a_snapshot_without_its_weights_is_not_found(hub: Path) -> None:
    path = snapshot(hub, "org/name", "a" * 40)
    (path / "model.safetensors").unlink()
    assert find_cached("org/name") is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-base", "unknown base_model 'no-such-base'"),
        ("qwen2-vl-2b-instruct", "vision"),
        ("qwen2-audio-7b-instruct", "audio"),
        ("hf:nothing", "not of the form"),
        ("hf:../../etc", "not of the form"),
    ],
)
def test_names_that_mean_no_base(name: str, says: str) -> None:
    with pytest.raises(BaseUnavailable, match=says):
        resolve_base(name)


def test_an_override_must_be_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(BaseUnavailable, match=r", which --base names, is not a model folder: it has no config\.json"):
        resolve_base("smollm2-135m", tmp_path)


def test_a_folder_that_is_gone_is_said_with_who_names_it(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    beside = side_file_path(path)
    write_side_file(beside, SideFile(base="sub/../llama"))
    with pytest.raises(BaseUnavailable) as caught:
        base_of(load(path))
    assert str(caught.value).startswith(f"{tmp_path / 'llama'} does not exist, and {beside} names it as the base: ")
    with pytest.raises(BaseUnavailable, match="does not exist, and --base names it"):
        base_of(load(path), tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("named", "key"),
    [("org/name", "hf:org/name"), ("hf:org/name", "hf:org/name"), ("qwen3-4b", "qwen3-4b"), ("../org/name", "")],
)
def test_a_base_by_name_in_place_of_a_folder_belongs_into_the_document(tmp_path: Path, named: str, key: str) -> None:
    path = write_document(tmp_path)
    where = f" (a folder or a GGUF file; a base by name stands in the document: base_model: {key})" if key else ""
    with pytest.raises(BaseUnavailable, match=rf"or name where it is now{re.escape(where)}$"):
        base_of(load(path), named)
    write_side_file(side_file_path(path), SideFile(base=named))
    with pytest.raises(BaseUnavailable, match=rf"or name where it is now{re.escape(where)}$"):
        base_of(load(path))


@pytest.mark.parametrize(
    ("count", "size", "weights"),
    [
        (900, "0.9 kB", "900 weights"),
        (52_000, "52 kB", "52 thousand weights"),
        (1_250_000, "1.2 MB", "1.2 million weights"),
        (270_000_000, "0.3 GB", "270 million weights"),
        (8_030_000_000, "8.0 GB", "8.0 billion weights"),
    ],
)
def test_small_figures_can_be_read_as_large_ones_can(count: int, size: str, weights: str) -> None:
    assert (gigabytes(count), weights_text(count)) == (size, weights)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(BaseUnavailable, match="safetensors"):
        weight_files(tmp_path)


def test_weights_under_another_name_are_named_with_the_one_they_need(tmp_path: Path) -> None:
    (tmp_path / "foo.safetensors").touch()
    with pytest.raises(BaseUnavailable, match=r"holds foo\.safetensors, which has to be called model\.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "bar.safetensors").touch()
    with pytest.raises(BaseUnavailable, match=r"holds 2 safetensors files and no model\.safetensors\.index\.json"):
        weight_files(tmp_path)


def test_an_adapter_is_no_base_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "an adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    with pytest.raises(BaseUnavailable) as caught:
        resolve_base("pocket", folder)
    assert str(caught.value).endswith(f"with: dlm-tui adapter import DOC NAME '{folder}'")
    assert "which --base names, is an adapter, not a base" in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(BaseUnavailable, match=r"one\.safetensors is missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("hf_id", "architecture", "family"),
    [
        ("google/gemma-2-2b", "", "gemma2"),
        ("x/y", "Olmo2ForCausalLM", "olmo2"),
        ("microsoft/Phi-4-mini-reasoning", "Phi3ForCausalLM", "phi4mini"),
        ("x/y", "PhiForCausalLM", "phi3"),
        ("x/y", "MixtralForCausalLM", "mistral"),
        ("x/y", "Qwen2ForCausalLM", "chatml"),
    ],
)
def test_the_family_of_a_base_outside_the_table(hf_id: str, architecture: str, family: str) -> None:
    assert family_of(hf_id, architecture) == family


def test_work_in_a_thread_reports_and_carries_errors_over() -> None:
    assert run_to_end(in_thread(lambda: 7, lambda: Progress("x"))) == 7

    def fail() -> None:
        raise BaseUnavailable("gone")

    with pytest.raises(BaseUnavailable, match="gone"):
        run_to_end(in_thread(fail, lambda: Progress("x")))


def test_the_registry_needs_no_torch() -> None:
    code = (
        "import sys, dlm_tui.model.registry, dlm_tui.model.views, dlm_tui.model.sampling\n"
        "from dlm_tui.model import resolve_base\n"
        "resolve_base('smollm2-135m')\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
