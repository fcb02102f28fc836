"""Short runs that compare shapes, vocabularies and optimisers by nats per byte on held-out text."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from . import build, network, tokens
from .measure import model_nats

CHOICES: dict[str, tuple[dict[str, int], dict[str, object]]] = {
    "chosen shape": ({}, {}),
    "AdamW alone": ({}, {"muon": False}),
    "vocabulary 2,048": ({"vocab": 2048}, {}),
    "vocabulary 4,096": ({"vocab": 4096}, {}),
    "4 layers": ({"layers": 4}, {}),
    "6 layers, narrow feed-forward": ({"layers": 6, "feed_forward": 512}, {}),
    "hidden 192, 6 layers": ({"hidden": 192, "heads": 6, "layers": 6, "feed_forward": 512}, {}),
    "matrix rate 0.04": ({}, {"matrix_rate": 0.04}),
}
SCHEDULE = network.Schedule(steps=150, batch_rows=8, warmup=15, long_share=0.0)
TEXTS = 600


def run(path: Path, recipe: build.Recipe, only: list[str] | None = None) -> None:
    """Measures every choice and writes the table to `path` after each."""
    torch.set_num_threads(recipe.threads)
    texts = list(build.held_out(TEXTS, 20_000).values())
    size = sum(len(text.encode()) for text in texts)
    table: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for name, (shape_changes, schedule_changes) in CHOICES.items():
        if name in table or (only and name not in only):
            continue
        shape = replace(recipe.shape, **shape_changes)
        schedule = replace(SCHEDULE, **schedule_changes)  # type: ignore[arg-type]
        trial = replace(recipe, shape=shape, schedule=schedule)
        tokenizer = build.make_tokenizer(shape.vocab)
        short, long = build.rows(tokenizer, trial)
        model = network.new_model(shape, schedule.seed)
        started = time.process_time()
        network.train(model, short, long, schedule, bfloat16=recipe.bfloat16)
        seconds = time.process_time() - started
        model = network.halved(model)
        nats = sum(model_nats(model, list(tokens.encode_documents(tokenizer, texts))))
        parameters = sum(p.numel() for p in model.parameters())
        table[name] = {
            "parameters": parameters,
            "megabytes": 2 * parameters / 1e6,
            "tokens": short.numel(),
            "cpu_seconds": round(seconds, 1),
            "nats_per_byte": round(nats / size, 4),
        }
        build.say(f"{name}: {table[name]}")
        path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
