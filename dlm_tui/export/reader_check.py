"""The files around the weights, gone through as the program that reads them would: is everything there, and the mix's?

A trial loads the weights by itself. Whether a start script, a Modelfile, a configuration or a tokenizer leads another
program to the same weights, with the same adapters, is looked at here, by parsing what was written.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dlm_tui.export.modelfile_reader import read_modelfile
from dlm_tui.export.parity import ODD_TEXTS
from dlm_tui.export.prompts import SENTENCES
from dlm_tui.export.requests import ExportRefused
from dlm_tui.export.script_trial import runs_programs, started
from dlm_tui.export.scripts import LLAMA_SERVER_PORT, VLLM_PORT
from dlm_tui.files import temporary_folder
from dlm_tui.model.base import Base
from dlm_tui.system_errors import cause, first_line

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_HABITS = ("model_max_length", "padding_side", "truncation_side", "chat_template")
_OF_THE_LIBRARY = {"transformers_version", "torch_dtype", "_name_or_path", "_from_model_config"}
"""Keys of a configuration that say nothing of the model."""


_HOST = "127.0.0.1"
_BEFORE = ["set -euo pipefail", 'CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")"']
"""What stands in a start script before it starts its program."""
_PORT, _MORE = "12345", ["--more", "a  b", "", "$(no)", "'\"*"]
"""The port and the further words that a start script is tried with."""


def wrong(file: str | Path, what: str) -> ExportRefused:
    """The refusal of a file that says or holds something else than was meant; a text is shown as it is."""
    return ExportRefused(
        f"the export would not do for its reader: {file.name if isinstance(file, Path) else file} {what}"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:60]}…"


def _as_json(value: object) -> str:
    """Equal for what a file cannot tell apart: the order of keys, numbers and texts as keys, tuples and lists."""
    return json.dumps(value, sort_keys=True, default=str)


def check_tokenizer_files(folder: Path, base: Base, chats: Sequence[str]) -> None:
    """Raises ExportRefused unless the tokenizer in `folder` loads, splits texts and says tokens as the base's does, and
    its files are what the base's tokenizer writes.

    `chats` are conversations as the base's template writes them.
    """
    from transformers import AutoTokenizer

    tokenizer = base.tokenizer
    try:
        found: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many types for files that are missing or damaged
        raise ExportRefused(
            f"the export would not do for its reader: its tokenizer cannot be loaded ({first_line(error)})"
        ) from error
    for name in (*_SPECIAL, *_HABITS):
        ours, theirs = getattr(tokenizer, name, None), getattr(found, name, None)
        if ours != theirs:
            raise wrong("tokenizer_config.json", f"says {name} {_shown(theirs)}, and the base {_shown(ours)}")
    for text in (*ODD_TEXTS, *SENTENCES, *chats, _between_words(tokenizer)):
        ids = list(tokenizer(text).input_ids)
        if list(found(text).input_ids) != ids:
            raise wrong("tokenizer.json", f"splits {_shown(text)} otherwise than the base's tokenizer")
        for bare in (False, True):
            ours, theirs = (one.decode(ids, skip_special_tokens=bare) for one in (tokenizer, found))
            if ours != theirs:
                raise wrong("tokenizer.json", f"says the tokens of {_shown(ours)} as {_shown(theirs)}")

    _check_state(folder / "tokenizer.json", tokenizer)
    with temporary_folder("tokenizer") as again:  # the library looks into some files only, and of those into some keys
        base.save_tokenizer(again)
        for path in sorted(again.rglob("*")):
            if path.is_file():
                check_copy(folder / path.relative_to(again), path)


def check_copy(path: Path, origin: Path | None) -> None:
    """Raises ExportRefused unless the file holds the bytes of `origin`, in JSON where its name says so; without an
    origin none may be there, as its reader would go by it."""
    if origin is None:
        if path.exists():
            raise wrong(path, "is there, and the base has none")
        return
    try:
        same = path.stat().st_size == origin.stat().st_size and filecmp.cmp(path, origin, shallow=False)
    except OSError as error:
        raise wrong(path, f"cannot be read: {cause(error)}") from error
    if not same:
        raise wrong(path, "does not hold what was written there")
    if path.suffix == ".json":
        _json(path)


def _check_state(path: Path, tokenizer: Any) -> None:
    """The file as other libraries read it: transformers sets part of it anew, from its own settings."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return
    meant = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    found = _json(path)
    for key in sorted(set(meant) | set(found)):
        if found.get(key) != meant.get(key):
            raise wrong(path, f"has another {key} than the base's tokenizer")


