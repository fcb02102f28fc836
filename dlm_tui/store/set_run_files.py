"""Results of a set's run as files: CSV for spreadsheets, JSON lines as lm-evaluation-harness logs its samples."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_tui.document.prompt_set_files import csv_text, expected_columns, json_lines
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.store.set_runs import SetRun


def results_csv(run: SetRun) -> str:
    """A row per answer: prompt, view, output, pass, why it fails, gate weights, log-probabilities (nats)."""
    names = list(dict.fromkeys(name for answer in run.answers for name in answer.weights))
    header = ["prompt", "view", "output", "pass", "reason", *(f"weight_{name}" for name in names)]
    header += ["logprob", "former_logprob"]
    rows: list[list[str | float | None]] = []
    for answer in run.answers:
        passed = "" if not answer.expected else "FAIL" if answer.broken else "PASS"
        weights = [answer.weights.get(name) for name in names]
        row: list[str | float | None] = [answer.prompt, answer.view, answer.text, passed, "; ".join(answer.broken)]
        rows.append([*row, *weights, answer.logprob, answer.former_logprob])
    return csv_text(header, rows)


def results_jsonl(run: SetRun, cases: Sequence[PromptCase]) -> str:
    """A sample a line: `doc_id`, `doc`, `target`, `arguments`, `resps`, `filtered_resps`, and what is added here."""
    known = {case.prompt: (index, case) for index, case in enumerate(cases)}
    lines = []
    for answer in run.answers:
        index, case = known.get(answer.prompt, (len(known), PromptCase(answer.prompt)))
        target = next((item.value for item in case.expect if item.kind == "equals" and not item.negated), "")
        expected = zip(expected_columns(len(case.expect)), map(str, case.expect), strict=True)
        settings = {"until": [], "temperature": run.temperature, "top_p": run.top_p, "max_gen_toks": run.max_tokens}
        lines.append(
            {
                "doc_id": index,
                "doc": {"prompt": answer.prompt, **dict(expected)},
                "target": target,
                "arguments": [[answer.prompt, settings]],
                "resps": [[answer.text]],
                "filtered_resps": [answer.text],
                "view": answer.view,
                "weights": answer.weights,
                "logprob": answer.logprob,
                "former_logprob": answer.former_logprob,
                "passed": None if not answer.expected else not answer.broken,
                "why": answer.broken,
            }
        )
    return json_lines(lines)
