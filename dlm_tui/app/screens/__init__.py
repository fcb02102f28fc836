"""Dialogs on top of the workbench. Each returns what was chosen, or None."""
