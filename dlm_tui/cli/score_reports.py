"""What `dlm-tui score` prints: effects of views, a text's perplexity, the suite, and the curve of a coefficient."""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from dlm_tui.counting import counted
from dlm_tui.errors import UsageError
from dlm_tui.output import emit, say, shown

if TYPE_CHECKING:
    from dlm_tui.model.views import View
    from dlm_tui.scoring.effect import Score
    from dlm_tui.session import Session

MAX_TOKENS = 64
_Number = TypeVar("_Number", int, float)


def views_report(args: argparse.Namespace, session: Session, prompt: str, seed: int) -> int:
    """What each view changes of the next token, beside random adapters, and of a given completion."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import score_views

    views = _chosen(args, session)
    routed = run_to_end(session.router.route(prompt)) if any(view.kind == "gated" for view in views) else None
    if routed is not None and routed.note:
        say(routed.note)
    mixes = _scaled(args, {view.name: session.mix_of(view, routed.weights if routed else None) for view in views})
    nulls = {f"null {number}": number for number in args.null_view}
    ids = session.base.chat(prompt, session.document.system_prompt)
    completion = args.completion
    if args.heat:
        completion = _answer(args, session, ids, next(iter(mixes.values())), seed)
        say(f"answer of {views[0].name}: {completion}" if completion else f"{views[0].name} answers nothing")
    tokens = _tokens(session, completion) if completion else None
    if completion and not tokens:
        raise UsageError("the completion is empty")
    scores = run_to_end(
        score_views(
            session.model_for(mixes.values()),
            ids,
            mixes | {key: {} for key in nulls},
            tokens,
            nulls=args.null,
            seed=seed,
            null_views=nulls,
            rank_scale=given(args.rank_scale, 1.0),
        ),
        Narration(quiet=True),
    )
    pieces = [session.base.tokenizer.decode([token]) for token in tokens or []]
    if args.json:
        emit(
            {
                "prompt": prompt,
                "tokens": len(ids),
                "completion": completion or None,
                "completion_tokens": len(pieces) if completion else None,
                "nulls": len(scores.null_kls),
                "seed": seed,
                "null_mean": scores.null_mean,
                "null_std": scores.null_std,
                "views": [_as_json(score, mixes.get(name, {}), pieces) for name, score in scores.views.items()],
            }
        )
        return 0
    for score in scores.views.values():
        print(_sentence(score))
        if score.logprob is not None and score.base_logprob is not None:
            print(f"  completion: {score.logprob:.2f} nats, {score.logprob - score.base_logprob:+.2f} against the base")
            print("  " + " ".join(f"{shown(p)!r}{h:+.2f}" for p, h in zip(pieces, score.heat or (), strict=True)))
    if scores.null_kls:
        print(
            f"noise: {len(scores.null_kls)} random adapters of the same shape and size change it by "
            f"{scores.null_mean:.4f} ± {scores.null_std:.4f} nats"
        )
    return 0


def text_report(args: argparse.Namespace, session: Session, text: str) -> int:
    """Log-probability and perplexity of a text under the base and every view."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import score_text

    views = [view for view in _chosen(args, session) if view.kind != "base"]
    routed = run_to_end(session.router.route(text)) if any(view.kind == "gated" for view in views) else None
    mixes = _scaled(args, {view.name: session.mix_of(view, routed.weights if routed else None) for view in views})
    nulls = {f"null {number}": number for number in args.null_view}
    work = score_text(
        session.model_for(mixes.values()),
        session.base.encode_raw(text, limit=None),
        mixes,
        nulls,
        given(args.rank_scale, 1.0),
    )
    scores = run_to_end(work, Narration(quiet=True))
    if args.json:
        rows = [
            {"view": s.view, "logprob": s.logprob, "tokens": s.tokens, "perplexity": s.perplexity}
            for s in scores.values()
        ]
        emit({"text": args.text, "views": rows})
        return 0
    for score in scores.values():
        print(
            f"{shown(score.view)}  perplexity {score.perplexity:.3f}  "
            f"({score.logprob:.2f} nats, {counted(score.tokens, 'token')})"
        )
    return 0


def suite_report(args: argparse.Namespace, session: Session, seed: int) -> int:
    """What every adapter changes over the sections of each, its own and the others'."""
    from dlm_tui.cli.narration import Narration
    from dlm_tui.progress import Progress, run_to_end
    from dlm_tui.scoring import score_suite

    def report(step: Progress) -> None:
        if step.stage == "suite":  # not every prompt's own steps
            narration(step)

    narration = Narration(quiet=True)
    result = run_to_end(score_suite(session, nulls=args.null, seed=seed), report)
    if args.json:
        emit(result.as_json())
        return 0
    for item in result.skipped:
        say(f"line {item.line}: not scored, {item.reason}")
    for name, groups in result.adapters.items():
        for group, tally in groups.items():
            if tally is None:
                continue
            z = "" if tally.z is None else f", {_sigmas(tally.z)}"
            gain = "" if tally.gain is None else f", answers {tally.gain:+.3f} nats a token"
            print(
                f"{shown(name)} on {group} sections: {tally.kl:.3f} nats{z}{gain} ({counted(tally.prompts, 'prompt')})"
            )
    return 0


