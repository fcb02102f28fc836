"""Which base a document means, and where its files are. No torch here: the screen asks too."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from dlm_tui.assets import asset
from dlm_tui.document.side_file import Quantisation
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import with_home
from dlm_tui.model.remembered import cache_folder, recall
from dlm_tui.shell_word import shell_word
from dlm_tui.small_files import read_file
from dlm_tui.system_errors import cause

LLAMA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
PHI_MODULES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
POCKET = "pocket"


class BaseUnavailable(DlmTuiError):
    """The base is unknown, is not on this machine, or cannot be used safely."""


class BaseSource(msgspec.Struct, frozen=True, kw_only=True):
    """A base by name: what a document's `base_model` stands for.

    `path` is the folder with the files, None while they are not on this machine. `revision` is the commit the files
    came from, or the (shortened) one that is wanted; None for the newest or for a folder of one's own. `gguf` is the
    file that `path` is unpacked from, which happens when the base is loaded.
    `quantize` is what its linear layers are quantised to when it is loaded, `offload` the folder where accelerate puts
    what has no room in memory.
    `context_length` is in tokens, 0 when only the model's own configuration knows it.
    """

    key: str
    kind: Literal["embedded", "local", "hub"]
    path: Path | None
    hf_id: str
    gguf: Path | None = None
    revision: str | None = None
    family: str = "chatml"
    context_length: int = 0
    target_modules: tuple[str, ...] = LLAMA_MODULES
    reasoning: bool = False
    quantize: Quantisation | None = None
    offload: Path | None = None

    @property
    def title(self) -> str:
        """What a message calls it: a folder or file that stands in for the document's base by its own path."""
        return str(self.gguf or self.path) if self.kind == "local" else self.key


class BaseEntry(msgspec.Struct, frozen=True):
    """One row of the base table."""

    hf_id: str
    revision: str
    architecture: str
    family: str
    context_length: int
    reasoning: bool = False

    @property
    def target_modules(self) -> tuple[str, ...]:
        return PHI_MODULES if self.architecture == "Phi3ForCausalLM" else LLAMA_MODULES


BASES: dict[str, BaseEntry] = {
    "qwen2.5-0.5b": BaseEntry("Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf", "Qwen2ForCausalLM", "chatml", 32768),
    "qwen2.5-1.5b": BaseEntry("Qwen/Qwen2.5-1.5B-Instruct", "989aa7980e4c", "Qwen2ForCausalLM", "chatml", 32768),
    "qwen2.5-3b": BaseEntry("Qwen/Qwen2.5-3B-Instruct", "aa8e72537993", "Qwen2ForCausalLM", "chatml", 32768),
    "qwen2.5-coder-1.5b": BaseEntry(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct", "2e1fd397ee46", "Qwen2ForCausalLM", "chatml", 32768
    ),
    "qwen3-1.7b": BaseEntry("Qwen/Qwen3-1.7B", "70d244cc86cc", "Qwen3ForCausalLM", "chatml", 32768, True),
    "qwen3-1.7b-thinking": BaseEntry(
        "Qwen/Qwen3-1.7B", "70d244cc86cc", "Qwen3ForCausalLM", "qwen3thinking", 32768, True
    ),
    "qwen3-4b": BaseEntry("Qwen/Qwen3-4B", "1cfa9a720891", "Qwen3ForCausalLM", "chatml", 32768, True),
    "qwen3-8b": BaseEntry("Qwen/Qwen3-8B", "b968826d9c46", "Qwen3ForCausalLM", "chatml", 32768, True),
    "llama-3.2-1b": BaseEntry("meta-llama/Llama-3.2-1B-Instruct", "9213176726f5", "LlamaForCausalLM", "llama3", 131072),
    "llama-3.2-3b": BaseEntry("meta-llama/Llama-3.2-3B-Instruct", "0cb88a4f764b", "LlamaForCausalLM", "llama3", 131072),
    "llama-3.3-8b-instruct": BaseEntry(
        "allura-forge/Llama-3.3-8B-Instruct", "df95224cf87c", "LlamaForCausalLM", "llama3", 8192
    ),
    "smollm3-3b": BaseEntry("HuggingFaceTB/SmolLM3-3B", "a07cc9a04f16", "SmolLM3ForCausalLM", "smollm3", 65536, True),
    "olmo-2-7b-instruct": BaseEntry(
        "allenai/OLMo-2-1124-7B-Instruct", "470b1fba1ae0", "Olmo2ForCausalLM", "olmo2", 4096
    ),
    "gemma-2-2b-it": BaseEntry("google/gemma-2-2b-it", "299a8560bedf", "Gemma2ForCausalLM", "gemma2", 8192),
    "gemma-2-9b-it": BaseEntry("google/gemma-2-9b-it", "11c9b309abf7", "Gemma2ForCausalLM", "gemma2", 8192),
    "smollm2-135m": BaseEntry(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366", "LlamaForCausalLM", "chatml", 8192
    ),
    "smollm2-360m": BaseEntry(
        "HuggingFaceTB/SmolLM2-360M-Instruct", "a10cc1512eab", "LlamaForCausalLM", "chatml", 8192
    ),
    "smollm2-1.7b": BaseEntry(
        "HuggingFaceTB/SmolLM2-1.7B-Instruct", "31b70e2e869a", "LlamaForCausalLM", "chatml", 8192
    ),
    "phi-3.5-mini": BaseEntry("microsoft/Phi-3.5-mini-instruct", "2fe192450127", "Phi3ForCausalLM", "phi3", 131072),
    "phi-4-mini-reasoning": BaseEntry(
        "microsoft/Phi-4-mini-reasoning", "0e3b1e2d02ee", "Phi3ForCausalLM", "phi4mini", 131072, True
    ),
    "mixtral-8x7b-instruct": BaseEntry(
        "mistralai/Mixtral-8x7B-Instruct-v0.1", "eba92302a286", "MixtralForCausalLM", "mistral", 32768
    ),
}

