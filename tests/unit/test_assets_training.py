from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.recipe.corpus import Corpus
from assets.recipe.network import Schedule, Shape, halved, new_model, save_model, train
from assets.recipe.tokens import encode_documents, pack, save_tokenizer, train_tokenizer

SHAPE = Shape(vocab=300, hidden=32, layers=2, heads=4, kv_heads=2, feed_forward=64, context=64)
SCHEDULE = Schedule(steps=30, row_length=32, batch_rows=4, long_row_length=64, long_share=0.2, warmup=3)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    texts = list(Corpus(4).documents(120))
    documents = list(encode_documents(train_tokenizer(texts, SHAPE.vocab), texts))
    return pack(documents[:80], 32), pack(documents[80:], 64)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_rows_begin_with_a_document(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    short, long = rows
    assert short.shape[1] == 32 and long.shape[1] == 64
    texts = list(Corpus(4).documents(80))
    tokenizer = train_tokenizer(list(Corpus(4).documents(120)), SHAPE.vocab)
    openings = {tuple(ids[:6]) for ids in encode_documents(tokenizer, texts)}
    assert all(tuple(row[:6].tolist()) in openings for row in short)


def test_training_is_reproducible_and_lowers_the_loss(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    losses: list[float] = []
    finished = []
    for _ in range(2):
        model = new_model(SHAPE, seed=1)
        train(model, *rows, SCHEDULE, report=lambda step, loss, seconds: losses.append(loss))
        finished.append(weights(model))
    assert same(*finished)
    assert losses[-1] < losses[0] - 0.5
    other = new_model(SHAPE, seed=2)
    train(other, *rows, SCHEDULE)
    assert not same(finished[0], weights(other))


def test_an_interrupted_run_resumes_to_the_same_weights(
    rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    straight = new_model(SHAPE, seed=1)
    train(straight, *rows, SCHEDULE)
    checkpoint = tmp_path / "checkpoint.safetensors"

    def stop(step: int, loss: float, seconds: float) -> None:
        if step == 25:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(new_model(SHAPE, seed=1), *rows, SCHEDULE, checkpoint=checkpoint, checkpoint_every=10, report=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    steps: list[int] = []
    resumed = new_model(SHAPE, seed=99)
    train(resumed, *rows, SCHEDULE, checkpoint=checkpoint, report=lambda step, loss, seconds: steps.append(step))
    assert steps[0] == 25  # from the checkpoint at 20, the next report is due at 25
    assert same(weights(straight), weights(resumed))


def test_a_checkpoint_of_another_schedule_is_refused(rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(new_model(SHAPE, seed=1), *rows, SCHEDULE, checkpoint=checkpoint, checkpoint_every=10)
    with pytest.raises(ValueError, match="another schedule"):
        train(new_model(SHAPE, seed=1), *rows, Schedule(steps=31), checkpoint=checkpoint)


def test_saved_files_load_in_transformers_with_the_same_values(tmp_path: Path) -> None:
    model = halved(new_model(SHAPE, seed=3))
    save_model(model, tmp_path)
    save_tokenizer(train_tokenizer(Corpus(4).documents(60), SHAPE.vocab), tmp_path, SHAPE.context)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert same(weights(model), weights(loaded))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Ada lives in Tanner Lane.", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, loaded(ids).logits)
