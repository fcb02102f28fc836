"""Children of this program that Python runs: how they are started, and where they take code from.

That is where Python and this program are installed, and what PYTHONPATH names; never the folder that a process is
started in, where a document or an export lies, with whatever else somebody put there. Python itself puts that folder
first on the path for `-m` and `-c`, and for an empty entry of PYTHONPATH.

This file is also what such a child begins with: it imports nothing that another file could stand in for.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - pathlib is not loaded yet


def python_words(*words: str) -> list[str]:
    """The command for a Python that runs a file, or code behind `-c`."""
    return [sys.executable, "-P", *words]


def module_words(module: str, *words: str) -> list[str]:
    """The command for a Python that runs a module of this program, of the same copy of it wherever that lies."""
    return python_words(os.path.abspath(__file__), module, *words)  # noqa: PTH100


def forget_working_folder() -> None:
    """Take no code from the folder that this process is in, unless this program lies there or PYTHONPATH names it;
    no process that is started from here does, either, for an empty entry of PYTHONPATH."""
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:  # it is gone
        return
    if here not in (_ROOT, *map(os.path.abspath, entries)):
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


def _run(module: str) -> None:
    """Run the module as `python -m` does, with the arguments that follow its name."""
    forget_working_folder()
    if _ROOT not in sys.path:
        sys.path.insert(0, _ROOT)
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    del sys.argv[0]
    _run(sys.argv[0])
