"""Writes the model card and the numbers beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from . import measure
from .build import CORPUS_SEED, Recipe, held_out
from .corpus import WITHHELD_IN, Corpus
from .network import ROPE_THETA

HELD_OUT_DOCUMENTS = 2_000
SUBSET_DOCUMENTS = 120
NGRAM_DOCUMENTS = 40_000
BIGRAM_WEIGHT = 0.9
COMBINATIONS = 200


def training_documents(tokenizer: Tokenizer, recipe: Recipe) -> int:
    """About how many documents the training rows hold, rounded up generously: what held-out text must not repeat."""
    sample = list(Corpus(CORPUS_SEED).documents(2_000))
    mean = sum(len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(sample)) / len(sample)
    return int(1.25 * (recipe.short_tokens() + recipe.long_tokens()) / mean)


def corpus_digest() -> str:
    """SHA-256 of the corpus's first documents: tells whether the text has changed since the weights were trained."""
    return hashlib.sha256("\0".join(Corpus(CORPUS_SEED).documents(500)).encode()).hexdigest()


def write_card(folder: Path, recipe: Recipe, sweep: Path) -> None:
    """Evaluates the files in `folder` and writes card.json and MODEL_CARD.md there."""
    torch.set_num_threads(recipe.threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = training_documents(tokenizer, recipe)
    indexed = held_out(HELD_OUT_DOCUMENTS, documents)
    texts = list(indexed.values())
    numbers: dict[str, object] = {
        "corpus": corpus_digest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
        "training_tokens": recipe.short_tokens() + recipe.long_tokens(),
        "training_documents_at_most": documents,
        "ngram_documents": NGRAM_DOCUMENTS,
        "bigram_weight": BIGRAM_WEIGHT,
        "perplexity": measure.perplexities(model, tokenizer, texts, NGRAM_DOCUMENTS, BIGRAM_WEIGHT),
        "perplexity_subset": measure.perplexities(
            model, tokenizer, texts[:SUBSET_DOCUMENTS], NGRAM_DOCUMENTS, BIGRAM_WEIGHT
        ),
        "subset_documents": list(indexed)[:SUBSET_DOCUMENTS],
        "facts_asked": len(measure.fact_questions()),
        "facts_known": measure.facts_known(model, tokenizer),
        "combinations_asked": COMBINATIONS,
        "combinations_unseen": _combinations(model, tokenizer, unseen=True),
        "combinations_trained": _combinations(model, tokenizer, unseen=False),
        "samples": [list(pair) for pair in measure.samples(model, tokenizer, texts)],
    }
    _write(folder / "card.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    table = json.loads(sweep.read_text(encoding="utf-8"))
    _write(folder / "MODEL_CARD.md", _markdown(numbers, table, recipe))


def _combinations(model: LlamaForCausalLM, tokenizer: Tokenizer, *, unseen: bool) -> float:
    asked = measure.combination_questions(COMBINATIONS, unseen=unseen)
    return measure.combinations_known(model, tokenizer, asked)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _markdown(numbers: dict[str, object], sweep: dict[str, dict[str, float]], recipe: Recipe) -> str:
    perplexity = numbers["perplexity"]
    assert isinstance(perplexity, dict)
    shape, schedule = recipe.shape, recipe.schedule
    rows = "\n".join(
        f"| {name} | {row['parameters']:,} | {row['megabytes']:.2f} | {row['tokens']:,} | "
        f"{row['cpu_seconds']:.0f} | {row['nats_per_byte']:.4f} |"
        for name, row in sweep.items()
    )
    facts = 100 * float(str(numbers["facts_known"]))
    unseen, trained = (100 * float(str(numbers[f"combinations_{which}"])) for which in ("unseen", "trained"))
    weight = float(str(numbers["bigram_weight"]))
    return f"""# The pocket base

A Llama-architecture causal language model with {numbers["parameters"]:,} parameters and a byte-level BPE tokenizer
of {numbers["vocabulary"]:,} entries. Hidden size {shape.hidden}, {shape.layers} layers, {shape.heads} query and
{shape.kv_heads} key-value heads, feed-forward {shape.feed_forward}, tied embeddings, rotary base {ROPE_THETA:,.0f},
context {shape.context} tokens (trained on rows of {schedule.row_length} and {schedule.long_row_length}).
Weights are stored in float16; everything computes in float32. Chat template: ChatML; `<|im_end|>` ends a turn.

## What it was trained on

Text that the recipe itself writes from word lists and sentence frames in `assets/recipe/text`, all original to this
repository: the people, trades, boats, tools, tides, fish, birds, dishes, knots, winds and festivals of a small
harbour town called Pellwick, as descriptions, letters, notices, stories, dialogues, logs, bills, verses, and as
questions and answers in seven registers (plain, cheerful, sailor, formal, poetic, gloomy, brief). No downloaded text,
no downloaded weights. {numbers["training_tokens"]:,} tokens, each seen once. It knows this town and nothing else: it is
made for trying out adapters, not for answering questions about the world.

## Recipe

    python -m assets.recipe

One command, seeded; the same machine, thread count and library versions give the same files. It uses a GPU when there
is one. An interrupted run goes on from its last checkpoint. `python -m assets.recipe --card` only measures again,
`--sweep` repeats the comparison below.

## Held-out perplexity

Per token, on the same {perplexity["tokens"]:,} tokens of {perplexity["documents"]:,} documents from another seed;
documents that the training text holds word for word are left out. Every token but a document's first is scored, the
closing end-of-text included. The n-gram models are counted on {numbers["ngram_documents"]:,} training documents:
unigram with add-one, bigram as {weight} · relative frequency + {1 - weight:.1f} · unigram.

| model | perplexity |
|---|---|
| this base | {perplexity["model"]:.2f} |
| bigram | {perplexity["bigram"]:.2f} |
| unigram | {perplexity["unigram"]:.2f} |

That is {perplexity["model_nats_per_byte"]:.4f} nats per byte. Of {numbers["facts_asked"]} questions about people and
boats, {facts:.1f} % are answered with the right words (greedy).

## Combinations of facts that it never read

Some questions join two facts: "Where does the owner of the Grey Heron live?", "What do Ada and Bram do?". One
combination in {WITHHELD_IN} is withheld from the training text, in every wording and in either order; its facts stand
there in other sentences. Of {numbers["combinations_asked"]} withheld ones {unseen:.1f} % are answered word for word as
they should be (greedy), of {numbers["combinations_asked"]} of the others {trained:.1f} %.

## How the size was chosen

Short runs with the same schedule and the same number of tokens, judged by nats per byte on held-out text (comparable
between vocabularies, unlike perplexity). Widths are multiples of 256 because block quantisation needs them.
At an equal number of tokens a larger vocabulary has read more text, which flatters it, and fewer layers learn faster
at first: rows within a few per cent of the chosen shape, at a small part of the full training, were not taken as a
reason to change it. The table was made before the text held combinations of facts.

| choice | parameters | MB (float16) | tokens | CPU seconds | nats per byte |
|---|---|---|---|---|---|
{rows}

## Twenty unpicked samples

Temperature 0.7, top-p 0.95, seeds 0 to 19; the prompts are the first ten chats (up to the last answer) and the first
three words of the first ten plain texts of the held-out set.

{_samples(numbers)}"""


def _samples(numbers: dict[str, object]) -> str:
    pairs = numbers["samples"]
    assert isinstance(pairs, list)
    blocks = []
    for number, (prompt, text) in enumerate(pairs):
        body = "\n".join(f"    {line}".rstrip() for line in f"{prompt}⟶{text}".splitlines())
        blocks.append(f"{number}.\n\n{body}\n")
    return "\n".join(blocks)