def sweep_report(args: argparse.Namespace, session: Session, prompt: str, grid: list[float]) -> int:
    """Effects and answers of one adapter over a grid of coefficients, in words, as JSON or as a table."""
    from dlm_tui.model import Sampling
    from dlm_tui.progress import run_to_end
    from dlm_tui.scoring import sweep

    ids = session.base.chat(prompt, session.document.system_prompt)
    sampling = Sampling(max_tokens=given(args.max_tokens, MAX_TOKENS), temperature=0.0)
    sides = (_tokens(session, args.chosen), _tokens(session, args.rejected or "")) if args.chosen else None
    points = run_to_end(sweep(session.model_for([{args.sweep: 1.0}]), ids, args.sweep, grid, sampling, sides=sides))
    if args.json:
        emit({"prompt": prompt, "adapter": args.sweep, "points": [asdict(point) for point in points]})
        return 0
    if args.csv:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["c", "kl", "js", "chosen", "rejected"])
        table.writerows([p.c, p.kl, p.js, p.chosen, p.rejected] for p in points)
        return 0
    for point in points:
        both = "" if point.chosen is None else f"  chosen {point.chosen:.2f}"
        both += "" if point.rejected is None else f", rejected {point.rejected:.2f} nats"
        print(f"c = {point.c:+g}  {point.kl:.3f} nats{both}  {shown(point.text)}")
    return 0


def given(value: _Number | None, default: _Number) -> _Number:
    """An option that is refused where it would do nothing has no default in the parser."""
    return default if value is None else value


def _scaled(args: argparse.Namespace, mixes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Every mix times λ; 0 is the base, 1 the mix itself, a negative one its opposite."""
    if args.scale == 1.0:
        return mixes
    return {
        f"{name} × {args.scale:g}": {adapter: value * args.scale for adapter, value in mix.items()}
        for name, mix in mixes.items()
    }


def _chosen(args: argparse.Namespace, session: Session) -> list[View]:
    from dlm_tui.document.named_mixes import is_mix_name, mix_of_argument
    from dlm_tui.model.views import BASE, GATED, custom, named_views, solo

    names = list(session.model.names)
    if args.views:
        views = named_views(args.views, names)
    else:
        gated = [GATED] if len(names) > 1 and session.document.gate_enabled else []
        views = [*gated, *(solo(name) for name in names)]
    for spec in args.mix:
        declared = session.document.routing_names
        mix = mix_of_argument(session.document, spec, declared, signed=True, versions=True)
        views.append(custom(mix, name=f"mix:{spec.strip()}" if is_mix_name(spec) else spec))
    if not views:
        say("no adapter is trained yet: this is the base alone")
        views = [BASE]
    return list({view.name: view for view in views}.values())


def _answer(args: argparse.Namespace, session: Session, ids: list[int], mix: dict[str, float], seed: int) -> str:
    from dlm_tui.model import Sampling
    from dlm_tui.model.generation import generate
    from dlm_tui.progress import run_to_end

    sampling = Sampling(max_tokens=given(args.max_tokens, MAX_TOKENS), temperature=0.0, seed=seed % 2**63)
    return str(run_to_end(generate(session.model_for([mix]), ids, [mix], sampling))[0].text)


def _tokens(session: Session, text: str) -> list[int]:
    return list(session.base.tokenizer(text, add_special_tokens=False)["input_ids"])


def _as_json(score: Score, mix: dict[str, float], pieces: list[str]) -> dict[str, Any]:
    heat = None
    if score.heat is not None:
        heat = [{"token": piece, "nats": value} for piece, value in zip(pieces, score.heat, strict=True)]
    return {
        "view": score.view,
        "mix": mix,
        "kl": score.kl,
        "js": score.js,
        "z": score.z,
        "logprob": score.logprob,
        "base_logprob": score.base_logprob,
        "heat": heat,
    }


def _sentence(score: Score) -> str:
    sigmas = "" if score.z is None else f", {_sigmas(score.z)}"
    return f"{shown(score.view)} changes the next token by {score.kl:.3f} nats{sigmas} (JS {score.js:.3f})"


def _sigmas(z: float) -> str:
    return f"{z:.1f}σ above noise" if z >= 0 else f"{-z:.1f}σ below noise"
