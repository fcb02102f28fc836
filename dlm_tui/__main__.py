"""`dlm-tui`, and `python -m dlm_tui`: an interrupt while the program is still being loaded is one line, too."""

import sys

from dlm_tui.child import forget_working_folder


def main() -> int:
    """Run the command line; returns the exit code."""
    forget_working_folder()
    try:
        from dlm_tui.cli.interrupt import interruptible

        with interruptible():
            from dlm_tui.cli.main import main as command

            return command()
    except KeyboardInterrupt:
        sys.stderr.write("dlm-tui: cancelled\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
