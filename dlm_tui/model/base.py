"""The frozen base: knowing exactly which one it is, and turning prompts into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dlm_tui.errors import DlmTuiError
from dlm_tui.model.chat import ChatRenderer, Message, chat_messages
from dlm_tui.model.growing_rope import grows
from dlm_tui.model.identity import BaseIdentity
from dlm_tui.model.memory import available_memory
from dlm_tui.model.offloaded import computing_device
from dlm_tui.model.registry import BaseSource, BaseUnavailable
from dlm_tui.model.stored import StoredLinear, widen

_PROBES = ("", "Dear neighbour, the ladder stands behind the shed again.", " Grüße\n\taus 東京 🙂  ")
_POSITION_TABLES = ("wpe", "embed_positions", "position_embeddings")
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


class NoEmbedding(DlmTuiError):
    """A token of the tokenizer for which the base has no embedding row."""


class Base:
    """A causal LM with its tokenizer: in eval mode, no parameter requires a gradient.

    `model` is the transformers module; `context_length` is in tokens, `positions` the longest text its configuration
    speaks of (None where it does not), `position_rows` the size of a learned position table, behind which
    nothing can be read, or of a rotary one that grows with longer texts, by which what was read before would read
    otherwise (None for other computed positions); `stop_ids` end an answer.
    `fused` belongs to the fast tier, which keeps its fused weights here, `scaling` to the head; `rows_apart` says that
    the library's forward does not bear rows of unequal length beside each other (None before that was looked at).
    `quantisation` is nf4, fp4, int8 or torchao-int8, None for a base whose weights are numbers; `is_offloaded` says
    that some are read from the disk whenever they are used.
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
        self.scaling: Any = None
        self.rows_apart: bool | None = None
        self.config: Any = cast("Any", model).config.get_text_config(decoder=True)
        self._prefix, self.decoder = decoder_of(model)
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
        return name.startswith(f"{self._prefix}.")

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


def decoder_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module of what a causal LM has below its output layer. Raises BaseUnavailable without one."""
    library = cast("Any", model)
    decoder = library.base_model
    if decoder is model:  # some classes name a module that they do not have: Llama 4's that of its form with images
        embedding = library.get_input_embeddings()
        decoder = next((part for part in model.children() if any(one is embedding for one in part.modules())), None)
        decoder = None if decoder is embedding else decoder
    found = next((name for name, module in model.named_modules() if module is decoder), "")
    if not found:
        raise BaseUnavailable(
            f"{type(model).__name__} of transformers does not say which of its modules is the decoder, so a base of"
            " that kind cannot be used; use another"
        )
    return found, decoder


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
    """Rows of a learned position table: GPT-2 calls it `wpe`, OPT and others `embed_positions`. Or what a rotary one of
    the kind "dynamic" has before it grows."""
    for name, module in decoder.named_modules():
        if grows(module):
            return int(cast("Any", module).original_max_seq_len)
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
