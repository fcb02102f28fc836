"""From a seed to the files of the base: corpus, tokenizer, rows, training."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer

from . import network, tokens
from .corpus import Corpus

CORPUS_SEED = 1
HELD_OUT_SEED = 2
TOKENIZER_DOCUMENTS = 60_000
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the base's weights."""

    shape: network.Shape = field(default_factory=network.Shape)
    schedule: network.Schedule = field(default_factory=network.Schedule)
    bfloat16: bool = True
    compiled: bool = True
    threads: int = 1

    def short_tokens(self) -> int:
        """Tokens of the short rows that the schedule reads."""
        return self.schedule.long_from() * self.schedule.batch_rows * self.schedule.row_length

    def long_tokens(self) -> int:
        """Tokens of the long rows that the schedule reads."""
        steps = self.schedule.steps - self.schedule.long_from()
        return steps * self.schedule.batch_rows * self.schedule.row_length


def make_tokenizer(vocab: int) -> Tokenizer:
    """The tokenizer of the recipe, from the first documents of the corpus."""
    return tokens.train_tokenizer(Corpus(CORPUS_SEED).documents(TOKENIZER_DOCUMENTS), vocab)


def rows(tokenizer: Tokenizer, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Short and long training rows, each token used once; the long ones continue where the short ones end."""
    stream = tokens.encode_documents(tokenizer, _endless(Corpus(CORPUS_SEED)))
    short = _rows(stream, recipe.short_tokens(), recipe.schedule.row_length)
    return short, _rows(stream, recipe.long_tokens(), recipe.schedule.long_row_length)


def _rows(stream: Iterator[list[int]], wanted: int, length: int) -> torch.Tensor:
    def enough() -> Iterator[list[int]]:
        filled, row = 0, 0
        for ids in stream:
            yield ids
            row += len(ids)
            if row >= length:
                filled, row = filled + length, 0
            if filled >= wanted:
                return

    return tokens.pack(enough(), length) if wanted else torch.empty((0, length), dtype=torch.int16)


def _endless(corpus: Corpus) -> Iterator[str]:
    index = 0
    while True:
        yield corpus.document(index)
        index += 1


def held_out(count: int, training_documents: int) -> dict[int, str]:
    """`count` documents of another seed by index; those that the training documents hold word for word are left out."""
    seen = {_digest(text) for text in Corpus(CORPUS_SEED).documents(training_documents)}
    found: dict[int, str] = {}
    for index, text in enumerate(_endless(Corpus(HELD_OUT_SEED))):
        if _digest(text) not in seen:
            found[index] = text
            if len(found) == count:
                break
    return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def build(recipe: Recipe, folder: Path, work: Path) -> float:
    """Trains the base into `folder`, with a checkpoint in `work`. Returns the seconds of training."""
    torch.set_num_threads(recipe.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    say("training the tokenizer")
    tokenizer = make_tokenizer(recipe.shape.vocab)
    tokens.save_tokenizer(tokenizer, folder, recipe.shape.context)
    say("writing the corpus")
    short, long = rows(tokenizer, recipe)
    say(f"{short.numel() + long.numel():,} tokens; training on {device}")
    model = network.new_model(recipe.shape, recipe.schedule.seed)
    seconds = network.train(
        model,
        short,
        long,
        recipe.schedule,
        device=device,
        bfloat16=recipe.bfloat16,
        compiled=recipe.compiled,
        checkpoint=work / "checkpoint.safetensors",
        report=lambda step, loss, spent: say(f"step {step}/{recipe.schedule.steps} loss {loss:.3f} {spent:.0f} s"),
    )
    network.save_model(network.halved(model), folder)
    pocket = {"target_modules": TARGET_MODULES, "family": "chatml", "context_length": recipe.shape.context}
    (folder / "pocket.json").write_text(json.dumps(pocket, indent=2) + "\n", encoding="utf-8")
    return seconds


def say(text: str) -> None:
    """Progress goes to stderr."""
    print(text, file=sys.stderr, flush=True)