NOT_TEXT = {
    "mistral-small-3.1-24b-instruct": "vision",
    "paligemma-3b-mix-224": "vision",
    "qwen2-vl-2b-instruct": "vision",
    "internvl2-2b": "vision",
    "internvl3-2b": "vision",
    "qwen2-audio-7b-instruct": "audio",
}

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_HF_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_base(
    base_model: str, override: Path | None = None, named_by: str = "--base", named: str | None = None
) -> BaseSource:
    """The source that `base_model` names: `pocket`, a key of the base table or `hf:org/name`.

    `override` is a local model folder or a GGUF file that stands in for it, `named_by` who says so and `named` in which
    words. Raises BaseUnavailable for an unknown key, a base that is not a text model, or an override that is neither or
    absent. A base that is merely not downloaded, or not unpacked, is not an error here: its `path` is None.
    """
    if override is not None:
        return _local_source(base_model, override, named_by, str(override) if named is None else named)
    if base_model == POCKET:
        return _pocket_source()
    if base_model.startswith("hf:"):
        return _hf_source(base_model)
    if base_model in NOT_TEXT:
        raise BaseUnavailable(f"{base_model} is a base with {NOT_TEXT[base_model]}; only text bases can be used")
    entry = BASES.get(base_model)
    if entry is None:
        raise BaseUnavailable(
            f"unknown base_model {base_model!r}: use 'pocket', 'hf:org/name' or one of {', '.join(BASES)}"
        )
    found = find_cached(entry.hf_id, entry.revision)
    return BaseSource(
        key=base_model,
        kind="hub",
        path=found,
        hf_id=entry.hf_id,
        revision=found.name if found else entry.revision,
        family=entry.family,
        context_length=entry.context_length,
        target_modules=entry.target_modules,
        reasoning=entry.reasoning,
    )


def missing_message(source: BaseSource) -> str:
    """One sentence that says that the files are not here, with the command that fetches them."""
    revision = f" --revision {source.revision}" if source.revision and len(source.revision) == 40 else ""
    return (
        f"the base {source.key} is not on this machine; fetch it with: hf download {source.hf_id}{revision}"
        " (or give a local folder with --base PATH)"
    )


