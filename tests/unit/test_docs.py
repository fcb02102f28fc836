"""What the documentation names exists: paths, links, commands with their options, make targets, identifiers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from dlm_tui.cli.main import COMMANDS, _parser

ROOT = Path(__file__).resolve().parents[2]
# The formats describe another program's files and commands.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.name.startswith("formats")),
]
PATH = re.compile(r"(?<![\w/.<-])(?:\.ci|dlm_tui|widgets|tests|docs|examples|assets)/[\w./-]*\w")
MAKEFILE = (ROOT / "Makefile").read_text()
SOURCE = "\n".join(path.read_text() for top in ("dlm_tui", "widgets", "tests") for path in (ROOT / top).rglob("*.py"))


def code(text: str) -> list[str]:
    """Code spans and indented lines."""
    return [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)]


def options(command: str) -> set[str]:
    """The options of a command, as its own parser knows them."""
    parser = _parser(command)
    importlib.import_module(f"dlm_tui.cli.{command}").add_arguments(parser)
    return set(re.findall(r"--[a-z][a-z-]*", parser.format_help()))


def problems(text: str, page: Path) -> list[str]:
    """Everything in the text that does not exist."""
    found = [f"path {name}" for name in PATH.findall(text) if "NAME" not in name and not (ROOT / name).exists()]
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link and not (page.parent / link).exists():
            found.append(f"link {link}")
    for snippet in code(text):
        words = re.search(r"(?:^|\s)dlm-tui (.*)", snippet)
        if words is not None:
            first = words[1].split()[0]
            if first[0].islower() and first not in COMMANDS:
                found.append(f"command {first}")
            elif first in COMMANDS:
                known = options(first)
                wanted = re.findall(r"--[a-z][a-z-]*", re.split(r"\s{2,}|#", words[1])[0])
                found += [f"option {option} of {first}" for option in wanted if option not in known]
        target = re.match(r"make ([a-z-]+)", snippet)
        if target is not None and not re.search(rf"^{target[1]}:", MAKEFILE, re.MULTILINE):
            found.append(f"make target {target[1]}")
    if page.parent.name == "recipes":
        names = {name for snippet in code(text) for name in re.findall(r"\b_?[A-Z][A-Z_]{3,}\b(?!\.md)", snippet)} - {
            "NAME"
        }
        found += [f"identifier {name}" for name in names if not re.search(rf"\b{name}\b", SOURCE)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert problems(page.read_text(), page) == []


def test_a_page_that_names_what_is_not_there_is_found() -> None:
    wrong = "`dlm_tui/nowhere.py` [x](gone.md) `dlm-tui nothing DOC` `dlm-tui train DOC --no-such` `make nothing`"
    found = problems(f"{wrong} `{'_NO' + 'WHERE'}`", ROOT / "docs" / "recipes" / "x.md")
    kinds = [problem.split()[0] for problem in found]
    assert kinds == ["path", "link", "command", "option", "make", "identifier"]


def test_every_page_can_be_found_from_the_readme() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
        todo += [page.parent / link for link in links if "://" not in link and (page.parent / link).exists()]
    assert {page.resolve() for page in (ROOT / "docs").rglob("*.md")} <= seen
