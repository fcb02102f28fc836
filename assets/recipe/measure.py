"""What the model card says: perplexities beside n-gram models, known facts, unpicked samples."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from .build import CORPUS_SEED
from .corpus import END, END_OF_TEXT, Corpus, render
from .tokens import encode_documents


class NGrams:
    """A unigram and a bigram model of token ids; the bigram is interpolated with the unigram, the unigram add-one."""

    def __init__(self, training: Sequence[list[int]], vocab: int, weight: float) -> None:
        self.weight = weight
        flat = torch.tensor([token for ids in training for token in ids])
        counts = torch.bincount(flat, minlength=vocab).double()
        self.unigram = (counts + 1) / (counts.sum() + vocab)
        joint = torch.zeros(vocab * vocab, dtype=torch.float32)
        for ids in training:
            row = torch.tensor(ids)
            joint.index_add_(0, row[:-1] * vocab + row[1:], torch.ones(len(ids) - 1))
        self.joint = joint.view(vocab, vocab)
        self.vocab = vocab

    def nats(self, ids: Sequence[int]) -> tuple[float, float]:
        """Summed -ln p of tokens 1.. of one document, unigram and bigram."""
        row = torch.tensor(ids)
        unigram = self.unigram[row[1:]]
        before = self.joint[row[:-1]].sum(-1).double()
        seen = self.joint[row[:-1], row[1:]].double() / before.clamp(min=1)
        bigram = self.weight * seen + (1 - self.weight) * unigram
        return float(-unigram.log().sum()), float(-bigram.log().sum())


@torch.inference_mode()
def model_nats(model: LlamaForCausalLM, documents: Sequence[list[int]], batch: int = 32) -> list[float]:
    """Summed -ln p in nats of tokens 1.. of each document, each scored on its own from its first token."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
    result = [0.0] * len(documents)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(documents[i]) for i in chosen)
        ids = torch.full((len(chosen), width), 3)
        for row, i in enumerate(chosen):
            ids[row, : len(documents[i])] = torch.tensor(documents[i])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden).float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for row, i in enumerate(chosen):
            result[i] = float(losses[row, : len(documents[i]) - 1].double().sum())
    return result


def perplexities(
    model: LlamaForCausalLM, tokenizer: Tokenizer, texts: Sequence[str], training_documents: int, weight: float
) -> dict[str, float | int]:
    """Perplexity per token of model, bigram and unigram on the same tokens of `texts`, and nats per byte."""
    documents = list(encode_documents(tokenizer, texts))
    training = list(encode_documents(tokenizer, Corpus(CORPUS_SEED).documents(training_documents)))
    ngrams = NGrams(training, tokenizer.get_vocab_size(), weight)
    scored = sum(len(ids) - 1 for ids in documents)
    own = sum(model_nats(model, documents))
    unigram, bigram = (sum(column) for column in zip(*(ngrams.nats(ids) for ids in documents), strict=True))
    return {
        "documents": len(documents),
        "tokens": scored,
        "model": math.exp(own / scored),
        "bigram": math.exp(bigram / scored),
        "unigram": math.exp(unigram / scored),
        "model_nats_per_byte": own / sum(len(text.encode()) for text in texts),
    }


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    limit: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """The continuation of each prompt up to an end token; greedy at temperature 0."""
    stops = {tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)}
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        made: list[int] = []
        cache = None
        for _ in range(limit):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            token = _choose(output.logits[0, -1], temperature, top_p, generator)
            if token in stops:
                break
            made.append(token)
            ids = torch.tensor([[token]])
        texts.append(tokenizer.decode(made))
    return texts


def _choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    probabilities, order = torch.softmax(logits / temperature, -1).sort(descending=True)
    kept = probabilities * ((probabilities.cumsum(-1) - probabilities) < top_p)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def fact_questions() -> list[tuple[str, str]]:
    """Questions about the town's people and boats, each with the words that a right answer holds."""
    entities = Corpus(CORPUS_SEED).grammar.entities
    asked = []
    for person in entities["person"]:
        name = person["name"]
        asked += [
            (f"What does {person['full']} do?", person["trade"]),
            (f"Where does {person['full']} live?", person["street"]),
            (f"What does {name} like to eat?", person["food"]),
            (f"What is the name of {name}'s {person['pet']}?", person["petname"]),
        ]
    for boat in entities["boat"]:
        asked += [
            (f"Who owns the {boat['name']}?", boat["owner"]),
            (f"What colour is the {boat['name']}?", boat["colour"]),
        ]
    return asked


def facts_known(model: LlamaForCausalLM, tokenizer: Tokenizer) -> float:
    """Share of `fact_questions` whose greedy answer holds the right words."""
    asked = fact_questions()
    answers = _answers(model, tokenizer, asked, limit=32)
    return sum(words in answer for answer, (_, words) in zip(answers, asked, strict=True)) / len(asked)


def _answers(model: LlamaForCausalLM, tokenizer: Tokenizer, asked: Sequence[tuple[str, str]], limit: int) -> list[str]:
    """The greedy answer to each question of `asked`."""
    prompts = [render([("user", question)]) + "<|im_start|>assistant\n" for question, _ in asked]
    return complete(model, tokenizer, prompts, limit=limit)


def combination_questions(count: int, *, unseen: bool) -> list[tuple[str, str]]:
    """`count` questions that join two facts, each combination once, with its answer; withheld ones if `unseen`."""
    corpus, rng = Corpus(CORPUS_SEED), random.Random(CORPUS_SEED)
    found: dict[str, str] = {}
    while len(found) < count:
        question, answer = corpus.combination(rng, unseen=unseen)
        found.setdefault(answer, question)
    return [(question, answer) for answer, question in found.items()]


def combinations_known(model: LlamaForCausalLM, tokenizer: Tokenizer, asked: Sequence[tuple[str, str]]) -> float:
    """Share of `asked` whose greedy answer is word for word the right one."""
    answers = _answers(model, tokenizer, asked, limit=48)
    return sum(text.strip() == right for text, (_, right) in zip(answers, asked, strict=True)) / len(asked)


def samples(model: LlamaForCausalLM, tokenizer: Tokenizer, texts: Sequence[str]) -> list[tuple[str, str]]:
    """20 unpicked samples (prompt, continuation): the first ten chats and ten texts of `texts`, seeds 0 to 19."""
    chats = [text.rsplit("<|im_start|>assistant\n", 1)[0] for text in texts if text.startswith("<|im_start|>")]
    sanitize = [" ".join(text.split()[:3]) for text in texts if not text.startswith("<|im_start|>")]
    prompts = [text + "<|im_start|>assistant\n" for text in islice(chats, 10)] + sanitize[:10]
    made = []
    for seed, prompt in enumerate(prompts):
        made += complete(model, tokenizer, [prompt], 120, temperature=0.7, top_p=0.95, seed=seed)
    return list(zip(prompts, made, strict=True))
