"""What every adapter does on its own sections and on those of the others."""

from __future__ import annotations

import statistics
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from typing import Protocol

from dlm_tui.document import BodyError, Document, Section, instruction_pairs, preference_triples
from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import DlmTuiError
from dlm_tui.model import Base, MixedModel
from dlm_tui.progress import Progress
from dlm_tui.scoring.effect import DEFAULT_NULLS, Scores, score_views
from dlm_tui.scoring.zscore import log_effect, z_of_effects

GROUPS = ("own", "others", "shared")
"""Sections tagged for the adapter, tagged for another one, and untagged ones, which train all adapters."""

_PROSE_PROMPT = 16
_COMPLETION = 64


class Opened(Protocol):
    """What the suite needs of a session."""

    document: Document
    base: Base
    model: MixedModel


@dataclass(frozen=True)
class Item:
    """A prompt of a section with the answer it trains, as token ids (the answer at most 64 tokens)."""

    section: int
    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class GroupScore:
    """An adapter over the prompts of a group of sections: mean `kl` and `js` in nats, `z` of the mean ln KL in standard
    deviations of the nulls, `gain` of the answers in nats per token (None without answers).
    """

    prompts: int
    kl: float
    js: float
    z: float | None
    gain: float | None


@dataclass(frozen=True)
class SectionScore:
    """The mean KL by adapter, nats, over the prompts of one section; `adapter` is whose section it is, None for all."""

    section_id: str
    line: int
    adapter: str | None
    kl: dict[str, float]


@dataclass(frozen=True)
class SkippedSection:
    """A section without a prompt, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class SuiteReport:
    """`adapters`: name → "own", "others", "shared" → the score, None for a group without prompts."""

    prompts: int
    nulls: int
    seed: int
    adapters: dict[str, dict[str, GroupScore | None]]
    sections: list[SectionScore]
    skipped: list[SkippedSection]

    def as_json(self) -> dict[str, object]:
        """The report as plain objects."""
        return asdict(self)


@dataclass
class _Tally:
    """What one adapter did over the prompts of a group."""

    kl: list[float] = field(default_factory=list)
    js: list[float] = field(default_factory=list)
    gain: list[float] = field(default_factory=list)
    nulls: list[list[float]] = field(default_factory=list)

    def add(self, scores: Scores, name: str, tokens: int) -> None:
        score = scores.views[name]
        self.kl.append(score.kl)
        self.js.append(score.js)
        if score.logprob is not None and score.base_logprob is not None:
            self.gain.append((score.logprob - score.base_logprob) / tokens)
        self.nulls.append([log_effect(kl) for kl in scores.null_kls])

    def report(self) -> GroupScore | None:
        if not self.kl:
            return None
        effect = statistics.fmean(map(log_effect, self.kl))
        noise = [statistics.fmean(column) for column in zip(*self.nulls, strict=True)]
        return GroupScore(
            prompts=len(self.kl),
            kl=statistics.fmean(self.kl),
            js=statistics.fmean(self.js),
            z=z_of_effects(effect, noise),
            gain=statistics.fmean(self.gain) if self.gain else None,
        )


def score_suite(
    session: Opened, nulls: int = DEFAULT_NULLS, seed: int | None = None
) -> Generator[Progress, None, SuiteReport]:
    """Score every adapter alone on the prompts of all sections; yields Progress("suite", prompts done, of).

    `nulls` null adapters, the same over all prompts, are what `z` compares with. Raises DlmTuiError when no adapter is
    trained or no section can be scored.
    """
    document, model = session.document, session.model
    if not model.names:
        raise DlmTuiError("no adapter is trained yet; run `dlm-tui train`")
    items, skipped = collect_items(document, session.base)
    if not items:
        raise DlmTuiError("no section of the document has a prompt to score")
    owners = {index: _owner(document, section) for index, section in enumerate(document.sections)}
    tallies = {name: {group: _Tally() for group in GROUPS} for name in model.names}
    by_section: dict[int, dict[str, list[float]]] = {}
    views = {name: {name: 1.0} for name in model.names}
    grown = seed_in_range(document.training.seed if seed is None else seed)
    yield Progress("suite", 0, len(items))
    for done, item in enumerate(items, start=1):
        scores = yield from score_views(model, item.prompt, views, item.answer or None, nulls=nulls, seed=grown)
        owner = owners[item.section]
        for name in model.names:
            group = "shared" if owner is None else "own" if owner == name else "others"
            tallies[name][group].add(scores, name, len(item.answer))
            by_section.setdefault(item.section, {}).setdefault(name, []).append(scores.views[name].kl)
        yield Progress("suite", done, len(items))
    return SuiteReport(
        prompts=len(items),
        nulls=nulls,
        seed=grown,
        adapters={name: {group: tally.report() for group, tally in groups.items()} for name, groups in tallies.items()},
        sections=[
            SectionScore(
                section_id=document.sections[index].section_id,
                line=document.sections[index].start_line,
                adapter=owners[index],
                kl={name: statistics.fmean(values) for name, values in found.items()},
            )
            for index, found in sorted(by_section.items())
        ],
        skipped=skipped,
    )


def collect_items(document: Document, base: Base) -> tuple[list[Item], list[SkippedSection]]:
    """The prompts of all sections in document order, and the sections without one (line and reason).

    Questions and preference prompts become a chat turn after the system prompt, with the answer or the chosen
    answer; of prose the first 16 tokens (at most half) are the prompt and the next ones the answer.
    """
    items: list[Item] = []
    skipped: list[SkippedSection] = []
    for index, section in enumerate(document.sections):
        try:
            found = _items(index, section, document, base)
        except BodyError as problem:
            skipped.append(SkippedSection(section.start_line, str(problem)))
            continue
        if not found:
            skipped.append(SkippedSection(section.start_line, f"a {section.type} section has no prompt"))
        items += found
    return items, skipped


def _items(index: int, section: Section, document: Document, base: Base) -> list[Item]:
    if section.type == "instruction":
        texts = [(pair.question, pair.answer) for pair in instruction_pairs(section)]
    elif section.type == "preference":
        texts = [(triple.prompt, triple.chosen) for triple in preference_triples(section)]
    elif section.type == "prose":
        ids = base.encode_raw(section.content, min(512, base.context_length))
        cut = min(_PROSE_PROMPT, len(ids) // 2)
        return [Item(index, ids[:cut], ids[cut : cut + _COMPLETION])] if cut else []
    else:
        return []
    room = max(1, base.context_length - _COMPLETION)
    return [
        Item(index, base.chat(question, document.system_prompt)[-room:], _answer(base, text))
        for question, text in texts
    ]


def _answer(base: Base, text: str) -> list[int]:
    return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])[:_COMPLETION]


def _owner(document: Document, section: Section) -> str | None:
    return section.adapter or (None if document.adapter_names else "default")
