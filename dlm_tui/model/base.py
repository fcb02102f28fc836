"""The frozen base: loading it safely, knowing exactly which one it is, and turning prompts into tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.model.chat import ChatRenderer, Message, chat_messages
from dlm_tui.model.computing_settings import computing_settings
from dlm_tui.model.config_check import (
    check_config,
    largest_bytes,
    mismatch,
    quantised_bytes,
    stored_elements,
    stored_types,
)
from dlm_tui.model.download import fetch
from dlm_tui.model.environment import uncollected, unreported
from dlm_tui.model.gguf_base import unpack
from dlm_tui.model.identity import BaseIdentity, CheckpointForm, identify, quantised_identity
from dlm_tui.model.memory import at_least, at_most, available_memory, limits_room, refuse_narrow_limits
from dlm_tui.model.offloaded import computing_device, name_places
from dlm_tui.model.pages import give_back_freed, read_ahead
from dlm_tui.model.quantised import (
    bits_of,
    compute_exactly,
    quantisation_config,
    require_library,
    stored_quantisation,
)
from dlm_tui.model.registry import BaseSource, BaseUnavailable, missing_message, read_json, weight_files
from dlm_tui.model.stacked_experts import kept_apart
from dlm_tui.model.stored import StoredLinear, bytes_beside, float32_skeleton, keep_as_stored, widen, widen_beside
from dlm_tui.model.tensor_facts import Hashing
from dlm_tui.progress import WARNING, Progress, in_thread
from dlm_tui.system_errors import first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBES = ("", "Dear neighbour, the ladder stands behind the shed again.", " Grüße\n\taus 東京 🙂  ")
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
_OFFLOAD_SHARE = 0.8
_MAPS = 2
"""How often a file is mapped while it is read: by safetensors itself, and by torch."""
_VOCABULARIES = (
    "tokenizer.json",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "*.vocab",
    "*.tiktoken",
    "tekken.json",
    "*.spm",
)
# buffers that old checkpoints hold and the library computes; it leaves them out of what it says it did not read
_NEVER_READ = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", r"attn\.masked_bias$")
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


class NoEmbedding(DlmTuiError):
    """A token of the tokenizer for which the base has no embedding row."""


class Base:
    """A causal LM with its tokenizer: in eval mode, no parameter requires a gradient.

    `model` is the transformers module; `context_length` is in tokens, `positions` the longest text its configuration
    speaks of (None where it does not), `position_rows` the size of a learned position table, behind which
    nothing can be read (None for rotary and other computed positions); `stop_ids` end an answer.
    `fused` belongs to the fast tier, which keeps its fused weights here. `quantisation` is nf4, fp4, int8 or
    torchao-int8, None for a base whose weights are numbers; `is_offloaded` says that some are read from the disk
    whenever they are used.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        source: BaseSource,
        identity: BaseIdentity,
        quantisation: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.is_as_stored = any(isinstance(module, StoredLinear) for module in model.modules())
        self.quantisation = quantisation
        self.is_offloaded = any(parameter.is_meta for parameter in model.parameters())
        self.tokenizer = tokenizer
        self.source = source
        self.identity = identity
        self.fused: Any = None
        self.config: Any = cast("Any", model).config.get_text_config(decoder=True)
        self.decoder = cast("nn.Module", cast("Any", model).base_model)
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self.config.vocab_size)
        self.positions = _positions(self.config)
        self.position_rows = _position_rows(self.decoder)
        self.context_length = source.context_length or self.positions or 4096
        if self.position_rows is not None:
            self.context_length = min(self.context_length, self.position_rows)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.stop_ids = _stop_ids(model, tokenizer, vocabulary)
        self.renderer = ChatRenderer(tokenizer, source.title)
        self._rows = int(cast("Any", model).get_input_embeddings().weight.shape[0])
        self._rows_suffice = max(vocabulary.values(), default=0) < self._rows
        self._quick = _quick_agrees(tokenizer)

    @property
    def device(self) -> torch.device:
        return computing_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: the type of the weights, float32 where they are kept as stored."""
        kinds = (parameter.dtype for parameter in self.model.parameters())
        return torch.float32 if self.is_as_stored else next(kind for kind in kinds if kind.is_floating_point)

    @property
    def parameters(self) -> int:
        """How many numbers the weights stand for; 4-bit ones are stored two in a byte."""
        return int(cast("Any", self.model).num_parameters())

    def widen(self) -> None:
        """Give up weights that are kept as stored for float32 ones, where there is memory for them."""
        if 4 * sum(parameter.numel() for parameter in self.model.parameters()) <= available_memory():
            widen(self.model)
            self.is_as_stored = False

    def target_module(self, name: str) -> nn.Module:
        """The module called `name`. Raises KeyError when the base has none."""
        try:
            return self.model.get_submodule(name)
        except AttributeError as error:
            raise KeyError(name) from error

    def in_decoder(self, name: str) -> bool:
        """Whether `name` lies below the decoder; the output layer, for one, does not."""
        prefix = str(getattr(self.model, "base_model_prefix", ""))
        return name.startswith(f"{prefix}.") if prefix else True

    def chat(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of one user turn with the generation prompt, `system` as the base's chat template has it."""
        return self.encode_rendered(self.renderer.text(chat_messages((), prompt, system), generate=True))

    def conversation(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of a conversation that ends with an answer, and how many of them the question before it takes.

        The answer ends the way the template ends it; where the template does not, with the end-of-text token.
        """
        ids = self.encode_rendered(self.renderer.text(messages))
        asked = self.encode_rendered(self.renderer.text(messages[:-1], generate=True))
        question = next((at for at, (a, b) in enumerate(zip(ids, asked, strict=False)) if a != b), None)
        question = min(len(ids), len(asked)) if question is None else question
        end = self.tokenizer.eos_token_id
        if end is not None and not self.stop_ids.intersection(ids[question:]):
            ids.append(int(end))
        return ids, question

    def passage(self, text: str) -> list[int]:
        """Ids of a text to learn: what the tokenizer puts in front, the text, the end-of-text token once."""
        ids = self.encode_rendered(text)
        end = self.tokenizer.eos_token_id
        if end is not None and ids[-1:] != [int(end)]:
            ids.append(int(end))
        return [*self.renderer.prefix, *ids]

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of exactly this text: nothing is added in front or behind."""
        return self._checked(list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))

    def encode_raw(self, prompt: str, limit: int | None = 512) -> list[int]:
        """Token ids of the bare prompt with the tokenizer's default special tokens, cut after `limit` tokens."""
        if self._quick:
            return self._checked(_quick_ids(self.tokenizer, prompt, limit))
        return self._checked(_plain_ids(self.tokenizer, prompt, limit))

    def save_tokenizer(self, folder: Path) -> None:
        """Write tokenizer files and chat template, the same bytes whatever was encoded before. Raises as the library
        does: OSError, and bare exceptions for a full disk too."""
        if (backend := getattr(self.tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()  # the prompt that was asked last may have been cut
            backend.no_padding()
        self.tokenizer.save_pretrained(str(folder))

    def _checked(self, ids: list[int]) -> list[int]:
        """The ids. Raises NoEmbedding for one without a row; costs nothing where the tokenizer has no such ids."""
        if not self._rows_suffice:
            for token in ids:
                if token >= self._rows:
                    text = self.tokenizer.convert_ids_to_tokens(token)
                    raise NoEmbedding(
                        f"the base {self.source.title} has no embedding for the token {text!r} (id {token}, it has"
                        f" {self._rows} rows); leave that text out, or use the tokenizer that belongs to the base"
                    )
        return ids


def load_base(
    source: BaseSource, *, dtype: str = "float32", device: str = "auto", as_stored: bool = False
) -> Generator[Progress, None, Base]:
    """Load a base, downloading it first where it is missing and the hub can be reached.

    `dtype` is float32, bfloat16, float16 or auto (as stored); `device` is auto, cpu, cuda, … . With `as_stored`, or
    where a copy does not fit, float32 on the CPU computes on the pages of a bfloat16 checkpoint instead of a copy (the
    same numbers; see `stored`). Memory is looked at before anything is read. Only safetensors are read and no code from
    a model repository is ever run. Four steps of one stage "base", and "download" in bytes where that is needed. Raises
    BaseUnavailable with one sentence.
    """
    if dtype not in (*DTYPES, "auto"):
        raise UsageError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}, auto")

    def step(done: int, text: str) -> Progress:
        return Progress("base", done, 4, text)

    yield step(0, "looking for the base")
    if source.path is None or source.gguf is not None:
        refuse_narrow_limits()
    if source.gguf is not None:
        source = yield from unpack(source)
    elif source.path is None:
        source = yield from fetch(source)
    folder = source.path
    if folder is None:
        raise BaseUnavailable(missing_message(source))
    files = weight_files(folder)
    config = read_json(folder / "config.json")
    check_config(config, files)
    quantisation = stored_quantisation(config)
    if quantisation is not None and source.quantize not in (None, quantisation):
        raise BaseUnavailable(
            f"the base {source.title} is stored as {quantisation} and cannot be quantised as {source.quantize}: open it"
            " as it is (--quantize none), or the base that it was made from"
        )
    asked = source.quantize if quantisation is None else None
    if kind := quantisation or asked:
        require_library(kind)

    def read_tokenizer() -> Generator[Progress, None, Any]:
        _refuse_remote_code(folder)
        found = yield from in_thread(
            lambda: _load_tokenizer(folder, source), lambda: step(1, "reading the base's tokenizer")
        )
        give_back_freed()
        return found

    item = DTYPES.get(dtype, torch.float32).itemsize
    needed = stored_elements(files) * item
    if quantisation or asked:
        needed = quantised_bytes(files, bits_of(quantisation or asked or ""), item) + largest_bytes(files, item)
    place = _place(needed) if device == "auto" else device
    narrow = dtype == "float32" and place == "cpu" and stored_types(files) == {"BF16"} and not asked
    size = sum(file.stat().st_size for file in files)
    # weights of the type that is stored are pages of the file until they are copied, when it is mapped once only
    mapped = size if stored_types(files) == {"F32"} and dtype == "float32" else _MAPS * size
    room = min(available_memory(), limits_room(mapped))
    narrow = narrow and (as_stored or needed > room)
    ahead = read_ahead(files if size <= available_memory() else [])
    tokenizer = None
    if narrow:
        refuse_narrow_limits(0, _MAPS * size)  # before the library is loaded, which says what does not stay
        tokenizer = yield from read_tokenizer()  # before it, too: it takes the room that a vocabulary leaves behind
    beside = bytes_beside(folder) if narrow else 0
    narrow = narrow and beside <= min(room, needed // 2)  # else it has no room, or takes as much
    whole = place == "cpu" and not (narrow or quantisation or asked)
    offload = source.offload if whole and needed > room else None
    from_disk = narrow or offload is not None
    if narrow:
        needed = (needed + beside) // 2
    four_bits_fit = quantised_bytes(files, 4, item) + largest_bytes(files, item) <= room
    less = "" if from_disk else _less(asked, quantisation, four_bits_fit)
    if place == "cpu" and not from_disk:
        refuse_narrow_limits(needed, mapped, less if limits_room(_MAPS * size) else "")
    elif not narrow:
        refuse_narrow_limits(0, _MAPS * size)
    if place == "cpu" and (text := _too_large(source, needed, from_disk, less)):
        yield Progress(WARNING, text=text)
    if tokenizer is None:
        tokenizer = yield from read_tokenizer()
    model, unread = yield from in_thread(
        lambda: _load_model(folder, source, dtype, narrow, asked, place if quantisation or asked else None, offload),
        lambda: step(2, f"reading the base's weights{f' and quantising them as {asked}' if asked else ''}"),
    )
    # what is asked for before it is there comes in small pages
    yield from in_thread(ahead.join, lambda: step(2, "reading the base's weights"))
    form = _form_of(model, unread)
    if narrow:
        keep_as_stored(model, float32_skeleton(model))
    if quantisation or asked:
        if quantisation and dtype == "float32":
            widen_beside(model, float32_skeleton(model))  # the library leaves it in the type that is stored
        compute_exactly(model)
    elif offload is None:
        model = model.to(place)
    else:
        name_places(model)
    hashing = Hashing(files)
    settings = computing_settings(cast("Any", model).config.get_text_config(decoder=True))
    identity = yield from in_thread(
        lambda: identify(source.hf_id, source.revision, folder, files, form, settings, hashing),
        lambda: step(3, hashing.text),
    )
    if asked:
        identity = quantised_identity(identity, asked)
    yield step(4, "the base is loaded")
    base = Base(model, tokenizer, source, identity, quantisation or asked)
    give_back_freed()
    return base


def _place(needed: int) -> str:
    """Where `needed` bytes of weights go: to the GPU where they fit."""
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > needed else "cpu"


def _too_large(source: BaseSource, needed: int, from_disk: bool, less: str) -> str:
    """What a person has to know of a base that does not fit, "" for one that does.

    Raises BaseUnavailable, with what takes `less`, where it cannot work; pages of a file can come and go.
    """
    free = available_memory()
    if needed <= free:
        return ""
    facts = f"the base {source.title} takes {at_least(needed)} of memory, and {at_most(free)} are free"
    if from_disk:
        return f"{facts}: its weights are read from the disk again and again, which is slow"
    raise BaseUnavailable(f"{facts}; close other programs, {less}")


def _less(asked: str | None, stored: str | None, four_bits_fit: bool) -> str:
    """What takes less memory than a base that is quantised as `asked` or `stored`, or neither.

    A quantised one cannot be left on the disk. Four bits are named where they would fit.
    """
    slow = "which is slow, or use a smaller base"
    if stored is not None:
        return f"leave the base that this one was made from on the disk with --offload FOLDER, {slow}"
    if asked is not None:
        bits = "keep it in 4 bits with --quantize nf4, " if bits_of(asked) > 4 and four_bits_fit else ""
        return f"{bits}leave it as it is on the disk with --quantize none --offload FOLDER, {slow}"
    bits = "keep it in 4 bits with --quantize nf4, " if four_bits_fit else ""
    return (
        f"{bits}leave it on the disk with --offload FOLDER, {slow} (one stored as bfloat16 is computed on its file's"
        " pages)"
    )


def _load_tokenizer(folder: Path, source: BaseSource) -> Any:
    from transformers import AutoTokenizer

    try:
        with uncollected():  # the library reads the whole vocabulary as Python objects, twice
            tokenizer = cast("Any", AutoTokenizer).from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the library raises many types for a broken folder
        reason = _lacking_of_tokenizer(folder) or first_line(error)
        raise BaseUnavailable(f"the tokenizer of {source.title} cannot be loaded: {reason}") from error
    if not set(tokenizer.get_vocab()) - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        # some classes make an empty one of nothing
        reason = _lacking_of_tokenizer(folder) or "it has no tokens but special ones; fetch its files again"
        raise BaseUnavailable(f"the tokenizer of {source.title} cannot be loaded: {reason}")
    _drop_what_it_was_made_of(tokenizer)
    return tokenizer


def _lacking_of_tokenizer(folder: Path) -> str:
    """Which file a model folder lacks for a tokenizer, as a clause with the remedy; "" where that is not the matter."""
    there = {name for name in _VOCABULARIES if next(folder.glob(name), None)}
    again = "fetch the tokenizer's files from where the weights are from"
    if not there:
        return f"its folder has no tokenizer.json (nor tokenizer.model, nor vocab.json and merges.txt); {again}"
    if there == {"vocab.json"} and not (folder / "merges.txt").is_file():
        return f"its folder has vocab.json and no merges.txt; {again}"
    return ""


def _drop_what_it_was_made_of(tokenizer: Any) -> None:
    """Vocabulary and merges as Python objects, which some classes keep behind the tokenizer proper: 140 MB of 262k
    entries, read again only by the classes that write their vocabulary themselves. And what the added tokens were
    given as: 6k of them, which were made between these entries, keep 40 MB from being given back."""
    from transformers import TokenizersBackend as Backend

    if isinstance(tokenizer, Backend) and type(tokenizer).save_vocabulary is Backend.save_vocabulary:
        for name in ("_vocab", "_merges"):
            vars(tokenizer).pop(name, None)
        tokenizer.init_kwargs.pop("added_tokens_decoder", None)


def _load_model(
    folder: Path,
    source: BaseSource,
    dtype: str,
    as_stored: bool,
    quantize: str | None,
    place: str | None,
    offload: Path | None,
) -> tuple[nn.Module, frozenset[str]]:
    """The library's module, and the names in its files that it left out.

    `as_stored`: bfloat16 weights are left in the pages of their files.

    With `place` it is put there while it is read, as quantised layers cannot be moved.

    With `offload` accelerate leaves in that folder, or in the checkpoint itself, what has no room.
    """
    from transformers import AutoModelForCausalLM

    try:
        with unreported(), kept_apart(folder) if as_stored else contextlib.nullcontext():
            model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if as_stored else DTYPES.get(dtype, "auto"),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the sizes
                **({} if offload is None else _offloaded(offload, weight_files(folder))),
                **({} if place is None else {"device_map": {"": place}}),
                **({} if quantize is None else {"quantization_config": quantisation_config(quantize)}),
            )
    except Exception as error:  # the library raises many types for a broken folder
        raise BaseUnavailable(f"the base {source.title} cannot be loaded: {first_line(error)}") from error
    if text := mismatch(report):
        raise BaseUnavailable(f"the base {source.title} cannot be loaded: {text}")
    if missing := sorted(report.get("missing_keys") or ()):
        raise BaseUnavailable(
            f"the base {source.title} has no weights for {missing[0]} ({len(missing)} missing in all)"
        )
    return cast("nn.Module", model), frozenset(report.get("unexpected_keys") or ())


def _form_of(model: nn.Module, unread: frozenset[str]) -> CheckpointForm:
    """How the library read the files of `model`, which left out the names `unread`."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for place, module in model.named_modules():
        own = set(module._buffers) - module._non_persistent_buffers_set
        names.update(f"{place}.{name}" if place else name for name in own)
    return CheckpointForm(
        frozenset(names),
        prefix if hasattr(model, prefix) else "",
        dict(getattr(model, "all_tied_weights_keys", None) or {}),
        unread,
        (*_NEVER_READ, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())),
    )


def _offloaded(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The library's arguments for weights of `files` that lie in `folder`; a share of memory is left for what is
    computed."""
    mapped = _MAPS * sum(file.stat().st_size for file in files)
    room = int(min(available_memory(), limits_room(mapped)) * _OFFLOAD_SHARE)
    return {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": str(folder)}


def _refuse_remote_code(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise BaseUnavailable(f"{folder}/config.json is damaged: its model_type is no text")
    if kind not in CONFIG_MAPPING and "auto_map" in config:
        raise BaseUnavailable(f"{folder.name} needs program code from its own repository, which is never run")


def _plain_ids(tokenizer: Any, prompt: str, limit: int | None) -> list[int]:
    if limit is None:
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    return list(tokenizer(prompt, truncation=True, max_length=limit)["input_ids"])


def _quick_ids(tokenizer: Any, prompt: str, limit: int | None) -> list[int]:
    """The same without offsets, masks and conversions, which take as long again."""
    from transformers.tokenization_utils_base import PaddingStrategy, TruncationStrategy

    strategy = TruncationStrategy.DO_NOT_TRUNCATE if limit is None else TruncationStrategy.LONGEST_FIRST
    tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, strategy, limit or 0, 0, None, None)
    return list(tokenizer.backend_tokenizer.encode_batch_fast([prompt])[0].ids)


def _quick_agrees(tokenizer: Any) -> bool:
    """Whether this tokenizer has the quick way and gives the same ids by it, whole, cut, and with special tokens."""
    try:
        return all(
            _quick_ids(tokenizer, text, limit) == _plain_ids(tokenizer, text, limit)
            for text in (*_PROBES, "".join(tokenizer.all_special_tokens))
            for limit in (None, 7)
        )
    except Exception:  # other kinds of tokenizers lack one thing or another
        return False


def _positions(config: Any) -> int | None:
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 0) or None


def _position_rows(decoder: nn.Module) -> int | None:
    """Rows of a learned position table: GPT-2 calls it `wpe`, OPT and others `embed_positions`."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES:
            return module.num_embeddings - int(getattr(module, "offset", 0))
    return None


def _stop_ids(model: nn.Module, tokenizer: Any, vocabulary: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for eos in (getattr(generation, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        found.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    found.update(vocabulary[token] for token in _END_OF_TURN if token in vocabulary)
    return frozenset(int(token) for token in found)
