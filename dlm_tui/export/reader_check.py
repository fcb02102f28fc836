"""The files around the weights, gone through as the program that reads them would: is everything there, and the mix's?

A trial loads the weights by itself. Whether a start script, a Modelfile, a configuration or a tokenizer leads another
program to the same weights, with the same adapters, is looked at here, by parsing what was written.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.export.modelfile_reader import read_modelfile
from dlm_tui.export.parity import ODD_TEXTS
from dlm_tui.export.prompts import SENTENCES
from dlm_tui.export.requests import ExportRefused
from dlm_tui.system_errors import first_line

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_OF_THE_LIBRARY = {"transformers_version", "torch_dtype", "_name_or_path", "_from_model_config"}
"""Keys of a configuration that say nothing of the model."""


def _wrong(file: str | Path, what: str) -> ExportRefused:
    return ExportRefused(f"the export would not do for its reader: {Path(file).name} {what}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:60]}…"


def _as_json(value: object) -> str:
    """Equal for what a file cannot tell apart: the order of keys, numbers and texts as keys, tuples and lists."""
    return json.dumps(value, sort_keys=True, default=str)


def check_tokenizer_files(folder: Path, tokenizer: Any) -> None:
    """Raises ExportRefused unless the tokenizer in `folder` loads, splits texts, numbers and renders as the base's."""
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many types for files that are missing or damaged
        raise ExportRefused(
            f"the export would not do for its reader: its tokenizer cannot be loaded ({first_line(error)})"
        ) from error
    for name in (*_SPECIAL, "chat_template"):
        ours, theirs = getattr(tokenizer, name, None), getattr(found, name, None)
        if ours != theirs:
            raise _wrong("tokenizer_config.json", f"says {name} {_shown(theirs)}, and the base {_shown(ours)}")
    for text in (*ODD_TEXTS, *SENTENCES):
        if list(found(text).input_ids) != list(tokenizer(text).input_ids):
            raise _wrong("tokenizer.json", f"splits {text!r} otherwise than the base's tokenizer")


def check_configuration(folder: Path, config: Any, generation: Any, changed: Mapping[str, Any]) -> None:
    """Raises ExportRefused unless config.json and generation_config.json of a model folder say what `config` and
    `generation` of the base do, with `changed` instead where the export differs on purpose."""
    from transformers import AutoConfig, GenerationConfig

    files = [("config.json", AutoConfig, config, changed)]
    if generation is not None:
        files.append(("generation_config.json", GenerationConfig, generation, {}))
    for file, kind, meant, instead in files:
        try:
            found: dict[str, Any] = kind.from_pretrained(str(folder), local_files_only=True).to_dict()
        except Exception as error:  # the library raises many types
            raise _wrong(file, f"cannot be read ({first_line(error)})") from error
        expected = {**meant.to_dict(), **instead}
        for key in sorted((set(expected) | set(found)) - _OF_THE_LIBRARY):
            if _as_json(found.get(key)) != _as_json(expected.get(key)):
                theirs, ours = _shown(found.get(key)), _shown(expected.get(key))
                raise _wrong(file, f"says {key} {theirs}, and the base {ours}")


def check_adapter_settings(folder: Path, base: str, revision: str | None) -> None:
    """Raises ExportRefused unless the adapter folder names its base as other programs load it."""
    path = folder / "adapter_config.json"
    settings = _json(path)
    for key, meant in (("base_model_name_or_path", base), ("revision", revision)):
        if settings.get(key) != meant:
            raise _wrong(path, f"says {key} {settings.get(key)!r}, and the base is {meant!r}")