def _between_words(tokenizer: Any) -> str:
    """Every added token with blanks around it, which it may swallow."""
    return "a " + " a ".join(token.content for token in tokenizer.added_tokens_decoder.values()) + " a"


def check_configuration(folder: Path, config: Any, generation: Any, changed: Mapping[str, Any]) -> None:
    """Raises ExportRefused unless config.json and generation_config.json of a model folder say what `config` and
    `generation` of the base do, with `changed` instead where the export differs on purpose."""
    from transformers import AutoConfig, GenerationConfig

    files = [("config.json", AutoConfig, config, changed)]
    if generation is None:
        check_copy(folder / "generation_config.json", None)
    else:
        files.append(("generation_config.json", GenerationConfig, generation, {}))
    for file, kind, meant, instead in files:
        try:
            found: dict[str, Any] = kind.from_pretrained(str(folder), local_files_only=True).to_dict()
        except Exception as error:  # the library raises many types
            raise wrong(file, f"cannot be read ({first_line(error)})") from error
        expected = {**meant.to_dict(), **instead}
        for key in sorted((set(expected) | set(found)) - _OF_THE_LIBRARY):
            if _as_json(found.get(key)) != _as_json(expected.get(key)):
                theirs, ours = _shown(found.get(key)), _shown(expected.get(key))
                raise wrong(file, f"says {key} {theirs}, and the base {ours}")


def check_adapter_settings(folder: Path, base: str, revision: str | None, rank: int, modules: Sequence[str]) -> None:
    """Raises ExportRefused unless the adapter folder names its base as other programs load it, and says that it is a
    plain LoRA of this rank, at scale 1, on the `modules` (last parts of names)."""
    path = folder / "adapter_config.json"
    meant: dict[str, Any] = {
        "base_model_name_or_path": base,
        "revision": revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(modules),
        **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out"), False),
        "alpha_pattern": {},
        "rank_pattern": {},
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": None,
    }
    settings = _json(path)
    for key in sorted(set(meant) | set(settings)):
        if settings.get(key) != meant.get(key):
            raise wrong(path, f"says {key} {_shown(settings.get(key))}, and it is {_shown(meant.get(key))}")


def check_modelfile(
    path: Path,
    weights: str,
    adapter: str | None,
    parameters: Mapping[str, Sequence[str]],
    *,
    template: str | None,
    system: str | None,
) -> None:
    """Raises ExportRefused unless a Modelfile names the files that were tried, sets the `parameters`, each at its
    values, says `template` and `system` where these are given, and nothing else.

    Ollama lets the last of SYSTEM, TEMPLATE, ADAPTER and most parameters stand and adds up FROM, LICENSE, MESSAGE and
    stop words: none may be there more often than it was written.
    """
    commands = modelfile_commands(path)
    for command, meant in (("from", weights), ("adapter", adapter)):
        named = [value for name, value in commands if name == command]
        _check_files(path, command.upper(), named, [meant] if meant is not None else [])
    for command, meant in (("template", template), ("system", system)):
        said = [value for name, value in commands if name == command]
        if said != [value for value in (meant,) if value is not None]:
            theirs, ours = " and then ".join(map(_shown, said)) or "nothing", _shown(meant) if meant else "nothing"
            raise wrong(path, f"says {theirs} under {command.upper()}, and it is {ours}")
    if more := {name for name, _ in commands} - {"from", "adapter", "parameter", "system", "template"}:
        raise wrong(path, f"has the command {min(more).upper()}, which is not written here")
    found: dict[str, list[str]] = {}
    for name, value in commands:
        if name == "parameter":
            key, _, said_of_it = value.partition(" ")
            found.setdefault(key, []).append(said_of_it)
    for key in [*parameters, *sorted(set(found) - set(parameters))]:
        values, right = found.get(key, []), list(parameters.get(key, ()))
        if values != right:
            raise wrong(path, f"sets {key} to {', '.join(values) or None}, and it is {', '.join(right) or 'not set'}")


