"""`dlm-tui traffic DOC`: what the gate did with the requests that were served."""

from __future__ import annotations

import argparse

import msgspec

from dlm_tui.counting import counted
from dlm_tui.output import emit, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How far back."""
    parser.description = (
        "Shares per adapter, entropy and prompts unlike the training ones, over the requests that `dlm-tui serve` "
        "answered. Prompts worth labelling are known only for `serve --keep-prompts N`."
    )
    parser.add_argument("--since", metavar="AGE", help="only requests within AGE: an integer and s, m, h or d")


def run(args: argparse.Namespace) -> int:
    """The report on stdout."""
    from dlm_tui.cli.metrics import cutoff_text
    from dlm_tui.cli.own_store import own_store
    from dlm_tui.store.traffic_report import traffic_report

    since = cutoff_text(args.since) if args.since is not None else None
    _, store = own_store(args)
    report = traffic_report(store, since)
    if args.json:
        emit(msgspec.to_builtins(report))
        return 0
    if not report.requests:
        print("no request was served" + (f" within {args.since}" if args.since else ""))
        return 0
    print(
        f"{counted(report.requests, 'request')}, {report.routed} routed by the gate, {report.unfinished} not finished"
    )
    print("views: " + ", ".join(f"{shown(view)} {count}" for view, count in report.views.items()))
    print(f"tokens: {report.prompt_tokens} read, {report.answer_tokens} said")
    if report.first_token_p50 is not None and report.first_token_p99 is not None:
        print(f"first token after {report.first_token_p50:.3f} s (median), {report.first_token_p99:.3f} s (99 %)")
    if report.routed:
        print("share: " + ", ".join(f"{shown(name)} {weight:.3f}" for name, weight in report.weights.items()))
        print(f"entropy: {_number(report.entropy)} nats, {_percent(report.normalised_entropy)} of ln N"
              f" (training: {_number(report.training_entropy)} nats)")  # fmt: skip
        print(f"unlike the training prompts: {_percent(report.ood_share)}")
    for span in report.spans if len(report.spans) > 1 else []:
        weights = " ".join(f"{shown(name)} {weight:.2f}" for name, weight in span.weights.items())
        print(f"  {span.begins}  {span.requests:>5}  entropy {_percent(span.normalised_entropy):>5}"
              f"  unlike {_percent(span.ood_share):>5}  {weights}")  # fmt: skip
    if report.worth_labelling:
        print("worth labelling (dlm-tui label DOC PROMPT --adapter NAME):")
    for one in report.worth_labelling:
        mark = "unlike" if one.is_ood else "unsure"
        print(f"  {mark}  {_percent(one.normalised_entropy):>5}  ×{one.times}  {shown(one.prompt)}")
    return 0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
