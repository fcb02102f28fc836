"""No module imports itself through others, the lazy facades included, into which the import contracts do not see."""

from __future__ import annotations

import ast
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]


def imports() -> dict[str, set[str]]:
    """Module -> modules it imports anywhere: at its top, in a function, for the type checker alone.

    A lazy facade imports what its stub names, since that is what using it does.
    """
    graph = grimp.build_graph("dlm_tui", "dlm_widgets", cache_dir=None)
    found = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    for stub in (ROOT / "dlm_tui").rglob("__init__.pyi"):
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                found[package].add(f"{package}.{node.module}")
    return found


def circles(found: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for other in sorted(found.get(module, ())):
            if other not in numbers:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], numbers[other])
        if lowest[module] == numbers[module]:
            at = stack.index(module)
            if len(component := sorted(stack[at:])) > 1:
                result.append(component)
            del stack[at:]

    for module in sorted(found):
        if module not in numbers:
            visit(module)
    return result


def test_circles_are_found() -> None:
    found = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert circles(found) == [["a", "b", "c"]]


def test_no_module_imports_itself_through_others() -> None:
    assert circles(imports()) == []