def check_modelfile(path: Path, weights: str, adapter: str | None, context_length: int) -> None:
    """Raises ExportRefused unless a Modelfile names the files that were tried, and the context."""
    try:
        commands = read_modelfile(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(path, f"cannot be read: {error}") from error
    for command, meant in (("from", weights), ("adapter", adapter)):
        named = [value for name, value in commands if name == command]
        _check_files(path, command.upper(), named, [meant] if meant is not None else [])
    contexts = [value.split()[1:] for name, value in commands if name == "parameter" and value.startswith("num_ctx")]
    _check_number(path, "num_ctx", contexts[-1][0] if contexts and contexts[-1] else None, context_length)


def check_llama_server_script(
    path: Path, weights: str, loras: Sequence[tuple[str, float]], context_length: int
) -> None:
    """Raises ExportRefused unless a start script names the weights and every adapter in order, each at its scale."""
    options = _options(path)
    _check_files(path, "-m", [options.get("-m", "")], [weights])
    pairs = [pair.rpartition(":") for pair in options.get("--lora-scaled", "").split(",") if pair]
    _check_files(path, "--lora-scaled", [name for name, _, _ in pairs], [name for name, _ in loras])
    for (name, _, scale), (_, meant) in zip(pairs, loras, strict=True):
        _check_number(path, f"the scale of {name}", scale, meant)
    _check_number(path, "--ctx-size", options.get("--ctx-size"), context_length)


def check_vllm_files(
    script: Path, base: str, revision: str | None, adapter: str, dtype: str, context_length: int, template: str | None
) -> None:
    """Raises ExportRefused unless vLLM's start script and settings name the base, the adapter and the base's context,
    and take the adapter's rank; the script names the `template` that stands in for the base's own."""
    words, options = _words(script), _options(script)
    if options.get("--chat-template") != template or not (script.parent / (template or "")).exists():
        raise _wrong(script, f"names the chat template {options.get('--chat-template')!r}, and it is {template!r}")
    settings = _json(script.with_name("vllm_config.json"))
    modules = [module["path"] for module in settings.get("lora_modules", ())]
    told = {
        script: (
            words[words.index("serve") + 1] if "serve" in words[:-1] else None,
            options.get("--revision"),
            options.get("--lora-modules", "").partition("=")[2],
            options.get("--dtype"),
            options.get("--max-model-len"),
            options.get("--max-lora-rank"),
        ),
        script.with_name("vllm_config.json"): (
            settings.get("model"),
            settings.get("revision"),
            modules[0] if len(modules) == 1 else None,
            settings.get("dtype"),
            settings.get("max_model_len"),
            settings.get("max_lora_rank"),
        ),
    }
    for path, (model, commit, lora, kind, length, rank) in told.items():
        for name, found, meant in (("base", model, base), ("revision", commit, revision), ("dtype", kind, dtype)):
            if found != meant:
                raise _wrong(path, f"names the {name} {found!r}, and it is {meant!r}")
        _check_files(path, "the adapter", [str(lora)], [adapter])
        _check_number(path, "max-model-len", length, context_length)
        needed = _json(script.parent / adapter / "adapter_config.json")["r"]
        if not str(rank).isdigit() or int(str(rank)) < needed:
            raise _wrong(path, f"takes adapters of rank {rank}, and this one has {needed}")


def check_live_settings(path: Path, weights: str, adapters: Mapping[str, str], mix: Mapping[str, float]) -> None:
    """Raises ExportRefused unless the settings of a live export name files that are there, and the mix."""
    settings = _json(path)
    _check_files(path, "base_gguf", [settings.get("base_gguf", "")], [weights])
    named = {entry["name"]: entry["file"] for entry in settings.get("adapters", ())}
    _check_files(path, "adapters", list(named.values()), list(adapters.values()))
    for key in ("gate", "ood"):
        if (name := settings.get(key)) is not None and not (path.parent / name).is_file():
            raise _wrong(path, f"names {name!r} under {key}, and there is no such file")
    if settings.get("static_mix") != dict(mix):
        raise _wrong(path, f"has the mix {settings.get('static_mix')}, and it is {dict(mix)}")


def check_lora_ids(path: Path, loras: Sequence[str]) -> None:
    """Raises ExportRefused unless gate.json numbers the adapters as the start script loads them."""
    if not path.is_file():
        return
    settings = _json(path)
    numbered = {f"adapter.{name}.gguf": number for name, number in settings.get("lora_ids", {}).items()}
    meant = {name: number for number, name in enumerate(loras) if number != settings.get("mix_lora_id")}
    if numbered != meant:
        raise _wrong(path, f"numbers the adapters {numbered}, and llama-server loads them as {meant}")


def _words(path: Path) -> list[str]:
    """The command that a start script runs in the end."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("exec ")]
    if len(lines) != 1:
        raise _wrong(path, "does not start one program")
    return shlex.split(lines[0])


def _options(path: Path) -> dict[str, str]:
    """Each option of that command, and the word behind it."""
    words = _words(path)
    return {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("-")}


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise _wrong(path, f"cannot be read: {error}") from error


def _check_files(path: Path, where: str, named: Sequence[str], meant: Sequence[str]) -> None:
    """`named` are paths as their reader resolves them, beside the file that names them."""
    for name in named:
        if not (path.parent / name).exists():
            raise _wrong(path, f"names {name!r} under {where}, and there is no such file")
    if [(path.parent / name).resolve() for name in named] != [(path.parent / name).resolve() for name in meant]:
        raise _wrong(
            path, f"names {', '.join(named) or 'nothing'} under {where} instead of {', '.join(meant) or 'nothing'}"
        )


def _check_number(path: Path, name: str, found: object, meant: float) -> None:
    try:
        right = float(str(found)) == meant
    except ValueError:
        right = False
    if not right:
        raise _wrong(path, f"sets {name} to {found}, and it is {meant:g}")
