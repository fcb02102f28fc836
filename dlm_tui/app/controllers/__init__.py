"""What the workbench does, one concern per file: plain objects, composed in `wiring.py`, tested without a screen.

A controller is given a `Context` (document, store, remembered state, engine link, job board, and the `ui` with its
toasts, dialogs and background work), the controllers below it, and the part of a pane it draws on (`surfaces.py`). It
never calls upward: what others may want to know it tells through a `Signal`.

To add one:

1. `controllers/NAME.py`: a class with `__init__(self, context, ...)`; keys and dialogs call its public methods.
2. `surfaces.py`: what it needs of a new pane, as a protocol (and a field of `Surfaces` in `wiring.py`).
3. `wiring.py`: one line that builds it, below those it is given; in `_connect` one line per signal it listens to.
4. `keys.py`: its keys; `workbench.py`: `def action_NAME(self) -> None: self.controllers.NAME.do()`; `palette.py`: what
   has no key.
5. `tests/unit/test_app_controllers_NAME.py`, with the recorded engine, and `tests/tui` for what a person sees.
"""