def modelfile_commands(path: Path) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama reads them. Raises ExportRefused where it would not."""
    try:
        return read_modelfile(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise wrong(path, f"cannot be read: {error}") from error


_LLAMA_SERVER = {"-m": True, "--lora-scaled": True, "--jinja": False, "--ctx-size": True}
_VLLM = {
    "--revision": True, "--served-model-name": True, "--dtype": True, "--max-model-len": True, "--enable-lora": False,
    "--max-lora-rank": True, "--lora-modules": True, "--chat-template": True,
}  # fmt: skip
"""The options that start scripts have, and whether a value follows."""


def check_llama_server_script(
    path: Path, weights: str, loras: Sequence[tuple[str, float]], context_length: int
) -> None:
    """Raises ExportRefused unless a start script starts llama-server with the weights and every adapter in order, each
    at its scale, and nothing else."""
    _check_form(path)
    words = _words(path, "llama-server", "LLAMA_SERVER")
    options = _options(path, words, _LLAMA_SERVER, LLAMA_SERVER_PORT)
    _check_files(path, "-m", [options["-m"]], [weights])
    pairs = [pair.rpartition(":") for pair in options["--lora-scaled"].split(",") if pair]
    _check_files(path, "--lora-scaled", [name for name, _, _ in pairs], [name for name, _ in loras])
    for (name, _, scale), (_, meant) in zip(pairs, loras, strict=True):
        _check_number(path, f"the scale of {name}", scale, meant)
    _check_number(path, "--ctx-size", options["--ctx-size"], context_length)
    scaled = ",".join(f"{name}:{scale!r}" for name, scale in loras)
    exact = {"-m": weights, "--lora-scaled": scaled, "--ctx-size": str(context_length)}
    _check_exact(path, options, exact)


def check_vllm_files(
    script: Path,
    base: str,
    revision: str | None,
    adapter: str,
    name: str,
    dtype: str,
    context_length: int,
    template: str | None,
    *,
    base_served: str,
    version: int,
) -> None:
    """Raises ExportRefused unless vLLM's start script and settings name the base (served as `base_served`), the adapter
    (of this `version`, served under `name`) and the base's context, take the adapter's rank, and say nothing else; the
    script names the `template` that stands in for the base's own."""
    optional = {"--revision": revision, "--chat-template": template}
    wanted = {option: value for option, value in _VLLM.items() if optional.get(option, "") is not None}
    _check_form(script)
    words = _words(script, "vllm")
    if words[:1] != ["serve"]:
        raise wrong(script, f"starts vllm {' '.join(words[:1])} instead of vllm serve")
    options = _options(script, words[2:], wanted, VLLM_PORT)
    if template is not None:
        _check_files(script, "--chat-template", [options["--chat-template"]], [template])
    called, _, place = options["--lora-modules"].partition("=")
    for what, found, meant in (
        ("base", "".join(words[1:2]), base),
        ("revision", options.get("--revision"), revision),
        ("base's name", options["--served-model-name"], base_served),
        ("adapter's name", called, name),
        ("dtype", options["--dtype"], dtype),
    ):
        if found != meant:
            raise wrong(script, f"names the {what} {found!r}, and it is {meant!r}")
    _check_files(script, "the adapter", [place], [adapter])
    _check_number(script, "max-model-len", options["--max-model-len"], context_length)
    rank, needed = options["--max-lora-rank"], _json(script.parent / adapter / "adapter_config.json")["r"]
    if not rank.isdigit() or int(rank) < needed:
        raise wrong(script, f"takes adapters of rank {rank}, and this one has {needed}")
    exact = {"--lora-modules": f"{name}={adapter}", "--max-model-len": str(context_length)}
    exact |= {"--max-lora-rank": str(int(rank)), **({"--chat-template": template} if template is not None else {})}
    _check_exact(script, options, exact)
    check_settings(script.with_name("vllm_config.json"), {
        "target": "vllm",
        "model": base,
        "revision": revision,
        "served_model_name": base_served,
        "lora_modules": [{"name": name, "path": adapter, "adapter_version": version}],
        "max_lora_rank": int(rank),
        "max_model_len": context_length,
        "dtype": dtype,
        "environment": {},
        "host": _HOST,
        "port": VLLM_PORT,
    })  # fmt: skip