def cache_root() -> Path:
    """The hub cache that huggingface_hub uses: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    if explicit := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return with_home(explicit)
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return with_home(os.environ.get("HF_HOME", default)) / "hub"


def find_cached(hf_id: str, revision: str | None = None) -> Path | None:
    """The folder of a complete snapshot in the hub cache, or None.

    With `revision` (full or shortened) that one is preferred; else, or where it is absent, what `main` points to, and
    without that the one that was fetched last.
    """
    folder = cache_root() / f"models--{hf_id.replace('/', '--')}"
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return None
    candidates: list[Path] = []
    if revision:
        candidates += sorted(path for path in snapshots.iterdir() if path.name.startswith(revision))
    main = folder / "refs" / "main"
    if main.is_file():
        candidates.append(snapshots / read_file(main).decode("utf-8").strip())
    candidates += sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in candidates if _complete(path)), None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises BaseUnavailable when there are none, when a shard of the index is missing, or when the weights are only
    there as pickled files, which can run code when they are read.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise BaseUnavailable(f"{index} does not say which file holds which weight")
        files = [folder / name for name in sorted(set(table.values()))]
        if outside := [file for file in files if file.parent != folder]:
            raise BaseUnavailable(f"{index} names a file outside its folder: {outside[0]}")
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise BaseUnavailable(f"{folder} is incomplete: {absent[0]} is missing")
        if files:
            return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if named := sorted(path.name for path in folder.glob("*.safetensors") if path.is_file()):
        if len(named) == 1:
            raise BaseUnavailable(
                f"{folder} holds {named[0]}, which has to be called model.safetensors (or be named by a"
                " model.safetensors.index.json): rename it"
            )
        raise BaseUnavailable(
            f"{folder} holds {len(named)} safetensors files and no model.safetensors.index.json, which says what is in"
            " which: fetch that, too"
        )
    if next(folder.glob("*.bin"), None) or next(folder.glob("*.pt"), None):
        raise BaseUnavailable(
            f"{folder} has only pickled weights, which can run code when read; convert them to safetensors"
        )
    raise BaseUnavailable(f"{folder} has no model.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BaseUnavailable when it cannot be read or is something else."""
    try:
        value = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseUnavailable(f"{path} cannot be read: {cause(error)}") from error
    if not isinstance(value, dict):
        raise BaseUnavailable(f"{path} does not hold a JSON object")
    return value


