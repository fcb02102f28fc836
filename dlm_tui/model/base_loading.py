"""Loading a base: found or fetched, its tokenizer and weights read safely, its identity known."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dlm_tui.errors import UsageError
from dlm_tui.model.base import Base, decoder_of
from dlm_tui.model.computing_settings import computing_settings
from dlm_tui.model.config_check import check_config, mismatch
from dlm_tui.model.download import fetch
from dlm_tui.model.environment import uncollected, unreported
from dlm_tui.model.gguf_base import unpack
from dlm_tui.model.identity import CheckpointForm, identify, quantised_identity
from dlm_tui.model.memory import refuse_narrow_limits
from dlm_tui.model.offloaded import name_places
from dlm_tui.model.pages import give_back_freed, read_ahead
from dlm_tui.model.quantised import compute_exactly
from dlm_tui.model.registry import BaseSource, BaseUnavailable, missing_message, read_json, weight_files
from dlm_tui.model.stacked_experts import kept_apart, run_apart_if_narrow
from dlm_tui.model.stored import float32_skeleton, keep_as_stored, widen_beside
from dlm_tui.model.tensor_facts import Hashing
from dlm_tui.model.weights_plan import DTYPES, WeightsPlan
from dlm_tui.progress import WARNING, Progress, in_thread
from dlm_tui.system_errors import first_line

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
    yield _step(0, "looking for the base")
    source, folder = yield from _found(source)
    files = weight_files(folder)
    config = read_json(folder / "config.json")
    check_config(config, files)
    plan = WeightsPlan(source, files, config, dtype=dtype, device=device, as_stored=as_stored)
    ahead = read_ahead(files if plan.stays_cached else [])
    tokenizer = None
    if plan.as_stored:
        plan.refuse_without_maps()  # before the library is loaded, which says what does not stay
        tokenizer = yield from _read_tokenizer(folder, source)  # before it, too: it takes what a vocabulary leaves
    if warning := plan.settle(folder):
        yield Progress(WARNING, text=warning)
    if tokenizer is None:
        tokenizer = yield from _read_tokenizer(folder, source)
    reading = f"reading the base's weights{f' and quantising them as {plan.quantise}' if plan.quantise else ''}"
    model, unread = yield from in_thread(lambda: _load_model(folder, source, plan), lambda: _step(2, reading))
    # what is asked for before it is there comes in small pages
    yield from in_thread(ahead.join, lambda: _step(2, "reading the base's weights"))
    form = _form_of(model, unread)
    model = _in_place(model, plan)
    hashing = Hashing(files)
    settings = computing_settings(cast("Any", model).config.get_text_config(decoder=True))
    identity = yield from in_thread(
        lambda: identify(source.hf_id, source.revision, folder, files, form, settings, hashing),
        lambda: _step(3, hashing.text),
    )
    if plan.quantise:
        identity = quantised_identity(identity, plan.quantise)
    yield _step(4, "the base is loaded")
    base = Base(model, tokenizer, source, identity, plan.quantisation)
    give_back_freed()
    return base


def _step(done: int, text: str) -> Progress:
    return Progress("base", done, 4, text)


def _found(source: BaseSource) -> Generator[Progress, None, tuple[BaseSource, Path]]:
    """The base on this machine, with its folder: unpacked or downloaded first where it has to be."""
    if source.path is None or source.gguf is not None:
        refuse_narrow_limits()
    if source.gguf is not None:
        source = yield from unpack(source)
    elif source.path is None:
        source = yield from fetch(source)
    if source.path is None:
        raise BaseUnavailable(missing_message(source))
    return source, source.path


def _read_tokenizer(folder: Path, source: BaseSource) -> Generator[Progress, None, Any]:
    _refuse_remote_code(folder)
    found = yield from in_thread(
        lambda: _load_tokenizer(folder, source), lambda: _step(1, "reading the base's tokenizer")
    )
    give_back_freed()
    return found


def _in_place(model: nn.Module, plan: WeightsPlan) -> nn.Module:
    """The library's module in the form and at the place that the plan has for it."""
    run_apart_if_narrow(model)
    if plan.as_stored:
        keep_as_stored(model, float32_skeleton(model))
    if plan.quantisation is not None:
        if plan.stored_as is not None and plan.dtype == "float32":
            widen_beside(model, float32_skeleton(model))  # the library leaves it in the type that is stored
        compute_exactly(model)
        return model
    if plan.offload is not None:
        name_places(model)
        return model
    return model.to(plan.place)


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


def _load_model(folder: Path, source: BaseSource, plan: WeightsPlan) -> tuple[nn.Module, frozenset[str]]:
    """The library's module, and the names in its files that it left out."""
    from transformers import AutoModelForCausalLM

    try:
        with unreported(), kept_apart(folder) if plan.as_stored else contextlib.nullcontext():
            model, report = cast("Any", AutoModelForCausalLM).from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if plan.as_stored else DTYPES.get(plan.dtype, "auto"),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the sizes
                **plan.library_arguments(),
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
    prefix, _ = decoder_of(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for place, module in model.named_modules():
        own = set(module._buffers) - module._non_persistent_buffers_set
        names.update(f"{place}.{name}" if place else name for name in own)
    return CheckpointForm(
        frozenset(names),
        prefix,
        dict(getattr(model, "all_tied_weights_keys", None) or {}),
        unread,
        (*_NEVER_READ, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())),
    )


def _refuse_remote_code(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise BaseUnavailable(f"{folder}/config.json is damaged: its model_type is no text")
    if kind not in CONFIG_MAPPING and "auto_map" in config:
        raise BaseUnavailable(f"{folder.name} needs program code from its own repository, which is never run")
