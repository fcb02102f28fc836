"""`dlm-tui route DOC [PROMPT]`: the gate's weights of one prompt, or of every line of standard input."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dlm_tui.counting import counted
from dlm_tui.input import read_prompts
from dlm_tui.output import emit, say, shown

if TYPE_CHECKING:
    from dlm_tui.gate import RouteResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, and whether to explain."""
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: one prompt per line of standard input")
    parser.add_argument(
        "--explain", action="store_true", help="also the pull of every token, and with --json the weights on the way"
    )


def run(args: argparse.Namespace) -> int:
    """Weights on stdout: one JSON object, or a line per prompt. The gate needs no adapters, so none are loaded."""
    from dlm_tui.cli.open_session import open_session
    from dlm_tui.progress import run_to_end

    prompts = read_prompts(args.prompt)
    session = open_session(args, adapters=False)
    names = session.document.adapter_names
    status = session.gate_status
    if status.problem:
        say(status.problem)
    results = []
    for prompt in prompts:
        result = run_to_end(session.router.route(prompt, explain=args.explain))
        if args.json:
            results.append(as_json(prompt, result))
            continue
        if result.tokens == 0:
            say(result.reason)
        _print(prompt, result)
    if args.json:
        gate = {"mode": status.mode, "in_force": status.in_force, "reason": status.problem}
        emit({"adapters": list(names), **gate, "results": results})
    return 0


def as_json(prompt: str, result: RouteResult) -> dict[str, Any]:
    """One result: weights sum to 1, entropy in nats, tokens used (at most 512)."""
    row: dict[str, Any] = {
        "prompt": prompt,
        "weights": result.weights,
        "entropy": result.entropy,
        "normalised_entropy": result.normalised_entropy,
        "tokens": result.tokens,
        "truncated": result.truncated,
        "mode": result.mode,
        "ood_score": result.ood_score,
        "is_ood": result.is_ood,
        "reason": result.reason,
    }
    if result.attributions is not None and result.trajectory is not None:
        row["pulls"] = [
            {
                "text": attribution.text,
                "start": attribution.start,
                "end": attribution.end,
                "pull": attribution.attribution,
            }
            for attribution in result.attributions
        ]
        row["trajectory"] = result.trajectory
    return row


def _print(prompt: str, result: RouteResult) -> None:
    weights = "  ".join(f"{name} {weight:.4f}" for name, weight in result.weights.items())
    notes = f"{result.entropy:.3f} nats  {counted(result.tokens, 'token')}"
    if result.truncated:
        notes += " (cut)"
    if result.is_ood:
        notes += "  unlike anything trained"
    sys.stdout.write(f"{weights}  {notes}  {_shown(prompt)}\n")
    for attribution in result.attributions or ():
        attributions = "  ".join(f"{name} {value:+.4f}" for name, value in attribution.attribution.items())
        sys.stdout.write(f"    {attributions}  {_shown(attribution.text)}\n")
    sys.stdout.flush()


def _shown(text: str, limit: int = 100) -> str:
    """One printable line: control characters are shown, never sent to the terminal."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return shown(cut, keep="")
