"""The panes of the workbench. Each shows data it is given and posts messages; none talks to the engine."""
