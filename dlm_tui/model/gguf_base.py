"""A base that is a GGUF file: unpacked once into a model folder of its own, by transformers' reader.

Plain numbers keep their type; quantised blocks become bfloat16, whose rounding is a tenth of what even five bits cost.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from dlm_tui.files import (
    clear_scratch_of,
    put_in_place,
    remove,
    scratch_sibling,
    sha256_file,
    sync_tree,
    write_atomic,
)
from dlm_tui.model.config_check import mismatch
from dlm_tui.model.environment import unreported
from dlm_tui.model.memory import at_least, at_most, available_memory, free_disk, weights_text
from dlm_tui.model.registry import (
    BaseSource,
    BaseUnavailable,
    read_json,
    source_of_folder,
    split_message,
    unpacked_folder,
)
from dlm_tui.model.remembered import remembered
from dlm_tui.progress import NOTE, Progress, in_thread
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause, first_line

_NOTE = ".source"
_EXPERTS, _WIDTH = ("qwen2_moe", "qwen3_moe"), "expert_feed_forward_length"


def unpack(source: BaseSource) -> Generator[Progress, None, BaseSource]:
    """The source with `path` where its GGUF file is unpacked, which happens once; says what that costs.

    Raises BaseUnavailable with a sentence that says how to convert a file that cannot be read.
    """
    file = source.gguf
    if file is None:
        return source
    looking = Progress("base", 0, 4, f"looking whether {file.name} is unpacked")
    try:
        digest = yield from in_thread(lambda: remembered("files", file, sha256_file, str), lambda: looking)
    except OSError as error:
        raise BaseUnavailable(f"{file} cannot be read: {cause(error)}") from error
    folder = unpacked_folder(file, digest)
    if not folder.is_dir():
        yield from in_thread(lambda: _drop_orphans(folder, file), lambda: looking)
        contents = yield from in_thread(lambda: file_contents(file), lambda: looking)
        text = _cost(file, folder, contents)
        yield Progress(NOTE, text=text)
        yield from in_thread(lambda: _write(file, folder, contents.dtype), lambda: Progress("base", 0, 4, text))
    _note_source(folder, file)
    return source_of_folder(source, folder)


def _note_source(folder: Path, file: Path) -> None:
    """Write beside an unpacked folder which file it is of; a cache that cannot be written goes without."""
    note, path = _note_of(folder), os.fsencode(file.resolve())
    with contextlib.suppress(OSError):
        if not note.is_file() or read_file(note) != path:
            write_atomic(note, path)


def _drop_orphans(folder: Path, file: Path) -> None:
    """Remove what was unpacked of files that are gone, and of what `file` held before: it would never be read again."""
    for note in folder.parent.glob(f"*{_NOTE}"):
        with contextlib.suppress(OSError):
            source = Path(os.fsdecode(read_file(note)))
            if source == file.resolve() or not os.path.lexists(source):
                remove(note.with_suffix(""))
                note.unlink()


def _note_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _NOTE)


class Contents(msgspec.Struct, frozen=True):
    """How many weights a file holds, and the type that they are unpacked to."""

    count: int
    dtype: str


def file_contents(file: Path) -> Contents:
    """What a GGUF file holds. Raises BaseUnavailable where that is no whole model."""
    from dlm_tui.model.gguf_check import check_counts
    from dlm_tui.model.gguf_tensors import TensorReader

    if text := split_message(file):
        raise BaseUnavailable(text)
    try:
        reader = TensorReader(file)
        tensors = cast("Any", reader).tensors
    except Exception as error:  # the reader runs off the end of what is cut short
        raise BaseUnavailable(_no_gguf(file, error)) from error
    if not any(tensor.name == "token_embd.weight" for tensor in tensors):
        raise BaseUnavailable(f"{file} is no language model: it has no token embeddings")
    check_counts(file, reader)
    kinds = {tensor.tensor_type.name for tensor in tensors}
    dtype = {("F32",): "float32", ("F16", "F32"): "float16"}.get(tuple(sorted(kinds)), "bfloat16")
    return Contents(sum(int(tensor.n_elements) for tensor in tensors), dtype)


def _cost(file: Path, folder: Path, contents: Contents) -> str:
    """What unpacking takes, as a sentence. Raises BaseUnavailable where this machine does not have it."""
    count, width = contents.count, 4 if contents.dtype == "float32" else 2
    # the reader holds all weights as float32 before the last of them has its own type
    memory, disk = count * (4 + width), count * width
    have, space = available_memory(), free_disk(folder)
    needs = f"{file.name}, {weights_text(count)}, takes {at_least(memory)} of memory while it is unpacked"
    if memory > have:
        raise BaseUnavailable(
            f"{needs}, and {at_most(have)} are free; convert it on a larger machine, or give the model's safetensors"
        )
    if disk > space:
        raise BaseUnavailable(
            f"{needs} and {at_least(disk)} of disk in {folder.parent}, where {at_most(space)} are free"
        )
    return f"{needs}, once, and {at_least(disk)} of disk in {folder.parent}"


def _write(file: Path, folder: Path, dtype: str) -> None:
    """Unpack into a folder beside `folder`, which takes its name when it is complete."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    clear_scratch_of(folder)
    scratch = scratch_sibling(folder)
    place, name = str(file.parent), file.name
    try:
        with unreported(), _without_bar(), _with_width_of_experts():
            tokenizer = cast("Any", AutoTokenizer).from_pretrained(place, gguf_file=name, local_files_only=True)
            model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
                place,
                gguf_file=name,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the sizes
            )
        if text := mismatch(report):
            raise ValueError(text)
        if missing := sorted(report.get("missing_keys") or ()):
            raise ValueError(f"it has no weights for {missing[0]}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(scratch))
        tokenizer.save_pretrained(str(scratch))
        _drop_invented(scratch, file, int(model.get_input_embeddings().num_embeddings))
        sync_tree(scratch)
        put_in_place(scratch, folder)
    except OSError as error:
        remove(scratch)
        raise BaseUnavailable(f"{file} cannot be unpacked: {cause(error)}") from error
    except Exception as error:  # the reader raises many types
        remove(scratch)
        raise BaseUnavailable(_unreadable(file, error)) from error


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """The library's reader without the bar that it draws over what is said here, and that no setting takes away."""
    from transformers import modeling_gguf_pytorch_utils

    reader = cast("Any", modeling_gguf_pytorch_utils)
    bar = reader.tqdm
    reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


@contextlib.contextmanager
def _with_width_of_experts() -> Iterator[None]:
    """The library's reader with the key for the width of an expert, which it leaves out for some families: theirs would
    be that of the one size which its configuration takes for granted."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    lacking = [keys for kind in _EXPERTS if _WIDTH not in (keys := cast("Any", GGUF_CONFIG_MAPPING)[kind])]
    for keys in lacking:
        keys[_WIDTH] = "moe_intermediate_size"
    try:
        yield
    finally:
        for keys in lacking:
            del keys[_WIDTH]


def _drop_invented(folder: Path, file: Path, rows: int) -> None:
    """Take out of the tokenizer in `folder` what transformers adds of its own.

    These are tokens behind the `rows` of the embedding that `file` does not name: with them, tokenizer and base would
    not belong together.
    """
    from dlm_tui.model.gguf_tensors import TensorReader

    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    state = read_json(path)
    beyond = {token["content"] for token in state.get("added_tokens", ()) if token["id"] >= rows}
    if not beyond:
        return
    tokens = cast("Any", TensorReader(file)).values().get("tokenizer.ggml.tokens", [])
    invented = beyond - set(tokens)
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in invented]
    path.write_text(json.dumps(state, ensure_ascii=False, indent=2), encoding="utf-8")
    settings = read_json(settings_path)
    kept = {name: value for name, value in settings.items() if not (isinstance(value, str) and value in invented)}
    if kept != settings:
        settings_path.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _no_gguf(file: Path, error: Exception) -> str:
    """What is wrong with a file that its reader cannot go through."""
    if _of_a_type(error):
        return _unreadable(file, error)
    return f"{file} cannot be read as a GGUF file ({_reason(error)}): it is none, damaged or cut short; fetch it again"


def _unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file that the library makes no model of; only blocks of a type it does not know can be
    converted."""
    convert = f"convert it with: llama-quantize --allow-requantize {file.name} {file.stem}-bf16.gguf BF16; else "
    return (
        f"{file} cannot be read as a base: {_reason(error)}; {convert if _of_a_type(error) else ''}"
        "give --base the model's safetensors folder"
    )


def _of_a_type(error: Exception) -> bool:
    """Whether a tensor's type is what the reader does not know."""
    return isinstance(error, NotImplementedError) or "QuantizationType" in str(error)


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")
