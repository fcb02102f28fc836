"""Documents of the base's corpus: plain texts of the town and chats in several registers, all from one seed.

A document is one string, already in the chat template where it is a chat. The same seed and index give the same text.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator

from .grammar import Entity, load_grammar
from .morphology import capital, plural, tidy

START, END, END_OF_TEXT, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|pad|>"
CHAT_SHARE = 0.55
COMBINATION_SHARE = 0.18
WITHHELD_IN = 5
REGISTERS = ("cheerful", "sailor", "formal", "poet", "gloomy", "terse")
_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
_GOODS = ("egg", "candle", "loaf", "crab", "apple", "button", "cup", "onion", "lemon", "fish hook", "rope", "boat")
_SAILOR = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "yes": "aye", "of": "o'",
    "and": "an'", "the": "th'", "to": "t'",
}  # fmt: skip

_COMMON = frozenset(
    ("The", "A", "An", "It", "He", "She", "They", "You", "Yes", "No", "To", "In", "At", "There", "First", "Use",
     "Keep", "Then", "Go", "With", "For", "Th'", "T'", "Ye", "Be", "After", "His", "Her")
)  # fmt: skip


class Corpus:
    """Generates the documents; `document(i)` depends on the seed and `i` alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.grammar = load_grammar()
        self.grammar.entities["sum"] = _sums()

    def document(self, index: int) -> str:
        """One plain text or one chat."""
        rng = random.Random(f"{self.seed}/{index}")
        if rng.random() < CHAT_SHARE:
            return self.chat(rng)
        return tidy(self.grammar.expand("doc", rng, {}))

    def documents(self, count: int, first: int = 0) -> Iterator[str]:
        """`count` documents in order."""
        for index in range(first, first + count):
            yield self.document(index)

    def pair(self, rng: random.Random) -> tuple[str, str]:
        """One plain question and its answer."""
        if rng.random() < COMBINATION_SHARE:
            return self.combination(rng, unseen=False)
        return self._asked("chat", rng)

    def combination(self, rng: random.Random, *, unseen: bool) -> tuple[str, str]:
        """A question that joins two facts, and its only answer; one that no document holds if `unseen`."""
        while True:
            question, answer = self._asked("combination", rng)
            if withheld(answer) == unseen:
                return question, answer

    def _asked(self, rule: str, rng: random.Random) -> tuple[str, str]:
        question, answer = self.grammar.expand(rule, rng, {}).split(" => ", 1)
        return tidy(question), tidy(answer)

    def chat(self, rng: random.Random) -> str:
        """A chat of one to three turns; about half of them in a register, asked for or by a system turn."""
        turns = rng.choices((1, 2, 3), (0.86, 0.11, 0.03))[0]
        register = rng.choice(REGISTERS) if rng.random() < 0.45 else "plain"
        how = rng.random()
        parts = []
        if (register != "plain" and how < 0.5) or (register == "plain" and how < 0.12):
            parts.append(_turn("system", self.grammar.expand(f"reg_system_{register}", rng, {})))
        for _ in range(turns):
            question, answer = self.pair(rng)
            if register != "plain" and how >= 0.5:
                question = f"{question} {tidy(self.grammar.expand(f'reg_ask_{register}', rng, {}))}"
            parts += [_turn("user", question), _turn("assistant", self.in_register(register, answer, rng))]
        return "".join(parts)

    def in_register(self, register: str, answer: str, rng: random.Random) -> str:
        """`answer` as it is said in `register`."""
        if register == "plain":
            return answer
        if register == "terse":
            return _terse(answer)
        if register == "poet":
            return f"{answer}\n{tidy(self.grammar.expand('couplet', rng, {}))}"
        opening = self.grammar.expand(f"reg_open_{register}", rng, {})
        closing = self.grammar.expand(f"reg_close_{register}", rng, {})
        if register == "sailor":
            answer = sailor_spelling(answer)
        if opening.endswith((",", ":", "but")):
            answer = _lower_first(answer)
        return tidy(f"{opening} {answer} {closing}") if "\n" not in answer else f"{opening} {answer}\n{closing}".strip()


def withheld(answer: str) -> bool:
    """Whether the combination with this answer is in no document: one in `WITHHELD_IN`, in either order."""
    words = " ".join(sorted(re.findall(r"[\w'-]+", answer)))
    return hashlib.blake2b(words.encode(), digest_size=8).digest()[0] % WITHHELD_IN == 0


def render(role_texts: list[tuple[str, str]]) -> str:
    """Turns in the chat template, as the corpus writes them."""
    return "".join(_turn(role, text) for role, text in role_texts)


def _turn(role: str, text: str) -> str:
    return f"{START}{role}\n{text}{END}\n"


def _sums() -> list[Entity]:
    rows: list[Entity] = []
    for a in range(1, 11):
        for b in range(1, 11):
            noun = _GOODS[(a * 7 + b) % len(_GOODS)]
            rows.append({
                "name": noun, "noun": noun, "nouns": plural(noun), "count": _NUMBERS[a + 1], "a": _NUMBERS[a],
                "b": _NUMBERS[b], "c": _NUMBERS[a + b], "each": "one penny" if b == 1 else f"{_NUMBERS[b]} pence",
                "total": _pence((a + 1) * b),
            })  # fmt: skip
    return rows


def _pence(amount: int) -> str:
    shillings, pence = divmod(amount, 12)
    words = []
    if shillings:
        words.append("one shilling" if shillings == 1 else f"{_NUMBERS[shillings]} shillings")
    if pence:
        words.append("one penny" if pence == 1 else f"{_NUMBERS[pence]} pence")
    return " and ".join(words)


def _terse(answer: str) -> str:
    first = re.split(r"(?<=[.!?])\s", answer, maxsplit=1)[0]
    short = re.sub(
        r"^(You can find (him|her) |The house of \w+ \w+ is |It is |You need |You use it |There (is|are) |"
        r"(The |A |An )?[\w' -]+? (is|are|lives|works|belongs|likes|eats|brings|carries|opens) )",
        "",
        first,
    )
    return capital(short) if len(short) > 3 else first


def sailor_spelling(answer: str) -> str:
    """`answer` as the sailor register spells it."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        new = _SAILOR[word.lower()]
        return capital(new) if word[0].isupper() else new

    answer = re.sub(r"\b(" + "|".join(_SAILOR) + r")\b", swap, answer, flags=re.IGNORECASE)
    return re.sub(r"(\w{2})ing\b", r"\1in'", answer)


def _lower_first(answer: str) -> str:
    first = answer.split(" ", 1)[0].rstrip(",.")
    return answer[:1].lower() + answer[1:] if first in _COMMON else answer
