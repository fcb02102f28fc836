"""A GGUF file as a base: unpacked once, the same numbers as the model it was made of, refusals as one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import SideFile, load, read_side_file, write_side_file
from dlm_tui.document.side_file import side_file_path
from dlm_tui.export.choices import TARGETS
from dlm_tui.export.suitability import suitability
from dlm_tui.files import sha256_file
from dlm_tui.model import base_of, gguf_base, load_base
from dlm_tui.model.base import Base
from dlm_tui.model.registry import BaseUnavailable, resolve_base, unpacked_folder
from dlm_tui.progress import Progress, run_to_end
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny

PROMPT = "When does the tide turn at the harbour?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Path]:
    """A session and the GGUF files of its base as F32 and Q8_0, in a folder each."""
    folder = tmp_path_factory.mktemp("gguf")
    session = open_tiny(folder, "llama", tie_word_embeddings=False)
    for quant in ("f32", "q8_0"):
        made = export(
            session, target="ollama", quant=quant, mix="tone:1e-12", out=str(folder / f"made-{quant}"), verify=False
        )
        (folder / quant).mkdir()
        shutil.copyfile(made.folder / f"model.{quant}.gguf", folder / quant / "tiny.gguf")
    return session, folder


def loaded(place: Path, said: list[Progress] | None = None) -> Base:
    report = said.append if said is not None else None
    return run_to_end(load_base(resolve_base("hf:test/llama", place)), report)


def logits(base: Base, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.model(input_ids=torch.tensor([ids])).logits
    return found


def test_the_numbers_and_tokens_are_those_of_the_model_it_was_made_of(made: tuple[Session, Path]) -> None:
    session, folder = made
    base = loaded(folder / "f32" / "tiny.gguf")
    ids = session.base.encode_raw(PROMPT)
    assert base.encode_raw(PROMPT) == ids
    assert base.chat(PROMPT, "Be brief.") == session.base.chat(PROMPT, "Be brief.")
    assert base.identity.tokenizer_form_sha256 == session.base.identity.tokenizer_form_sha256 != ""
    assert base.dtype == torch.float32
    assert float((logits(base, ids) - logits(session.base, ids)).abs().max()) < 1e-5
    assert base.context_length == session.base.context_length and base.source.target_modules


def test_experts_have_the_width_that_the_file_says(tmp_path: Path) -> None:
    session = open_tiny(tmp_path, "qwen3_moe")
    place = tmp_path / "made"
    found = export(session, target="ollama", quant="f32", mix="tone:1e-12", out=str(place), verify=False)
    base = loaded(found.folder / "model.f32.gguf")
    assert base.config.moe_intermediate_size == session.base.config.moe_intermediate_size == 48
    ids = session.base.encode_raw(PROMPT)
    assert float((logits(base, ids) - logits(session.base, ids)).abs().max()) < 1e-4


def test_quantised_blocks_become_bfloat16_and_it_is_done_once(made: tuple[Session, Path]) -> None:
    _, folder = made
    file = folder / "q8_0" / "tiny.gguf"
    said: list[Progress] = []
    base = loaded(folder / "q8_0", said)
    place = unpacked_folder(file, sha256_file(file))
    assert base.source.path == place == resolve_base("hf:test/llama", file).path and base.source.gguf == file
    cost = [one.text or "" for one in said if "of memory while it is unpacked" in (one.text or "")]
    assert cost and "tiny.gguf" in cost[0] and "once" in cost[0]
    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}["blk.1.ffn_down.weight"]
    wanted = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type)).to(torch.bfloat16).float()
    assert torch.equal(base.target_module("model.layers.1.mlp.down_proj").weight.float(), wanted)
    before = (place / "model.safetensors").stat().st_ino
    again: list[Progress] = []
    assert loaded(file, again).identity == base.identity
    assert (place / "model.safetensors").stat().st_ino == before
    assert not any("unpacked" in (one.text or "") and "takes" in (one.text or "") for one in again)


def test_it_is_unpacked_without_a_bar_of_the_librarys_and_whatever_the_case_of_its_name(
    made: tuple[Session, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, folder = made
    file = tmp_path / "UP.GGUF"
    file.write_bytes((folder / "f32" / "tiny.gguf").read_bytes() + b"\0")  # another hash: not unpacked yet
    said: list[Progress] = []
    capfd.readouterr()
    assert loaded(tmp_path, said).source.gguf == file
    assert capfd.readouterr().err == ""
    (cost,) = {one.text for one in said if "takes" in (one.text or "")}
    assert cost is not None and cost.startswith("UP.GGUF, 52 thousand weights, takes 0.5 MB of memory")


def test_it_can_become_a_gguf_again(made: tuple[Session, Path], tmp_path: Path) -> None:
    """transformers adds <|endoftext|> behind the last embedding to whatever it reads."""
    session, folder = made
    base = loaded(folder / "q8_0" / "tiny.gguf")
    assert len(base.tokenizer) == base.vocab_size == len(session.base.tokenizer)
    assert base.source.path is not None
    assert suitability(base.source) == (list(TARGETS), "every target")
    copy = shutil.copytree(base.source.path, tmp_path / "copy")
    gguf_base._drop_invented(copy, folder / "q8_0" / "tiny.gguf", 1)
    added = [token["content"] for token in json.loads((copy / "tokenizer.json").read_bytes())["added_tokens"]]
    assert added == ["<|im_start|>", "<|im_end|>", "<|pad|>"]  # what the file names stays, whatever has a row


def test_what_was_unpacked_of_a_file_that_is_gone_goes_with_the_next(
    made: tuple[Session, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = made
    data, places = (folder / "q8_0" / "tiny.gguf").read_bytes(), []
    names = ("moved.gguf", "deleted.gguf", "changed.gguf", "changed.gguf", "last.gguf")
    for number, name in enumerate(names):
        file = tmp_path / name
        file.write_bytes(data + bytes(number + 1))  # another hash each
        places.append(unpacked_folder(file, sha256_file(file)))
        loaded(file)
        if name == "moved.gguf":
            file = file.rename(folder / "moved.gguf")
            loaded(file)
        elif name == "deleted.gguf":
            file.unlink()
    assert [place.is_dir() for place in places] == [True, False, False, True, True]
    folders = [place for place in places[0].parent.iterdir() if place.is_dir()]
    assert len(list(places[0].parent.glob("*.source"))) == len(folders)
    capsys.readouterr()
    assert main(["doctor"]) == 0
    assert f"unpacked    {places[0].parent}" in capsys.readouterr().out.replace("\n", "")


def test_the_side_file_and_new_remember_it(
    made: tuple[Session, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = made
    file = folder / "f32" / "tiny.gguf"
    path = tmp_path / "d.dlm"
    assert main(["new", str(path), "--base-model", "hf:test/llama", "--base", str(file), "--no-open"]) == 0
    assert read_side_file(side_file_path(path)) == SideFile(base=str(file))
    assert base_of(load(path)).gguf == file
    (tmp_path / "beside.gguf").symlink_to(file)
    write_side_file(side_file_path(path), SideFile(base="beside.gguf"))
    assert base_of(load(path)).gguf == tmp_path / "beside.gguf"
    assert base_of(load(path), folder / "q8_0").gguf == folder / "q8_0" / "tiny.gguf"
    session = run_to_end(Session.open(path, tmp_path / "home"))
    assert session.base.source.gguf == tmp_path / "beside.gguf"
    capsys.readouterr()
    assert main(["doctor", str(path), "--home", str(tmp_path / "home")]) == 0
    assert "every target" in capsys.readouterr().out


def refusal(place: Path) -> str:
    with pytest.raises(BaseUnavailable) as caught:
        loaded(place)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_read_says_how_to_convert_it(made: tuple[Session, Path], tmp_path: Path) -> None:
    _, folder = made
    data = (folder / "f32" / "tiny.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    name = b"token_embd.weight"
    kind = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of its axes, and two of those
    broken.write_bytes(data[:kind] + (9999).to_bytes(4, "little") + data[kind + 4 :])
    assert "llama-quantize --allow-requantize broken.gguf broken-bf16.gguf BF16" in refusal(broken)
    for damaged in (data[: len(data) // 3], data[:20_000], b"GGML" + data[4:], b"", b"GGUF"):
        broken.write_bytes(damaged)
        text = refusal(broken)
        assert text.startswith(f"{broken} cannot be read as a GGUF file (") and "llama-quantize" not in text
        assert text.endswith("it is none, damaged or cut short; fetch it again")
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(b"general.architecture", b"general.architecturX", 1))
    assert refusal(other).endswith("; give --base the model's safetensors folder") and "quantize" not in refusal(other)
    part = tmp_path / "m-00002-of-00003.gguf"
    part.write_bytes(data)
    parts = tmp_path / "in parts"
    parts.mkdir()
    for number in (1, 2):
        shutil.copyfile(part, parts / f"m-0000{number}-of-00003.gguf")
    merge = "llama-gguf-split --merge {0}m-00001-of-00003.gguf{1} {0}m.gguf{1}"
    assert refusal(part).endswith(merge.format(f"{tmp_path}/", ""))
    assert refusal(parts).endswith(merge.format(f"'{parts}/", "'"))
    shutil.copyfile(part, parts / "other.gguf")
    assert "holds 3 GGUF files" in refusal(parts)
    assert "neither a model folder nor a GGUF file" in refusal(made[0].path)
    assert "holds 3 GGUF files" in refusal(tmp_path)
    assert f"{folder / 'absent'} does not exist" in refusal(folder / "absent")


def told(data: bytes, key: str, value: int) -> bytes:
    """A GGUF file whose `key`, a number of 32 bits, says `value`."""
    at = data.index(key.encode()) + len(key) + 4
    return data[:at] + value.to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("llama.block_count", 1, "says llama.block_count 1, but its weights hold 3 layers"),
        ("llama.block_count", 4, "says llama.block_count 4, but its weights hold 3 layers"),
        ("llama.block_count", 2_000_000_000, "says llama.block_count 2000000000, but its weights hold 3 layers"),
        ("llama.embedding_length", 31, "says llama.embedding_length 31, but its token embeddings have 32 numbers each"),
        ("llama.feed_forward_length", 1 << 14, "embedding_length · feed_forward_length 524288, which its weight"),
        ("llama.vocab_size", 1 << 30, "says llama.vocab_size 1073741824, which its weight files cannot hold"),
        ("llama.attention.head_count", 0, "says llama.attention.head_count 0, and its weights are of one"),
        ("llama.attention.head_count_kv", 0, "says llama.attention.head_count_kv 0, and its weights are of one"),
        ("llama.attention.head_count", 1 << 30, "says llama.attention.head_count 1073741824, which its weight"),
        ("llama.feed_forward_length", 65, "32 x 64 in its files, and 32 x 65 by its configuration"),
    ],
)
def test_what_it_says_of_itself_has_to_be_in_it(
    made: tuple[Session, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str, value: int, text: str
) -> None:
    file = tmp_path / "told.gguf"
    file.write_bytes(told((made[1] / "f32" / "tiny.gguf").read_bytes(), key, value))
    assert text in refusal(file)
    assert capfd.readouterr() == ("", "")
    assert not unpacked_folder(file, sha256_file(file)).exists()


def test_nothing_but_the_sentence_is_said_of_a_weight_that_it_lacks(
    made: tuple[Session, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lacks.gguf"
    file.write_bytes((made[1] / "f32" / "tiny.gguf").read_bytes().replace(b"blk.1.attn_q.w", b"blk.1.attn_x.w", 1))
    assert "it has no weights for model.layers.1.self_attn.q_proj.weight" in refusal(file)
    assert capfd.readouterr() == ("", "")


def test_it_is_refused_with_figures_where_memory_or_disk_lacks(
    made: tuple[Session, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = made
    file = tmp_path / "tiny.gguf"
    shutil.copyfile(folder / "f32" / "tiny.gguf", file)
    with file.open("ab") as handle:
        handle.write(b"\0")  # another hash: not unpacked yet
    monkeypatch.setattr(gguf_base, "available_memory", lambda: 1000)
    assert "MB of memory while it is unpacked, and 1.0 kB are free" in refusal(file)
    monkeypatch.undo()
    monkeypatch.setattr(gguf_base, "free_disk", lambda folder: 1000)
    assert "where 1.0 kB are free" in refusal(file)