def _complete(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except BaseUnavailable:
        return False


def _pocket_source() -> BaseSource:
    folder = asset("base")
    facts = read_json(folder / "pocket.json")
    return BaseSource(
        key=POCKET,
        kind="embedded",
        path=folder,
        hf_id=POCKET,
        family=str(facts.get("family", "chatml")),
        context_length=int(facts.get("context_length", 0)),
        target_modules=tuple(str(name) for name in facts.get("target_modules", LLAMA_MODULES)),
    )


def source_of_folder(source: BaseSource, folder: Path) -> BaseSource:
    """The source with its files in `folder`, and with what the configuration there says."""
    config = read_json(folder / "config.json")
    entry = BASES.get(source.key)
    return msgspec.structs.replace(
        source,
        path=folder,
        family=entry.family if entry else family_of(source.hf_id, _architecture(config)),
        context_length=_context_length(config),
        target_modules=_modules_of(_architecture(config)),
    )


def _local_source(base_model: str, place: Path, named_by: str, named: str) -> BaseSource:
    path = with_home(place).absolute()
    shown = os.path.normpath(place)
    if not path.exists():
        raise BaseUnavailable(
            f"{shown} does not exist, and {named_by} names it as the base: bring it back, or name where it is now"
            f"{_not_by_name(named)}"
        )
    entry = BASES.get(base_model)
    source = BaseSource(
        key=base_model,
        kind="local",
        path=None,
        hf_id=entry.hf_id if entry else base_model.removeprefix("hf:"),
        gguf=_gguf_file(path),
        reasoning=entry.reasoning if entry else False,
    )
    if source.gguf is not None:
        digest = recall("files", source.gguf, str)
        folder = unpacked_folder(source.gguf, digest) if digest else None
        return source_of_folder(source, folder) if folder is not None and folder.is_dir() else source
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise BaseUnavailable(
                f"{shown}, which {named_by} names, is an adapter, not a base: name the base that it was made for, and"
                f" take the adapter into the document with: dlm-tui adapter import DOC NAME {shell_word(shown)}"
            )
        raise BaseUnavailable(f"{shown}, which {named_by} names, is not a model folder: it has no config.json")
    return source_of_folder(source, path)


def _not_by_name(named: str) -> str:
    """Where a base of the hub or of the table is named, for who named one in place of a folder; "" for a path."""
    if named in BASES or named == POCKET:
        key = named
    elif _HF_ID.fullmatch(named.removeprefix("hf:")):
        key = f"hf:{named.removeprefix('hf:')}"
    else:
        return ""
    return f" (a folder or a GGUF file; a base by name stands in the document: base_model: {key})"


def unpacked_folder(file: Path, digest: str) -> Path:
    """The model folder that a GGUF file with this hash is unpacked into, complete where it is there."""
    return unpacked_bases() / f"{file.stem}-{digest[:16]}"


def unpacked_bases() -> Path:
    """Where GGUF files are unpacked: folders that can be deleted, and are made again when their file is opened."""
    return cache_folder() / "bases"


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file at `path`, or the only one of a folder without other weights."""
    if path.is_file():
        if not _is_gguf(path):
            raise BaseUnavailable(f"{path} is neither a model folder nor a GGUF file")
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(filter(_is_gguf, path.glob("*")))
    if found and (text := split_message(found[0])) and all(_whole(one) == _whole(found[0]) for one in found):
        raise BaseUnavailable(text)
    if len(found) > 1:
        raise BaseUnavailable(f"{path} holds {len(found)} GGUF files; name one of them, for example {found[0]}")
    return found[0] if found else None


def split_message(file: Path) -> str:
    """What to do about a GGUF file that is a part of a split one, "" for a whole one."""
    if (split := _SPLIT.search(file.name)) is None:
        return ""
    first = file.with_name(_SPLIT.sub(lambda match: f"-00001-of-{match[2]}.gguf", file.name))
    command = f"llama-gguf-split --merge {shell_word(first)} {shell_word(_whole(file))}"
    return f"{file.name} is part {int(split[1])} of {int(split[2])}; join them with: {command}"


def _whole(part: Path) -> Path:
    """What the parts of a split file become when they are joined."""
    return part.with_name(_SPLIT.sub(".gguf", part.name))


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _hf_source(base_model: str) -> BaseSource:
    hf_id = base_model.removeprefix("hf:")
    if not _HF_ID.fullmatch(hf_id):
        raise BaseUnavailable(f"base_model {base_model!r} is not of the form hf:org/name")
    found = find_cached(hf_id)
    config = read_json(found / "config.json") if found else {}
    return BaseSource(
        key=base_model,
        kind="hub",
        path=found,
        hf_id=hf_id,
        revision=found.name if found else None,
        family=family_of(hf_id, _architecture(config)),
        context_length=_context_length(config) if found else 0,
        target_modules=_modules_of(_architecture(config)),
    )


def family_of(hf_id: str, architecture: str) -> str:
    """The prompt family of a base outside the table: the first rule that matches."""
    name = hf_id.lower()
    rules = (
        ("gemma2", "gemma-2" in name or architecture.startswith("Gemma2")),
        ("smollm3", "smollm3" in name or architecture.startswith("SmolLM3")),
        ("olmo2", "olmo-2" in name or architecture.startswith("Olmo2")),
        ("llama3", "llama-3" in name or "llama3" in name),
        ("phi4mini", "phi-4-mini-reasoning" in name),
        ("phi3", architecture.startswith("Phi")),
        ("mistral", architecture.startswith(("Mistral", "Mixtral"))),
    )
    return next((family for family, matches in rules if matches), "chatml")


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _context_length(config: dict[str, Any]) -> int:
    stated = (config.get("max_position_embeddings"), config.get("n_positions"))
    return next((value for value in stated if isinstance(value, int) and value > 0), 4096)


def _modules_of(architecture: str) -> tuple[str, ...]:
    return PHI_MODULES if architecture == "Phi3ForCausalLM" else LLAMA_MODULES