def check_settings(path: Path, meant: Mapping[str, Any]) -> None:
    """Raises ExportRefused unless a JSON file says exactly this."""
    found = _json(path)
    if more := set(found) - set(meant):
        raise wrong(path, f"says {min(more)}, which is not written here")
    for key, value in meant.items():
        if key not in found:
            raise wrong(path, f"does not say {key}, and it is {_shown(value)}")
        if _as_json(found[key]) != _as_json(value):
            raise wrong(path, f"says {key} {_shown(found[key])}, and it is {_shown(value)}")


def _check_form(path: Path) -> None:
    """Raises ExportRefused for a script that does anything but start a program: such a one is not run to try it."""
    try:
        *before, line = path.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, ValueError) as error:
        raise wrong(path, f"cannot be read: {cause(error)}") from error
    said = [text for text in before if not text.startswith("#")]
    if said != _BEFORE or not line.startswith("exec "):
        raise wrong(path, "does more or less than to start one program")


def _words(path: Path, program: str, variable: str | None = None) -> list[str]:
    """What a start script gives its program where nobody says a port or adds anything; it hands on both, and starts
    the program that `variable` names."""
    # from a place where files may not be run a shell runs it, as the command that is told does
    command: list[str | Path] = [path.absolute()] if runs_programs(path.parent) else ["bash", path.absolute()]
    try:
        plain = started(command, program)
        told = started([*command, *_MORE], program, {"PORT": _PORT, "CDPATH": "/"})
        other = started(command, program, elsewhere=variable) if variable is not None else plain
    except ValueError as error:
        raise wrong(path, str(error)) from error
    for start in (plain, told, other):
        if start.folder != path.parent.resolve():
            raise wrong(path, f"starts {program} in {start.folder}, and it is the folder of the script")
    if told.words != [*plain.words[:-1], _PORT, *_MORE]:
        raise wrong(path, f"gives {program} {_line(told.words[-6:])} of PORT={_PORT} and the words {_line(_MORE)}")
    if other.words != plain.words:
        raise wrong(path, f"starts ${variable} {_line(other.words)} and {program} {_line(plain.words)}")
    return plain.words


def _line(words: Sequence[str]) -> str:
    return _shown(" ".join(words))


def _options(path: Path, words: Sequence[str], options: Mapping[str, bool], port: int) -> dict[str, str]:
    """The options among the `words` that a program is started with; it listens at `port`.

    `options`: every option it has to have and no other may be there, True for one with a value; host and port come on
    top. Raises ExportRefused for others.
    """
    known, found, following = {**options, "--host": True, "--port": True}, {}, iter(words)
    for word in following:
        if word not in known or word in found:
            raise wrong(path, f"has the option {word} {'twice' if word in found else 'that is not written here'}")
        found[word] = next(following, "") if known[word] else ""
    for option in known:
        if option not in found:
            raise wrong(path, f"lacks the option {option}")
    for option, what, meant in (("--host", "", _HOST), ("--port", "port ", str(port))):
        if found[option] != meant:
            raise wrong(path, f"listens at {what}{found[option]}, and it is {meant}")
    return found


def _check_exact(path: Path, options: Mapping[str, str], meant: Mapping[str, str]) -> None:
    """The values as they are written: the same number or file in another form is not ours."""
    for option, value in meant.items():
        if options[option] != value:
            raise wrong(path, f"sets {option} to {_shown(options[option])}, and it is {_shown(value)}")


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise wrong(path, f"cannot be read: {error}") from error


def _check_files(path: Path, where: str, named: Sequence[str], meant: Sequence[str]) -> None:
    """`named` are paths as their reader resolves them, beside the file that names them."""
    for name in named:
        if not (path.parent / name).exists():
            raise wrong(path, f"names {name!r} under {where}, and there is no such file")
    if [(path.parent / name).resolve() for name in named] != [(path.parent / name).resolve() for name in meant]:
        raise wrong(
            path, f"names {', '.join(named) or 'nothing'} under {where} instead of {', '.join(meant) or 'nothing'}"
        )


def _check_number(path: Path, name: str, found: object, meant: float) -> None:
    try:
        right = float(str(found)) == meant
    except ValueError:
        right = False
    if not right:
        raise wrong(path, f"sets {name} to {found}, and it is {meant:g}")
