"""The vectors of `training.sources`: folder trees with what the `dlm` tool makes of them, laid out on disk."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.shared_vectors import references


@dataclass(frozen=True)
class SourceVector:
    """One tree, its document and what reading it must give."""

    name: str
    content: dict[str, Any]

    @property
    def expected(self) -> dict[str, Any]:
        """What the tool made of it."""
        result: dict[str, Any] = self.content["expected"]
        return result

    @property
    def preferred(self) -> str:
        """In words what is right, where the tool is not to be followed."""
        return "" if self.content.get("imitate", True) else self.content["preferred"]

    def lay_out(self, tree: Path) -> Path:
        """Write the tree; returns the document's path. The expectations name it `@TREE@`."""
        for name, entry in self.content["files"].items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry.get("dir"):
                path.mkdir(exist_ok=True)
            elif "symlink" in entry:
                path.symlink_to(entry["symlink"].replace("@TREE@", str(tree)))
            elif "base64" in entry:
                path.write_bytes(base64.b64decode(entry["base64"]))
            else:
                path.write_bytes(entry["text"].replace("@TREE@", str(tree)).encode())
        document = tree / self.content["document_path"]
        document.parent.mkdir(parents=True, exist_ok=True)
        document.write_bytes(self.content["document"].replace("@TREE@", str(tree)).encode())
        return document


def source_vectors() -> list[SourceVector]:
    """All vectors by number."""
    return [
        SourceVector(name.removesuffix(".json"), json.loads(data))
        for name, data in references("sources-vectors").items()
        if name.endswith(".json")
    ]


def with_tree(value: Any, tree: Path) -> Any:
    """The same JSON value with the tree's path for `@TREE@`."""
    text = json.dumps(value).replace("@TREE@", json.dumps(str(tree))[1:-1])
    return json.loads(text)
