"""English word forms for the corpus generator: articles, plurals, verb forms, capitals."""

from __future__ import annotations

import re

_PAST = {
    "beat": "beat", "bend": "bent", "bind": "bound", "bring": "brought", "build": "built", "burn": "burned",
    "buy": "bought", "catch": "caught", "climb": "climbed", "come": "came", "cut": "cut", "dig": "dug",
    "draw": "drew", "drink": "drank", "drive": "drove", "eat": "ate", "feed": "fed", "find": "found",
    "fly": "flew", "forget": "forgot", "get": "got", "give": "gave", "go": "went", "grind": "ground",
    "grow": "grew", "hang": "hung", "have": "had", "hear": "heard", "hide": "hid", "hold": "held",
    "keep": "kept", "knit": "knitted", "leave": "left", "lend": "lent", "light": "lit", "lose": "lost",
    "make": "made", "meet": "met", "pay": "paid", "put": "put", "read": "read", "ride": "rode",
    "ring": "rang", "row": "rowed", "run": "ran", "say": "said", "see": "saw", "sell": "sold",
    "send": "sent", "set": "set", "sew": "sewed", "shake": "shook", "shear": "sheared", "shoe": "shod",
    "sing": "sang", "sit": "sat", "sleep": "slept", "spin": "spun", "split": "split", "stand": "stood",
    "steal": "stole", "sweep": "swept", "swim": "swam", "take": "took", "teach": "taught", "tell": "told",
    "think": "thought", "throw": "threw", "wind": "wound", "write": "wrote", "weave": "wove", "tear": "tore",
}  # fmt: skip
_DOUBLING = frozenset({
    "chop", "clap", "cut", "dig", "dip", "drop", "fit", "forget", "get", "hop", "hum", "knit", "knot", "mop", "nod",
    "pat", "plan", "put", "rub", "run", "scrub", "set", "shop", "sit", "skim", "skip", "slip", "spin", "split", "step",
    "stir", "stop", "swim", "tap", "tip", "trap", "trim", "tug", "win", "wrap",
})  # fmt: skip
_PLURAL = {
    "fish": "fish", "herring": "herring", "mackerel": "mackerel", "cod": "cod", "plaice": "plaice",
    "salmon": "salmon", "shrimp": "shrimps", "man": "men", "woman": "women", "child": "children",
    "mouse": "mice", "goose": "geese", "sheep": "sheep", "loaf": "loaves", "knife": "knives",
    "half": "halves", "foot": "feet", "tooth": "teeth", "scales": "scales", "bellows": "bellows",
    "penny": "pence", "lotus": "lotuses", "potato": "potatoes", "sole": "sole", "pollack": "pollack",
}  # fmt: skip
_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!n[ai]|s[eu]|ten)|hour|honest|heir)", re.IGNORECASE)


def article(word: str) -> str:
    """`a` or `an`, whichever suits the sound of `word`."""
    return "an" if _VOWEL_SOUND.match(word) and not re.match(r"one\b|once\b|eu", word, re.IGNORECASE) else "a"


def plural(noun: str) -> str:
    """The plural of the last word of a noun phrase."""
    head, _, last = noun.rpartition(" ")
    return f"{head} {_plural_word(last)}".strip()


def _plural_word(word: str) -> str:
    if word in _PLURAL:
        return _PLURAL[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def _first_word(phrase: str) -> tuple[str, str]:
    verb, blank, rest = phrase.partition(" ")
    return verb, blank + rest


def third_person(phrase: str) -> str:
    """`mend the nets` to `mends the nets`."""
    verb, rest = _first_word(phrase)
    if verb in {"have", "be", "do", "go"}:
        return {"have": "has", "be": "is", "do": "does", "go": "goes"}[verb] + rest
    if re.search(r"(s|x|z|ch|sh)$", verb):
        return verb + "es" + rest
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies" + rest
    return verb + "s" + rest


def past(phrase: str) -> str:
    """`mend the nets` to `mended the nets`."""
    verb, rest = _first_word(phrase)
    if verb in _PAST:
        return _PAST[verb] + rest
    if verb.endswith("e"):
        return verb + "d" + rest
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ied" + rest
    if verb in _DOUBLING:
        return verb + verb[-1] + "ed" + rest
    return verb + "ed" + rest


def gerund(phrase: str) -> str:
    """`mend the nets` to `mending the nets`."""
    verb, rest = _first_word(phrase)
    if verb in {"be", "see", "shoe", "tie", "dye"}:
        return {"be": "being", "see": "seeing", "shoe": "shoeing", "tie": "tying", "dye": "dyeing"}[verb] + rest
    if verb.endswith("e"):
        return verb[:-1] + "ing" + rest
    if verb in _DOUBLING:
        return verb + verb[-1] + "ing" + rest
    return verb + "ing" + rest


def capital(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


_ARTICLE_SLOT = re.compile(r"\b([Aa])~ ?(?=(\w+))")
_SENTENCE_START = re.compile(r'(^"?|[.!?]\s+"?|\n\s*"?|[,:] ")([a-z])')


def tidy(text: str) -> str:
    """Resolves `a~` slots and capitalises the first letter of every sentence and line."""
    text = re.sub(r" {2,}", " ", text)
    text = _ARTICLE_SLOT.sub(lambda m: (article(m[2]) if m[1] == "a" else article(m[2]).capitalize()) + " ", text)
    return _SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text).strip()
