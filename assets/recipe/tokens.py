"""The base's tokenizer: byte-level BPE with a ChatML template, and the packing of documents into rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .corpus import END, END_OF_TEXT, PAD, START

SPECIAL = (END_OF_TEXT, START, END, PAD)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(documents: Iterable[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries; every byte is in it, so any UTF-8 text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Writes the three tokenizer files that transformers' AutoTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(tokenizer.to_str())
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "extra_special_tokens": [START, END],
        "model_max_length": context_length,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str], chunk: int = 4096) -> Iterator[list[int]]:
    """Token ids of each document, closed by the end-of-text token."""
    end = SPECIAL.index(END_OF_TEXT)
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == chunk:
            yield from ([*encoding.ids, end] for encoding in tokenizer.encode_batch(batch))
            batch = []
    yield from ([*encoding.ids, end] for encoding in tokenizer.encode_batch(batch))


def pack(documents: Iterable[list[int]], length: int) -> torch.Tensor:
    """Rows [n, length] int16 that each begin with a document; what does not fit in its row is dropped.

    Every row starts at a document's first token because prompts do: positions near 0 must be seen with openings.
    """
    rows: list[torch.Tensor] = []
    row: list[int] = []
    for ids in documents:
        row += ids
        if len(row) >= length:
            rows.append(torch.tensor(row[:length], dtype=torch.int16))
            row = []
    return torch.stack(rows)
