"""The tables of `metrics.sqlite` (formats §14) and our additive ones, all prefixed `tui_`."""

from __future__ import annotations

LOSS_KINDS = "loss_kinds"
"""A key of `tui_runs.details`: kind of loss -> the step from which on the run's losses are of it."""
PROCESS = "process"
"""A key of `tui_runs.details`: what tells the run's process from every other, `platform.process_mark`."""

SHARED_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
        run_id          INTEGER PRIMARY KEY,
        started_at      TEXT NOT NULL,
        ended_at        TEXT,
        adapter_version INTEGER,
        phase           TEXT,
        seed            INTEGER,
        status          TEXT
    );
CREATE TABLE IF NOT EXISTS steps (
        run_id         INTEGER NOT NULL REFERENCES runs(run_id),
        step           INTEGER NOT NULL,
        loss           REAL,
        lr             REAL,
        grad_norm      REAL,
        tokens_per_sec REAL,
        peak_vram_mb   INTEGER,
        at             TEXT NOT NULL,
        PRIMARY KEY (run_id, step)
    );
CREATE TABLE IF NOT EXISTS evals (
        run_id     INTEGER NOT NULL REFERENCES runs(run_id),
        step       INTEGER NOT NULL,
        val_loss   REAL,
        perplexity REAL,
        retention  REAL,
        at         TEXT NOT NULL,
        PRIMARY KEY (run_id, step)
    );
CREATE TABLE IF NOT EXISTS exports (
        exported_at TEXT PRIMARY KEY,
        quant       TEXT,
        merged      INTEGER,
        ollama_name TEXT,
        size_bytes  INTEGER,
        duration_s  REAL
    );
CREATE TABLE IF NOT EXISTS tokenization (
        run_id                  INTEGER PRIMARY KEY REFERENCES runs(run_id),
        total_sections          INTEGER NOT NULL,
        cache_hits              INTEGER NOT NULL,
        cache_misses            INTEGER NOT NULL,
        total_tokenize_seconds  REAL NOT NULL,
        cache_bytes_after       INTEGER NOT NULL,
        at                      TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS gate_events (
        run_id        INTEGER NOT NULL REFERENCES runs(run_id),
        adapter_name  TEXT NOT NULL,
        mean_weight   REAL NOT NULL,
        sample_count  INTEGER NOT NULL,
        mode          TEXT NOT NULL,
        at            TEXT NOT NULL,
        PRIMARY KEY (run_id, adapter_name)
    );
CREATE TABLE IF NOT EXISTS preference_mining (
        event_id         INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id           INTEGER NOT NULL,
        judge_name       TEXT NOT NULL,
        sample_count     INTEGER NOT NULL,
        mined_pairs      INTEGER NOT NULL,
        skipped_prompts  INTEGER NOT NULL,
        write_mode       TEXT NOT NULL,
        at               TEXT NOT NULL
    );
"""

# `started_at` ties extras to one row of `runs`: another tool may reuse the id of a crashed run.
ADDITIVE_TABLES = """
CREATE TABLE IF NOT EXISTS tui_runs (
        run_id           INTEGER PRIMARY KEY,
        started_at       TEXT NOT NULL,
        adapter_name     TEXT,
        parameterization TEXT,
        details          TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_run_holders (
        run_id      INTEGER PRIMARY KEY,
        started_at  TEXT NOT NULL,
        pid         INTEGER NOT NULL,
        host        TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_gate_steps (
        run_id   INTEGER NOT NULL,
        step     INTEGER NOT NULL,
        loss     REAL,
        entropy  REAL,
        at       TEXT NOT NULL,
        PRIMARY KEY (run_id, step)
    );
CREATE TABLE IF NOT EXISTS tui_gate_entropy (
        run_id          INTEGER PRIMARY KEY,
        prompt_entropy  REAL NOT NULL,
        at              TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_gate_evaluations (
        evaluation_id  INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id         INTEGER,
        at             TEXT NOT NULL,
        report         TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_exports (
        export_id    INTEGER PRIMARY KEY AUTOINCREMENT,
        exported_at  TEXT NOT NULL,
        target       TEXT NOT NULL,
        quant        TEXT,
        folder       TEXT,
        mix          TEXT,
        gate_mode    TEXT,
        drift        TEXT,
        size_bytes   INTEGER,
        duration_s   REAL
    );
CREATE TABLE IF NOT EXISTS tui_sweeps (
        run_id  INTEGER PRIMARY KEY,
        at      TEXT NOT NULL,
        report  TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_sweep_results (
        key     TEXT PRIMARY KEY,
        at      TEXT NOT NULL,
        result  TEXT NOT NULL
    );
CREATE TABLE IF NOT EXISTS tui_traffic (
        traffic_id          INTEGER PRIMARY KEY AUTOINCREMENT,
        at                  TEXT NOT NULL,
        route               TEXT NOT NULL,
        view                TEXT NOT NULL,
        mode                TEXT NOT NULL,
        weights             TEXT NOT NULL,
        entropy             REAL,
        normalised_entropy  REAL,
        ood_score           REAL,
        is_ood              INTEGER NOT NULL,
        prompt_tokens       INTEGER NOT NULL,
        answer_tokens       INTEGER NOT NULL,
        first_token         REAL,
        seconds             REAL NOT NULL,
        finish              TEXT NOT NULL,
        prompt              TEXT
    );
"""
