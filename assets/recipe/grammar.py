"""A small template grammar: rules with alternatives, entities with attributes, bound variables.

A template holds `<rule>` (expand a rule), `[this|that|]` (one alternative), `{x=type}` (pick an entity of a
type that is not bound yet, bind it to `x` and print it), `{!x=type}` (the same, silently), `{!d=x.attr}` (bind one
item of a `;` list), `{x.attr}` and `{x.attr:mod}` with mod one of s, ed, ing, pl, cap. `a~` becomes a or an.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import morphology

TEXT = Path(__file__).with_name("text")
Entity = Mapping[str, str]
Context = dict[str, "Entity | str"]
MODIFIERS: dict[str, Callable[[str], str]] = {
    "s": morphology.third_person,
    "ed": morphology.past,
    "ing": morphology.gerund,
    "pl": morphology.plural,
    "cap": morphology.capital,
}
_TOKEN = re.compile(r"<(?P<rule>[a-z_0-9]+)>|\{(?P<slot>[^}]*)\}|(?P<open>\[)|(?P<bar>\|)|(?P<close>\])")
Node = Callable[["Grammar", random.Random, Context], str]


@dataclass
class Grammar:
    """The rules and entities read from the text folder."""

    rules: dict[str, tuple[list[Node], list[float]]] = field(default_factory=dict)
    entities: dict[str, list[Entity]] = field(default_factory=dict)

    def expand(self, rule: str, rng: random.Random, context: Context) -> str:
        """One expansion of `rule`; variables bound on the way stay in `context`."""
        nodes, cumulative = self.rules[rule]
        return rng.choices(nodes, cum_weights=cumulative)[0](self, rng, context)

    def pick(self, kind: str, rng: random.Random, context: Context) -> Entity:
        """An entity of `kind` that no variable of `context` holds."""
        bound = [id(value) for value in context.values()]
        while True:
            entity = rng.choice(self.entities[kind])
            if id(entity) not in bound:
                return entity


def compile_template(text: str) -> Node:
    """Turns a template into a function that expands it."""
    node, end = _sequence(text, 0, nested=False)
    if end != len(text):
        raise ValueError(f"unbalanced brackets in template: {text}")
    return node


def _sequence(text: str, at: int, nested: bool) -> tuple[Node, int]:
    alternatives: list[list[Node]] = [[]]
    while at < len(text):
        match = _TOKEN.search(text, at)
        if match is None:
            alternatives[-1].append(_literal(text[at:]))
            at = len(text)
            break
        if match.start() > at:
            alternatives[-1].append(_literal(text[at : match.start()]))
        at = match.end()
        if match["rule"]:
            alternatives[-1].append(_rule(match["rule"]))
        elif match["slot"] is not None:
            alternatives[-1].append(_slot(match["slot"]))
        elif match["open"]:
            node, at = _sequence(text, at, nested=True)
            alternatives[-1].append(node)
        elif match["bar"] and nested:
            alternatives.append([])
        elif match["close"] and nested:
            return _choice(alternatives), at
        else:
            alternatives[-1].append(_literal(match[0]))
    if nested:
        raise ValueError(f"unclosed bracket in template: {text}")
    return _choice(alternatives), at


def _literal(text: str) -> Node:
    return lambda grammar, rng, context: text


def _rule(name: str) -> Node:
    return lambda grammar, rng, context: grammar.expand(name, rng, context)


def _choice(alternatives: list[list[Node]]) -> Node:
    if len(alternatives) == 1:
        nodes = alternatives[0]
        if len(nodes) == 1:
            return nodes[0]
        return lambda grammar, rng, context: "".join([node(grammar, rng, context) for node in nodes])

    def choose(grammar: Grammar, rng: random.Random, context: Context) -> str:
        picked = alternatives[int(rng.random() * len(alternatives))]
        return "".join([node(grammar, rng, context) for node in picked])

    return choose


def _slot(body: str) -> Node:
    body, _, modifier = body.partition(":")
    change = MODIFIERS[modifier] if modifier else None
    silent = body.startswith("!")
    variable, assigned, source = body.lstrip("!").partition("=")
    path = (source if assigned else variable).split(".")

    def lookup(grammar: Grammar, rng: random.Random, context: Context) -> str:
        value: Entity | str
        if len(path) == 1 and assigned:
            value = grammar.pick(path[0], rng, context)
        elif len(path) == 1:
            value = context[path[0]]
        else:
            entity = context[path[0]]
            assert not isinstance(entity, str), path
            value = entity[path[1]]
            if ";" in value:
                value = rng.choice(value.split(";"))
        if assigned:
            context[variable] = value
        if silent:
            return ""
        text = value if isinstance(value, str) else value["name"]
        return change(text) if change else text

    return lookup


def load_grammar(folder: Path = TEXT) -> Grammar:
    """Reads every `.txt` file of the folder: `@type` tables of entities and `:rule` lists of templates."""
    grammar = Grammar()
    for path in sorted(folder.glob("*.txt")):
        _load_file(path, grammar)
    trades = {trade["name"]: trade for trade in grammar.entities["trade"]}
    grammar.entities["person"] = [_person(row, trades) for row in grammar.entities["person"]]
    people = {person["name"]: person for person in grammar.entities["person"]}
    grammar.entities["boat"] = [_boat(row, people[row["owner"]]) for row in grammar.entities["boat"]]
    return grammar


def _boat(row: Entity, owner: Entity) -> Entity:
    return {**row, "he": owner["he"], **{f"owner_{key}": owner[key] for key in ("trade", "street", "food", "age")}}


def _person(row: Entity, trades: Mapping[str, Entity]) -> Entity:
    trade = trades[row["trade"]]
    forms = ("she", "her", "her", "woman") if row["g"] == "f" else ("he", "him", "his", "man")
    return {
        **row,
        "full": f"{row['name']} {row['surname']}",
        "place": trade["place"],
        "does": trade["does"],
        "tool": trade["tool"],
        "makes": trade["makes"],
        **dict(zip(("he", "him", "his", "man"), forms, strict=True)),
    }


def _load_file(path: Path, grammar: Grammar) -> None:
    kind, columns, rule = "", [""], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            kind, *columns = line[1:].split(" ")
            grammar.entities.setdefault(kind, [])
            rule = ""
        elif line.startswith(":"):
            rule, kind = line[1:].strip(), ""
            grammar.rules.setdefault(rule, ([], []))
        elif kind:
            cells = line.split("|")
            if len(cells) != len(columns):
                raise ValueError(f"{path.name}:{number}: {len(cells)} cells for {len(columns)} columns")
            grammar.entities[kind].append(dict(zip(columns, cells, strict=True)))
        else:
            weighted = re.match(r"(\d+)\* ", line)
            nodes, cumulative = grammar.rules[rule]
            text = line[weighted.end() :] if weighted else line
            nodes.append(compile_template(text.replace("\\n", "\n")))
            weight = float(weighted[1]) if weighted else 1.0
            cumulative.append((cumulative[-1] if cumulative else 0.0) + weight)
