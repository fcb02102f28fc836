"""What an answer to a prompt is expected to be, in the spelling of promptfoo's assertions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.patterns import BoundedPatterns

ExpectationKind = Literal["equals", "contains", "icontains", "starts-with", "regex", "adapter"]
KINDS: tuple[ExpectationKind, ...] = get_args(ExpectationKind)
_NOT = "not-"
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Expectation:
    """`adapter` looks at the gate's weights: `value` is to have the largest; all others look at the answer."""

    kind: ExpectationKind
    value: str
    negated: bool = False

    def __str__(self) -> str:
        """As it is written in a cell: `contains: key`, `not-regex: a+`, `adapter: tone`."""
        return f"{_NOT if self.negated else ''}{self.kind}: {self.value}"


def read_expectation(text: str) -> Expectation:
    """The expectation of a cell; one without a kind is what the answer equals. Raises UsageError.

    A kind of promptfoo's that runs code or asks another model is refused by name.
    """
    kind, colon, value = text.partition(":")
    name = kind.strip()
    negated = name.startswith(_NOT)
    name = name.removeprefix(_NOT)
    if colon and name in KINDS:
        return expectation(name, value.strip(), negated=negated)
    if colon and (name in _FOREIGN or name.partition("(")[0] in _FOREIGN):
        raise UsageError(
            f"the expectation {name!r} is not read here: there are {', '.join(KINDS)}, each also with not- in front; an"
            f" answer that begins so is written `equals: {name}: …`"
        )
    return expectation("equals", text.strip())


def expectation(kind: str, value: str, *, negated: bool = False) -> Expectation:
    """A checked expectation. Raises UsageError for another kind, an empty value, or a pattern that is none."""
    found = next((known for known in KINDS if known == kind), None)
    if found is None:
        raise UsageError(f"the expectation {kind[:80]!r} is not read here; there are {', '.join(KINDS)}")
    if not value:
        raise UsageError(f"the expectation {kind!r} has no value")
    if found == "regex":
        BoundedPatterns().check(value)
    return Expectation(found, value, negated)


def broken(expectations: tuple[Expectation, ...], text: str, weights: Mapping[str, float]) -> list[str]:
    """A sentence per expectation that the answer `text` does not meet; `weights` are the gate's for the prompt.

    Patterns together may take a second; one that takes longer is broken.
    """
    patterns = BoundedPatterns()
    found = []
    for item in expectations:
        try:
            met = _met(item, text.strip(), weights, patterns)
        except DlmTuiError as error:
            found.append(str(error))
            continue
        if met == item.negated:
            found.append(_sentence(item, text, weights))
    return found


def _met(item: Expectation, text: str, weights: Mapping[str, float], patterns: BoundedPatterns) -> bool:
    match item.kind:
        case "equals":
            return text == item.value.strip()
        case "contains":
            return item.value in text
        case "icontains":
            return item.value.casefold() in text.casefold()
        case "starts-with":
            return text.startswith(item.value)
        case "regex":
            return patterns.search(item.value, text)
        case "adapter":
            return bool(weights) and max(weights, key=lambda name: weights[name]) == item.value


def _sentence(item: Expectation, text: str, weights: Mapping[str, float]) -> str:
    if item.kind == "adapter":
        got = max(weights, key=lambda name: weights[name]) if weights else None
        have = f"{got} has it with {weights[got]:.2f}" if got is not None else "no gate was asked"
        return f"{item.value} should {'not ' if item.negated else ''}have the largest weight, but {have}"
    verb = {
        "equals": "equal",
        "contains": "contain",
        "icontains": "contain, in any case,",
        "starts-with": "start with",
        "regex": "match",
    }[item.kind]
    shown = " ".join(text.split())
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}\u2026"
    return f"should {'not ' if item.negated else ''}{verb} {item.value!r}, but is {shown!r}"


_FOREIGN = frozenset(
    {
        "answer-relevance", "classifier", "contains-all", "contains-any", "contains-json", "contains-sql",
        "contains-xml", "context-faithfulness", "context-recall", "context-relevance", "cost", "eval", "factuality",
        "file", "fn", "g-eval", "grade", "icontains-all", "icontains-any", "is-json", "is-refusal", "is-sql",
        "is-valid-openai-tools-call", "is-xml", "javascript", "latency", "levenshtein", "llm-rubric",
        "model-graded-closedqa", "moderation", "perplexity", "pi", "python", "rouge-n", "bleu", "meteor",
        "select-best", "similar", "webhook", "word-count",
    }
)  # fmt: skip
