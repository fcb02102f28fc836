"""Taking things out of the screen: text to the clipboard, the screen as a picture."""

from __future__ import annotations

from dlm_tui.app.clipboard import copy_with_tool
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.surfaces import AnswersSurface, Pages
from dlm_tui.system_errors import cause


class Copying:
    """Copies through the terminal, and through the desktop's own tool where there is one."""

    def __init__(self, context: Context, answers: AnswersSurface, pages: Pages) -> None:
        self._context, self._answers, self._pages = context, answers, pages

    def copy_current(self) -> None:
        """The current answer; without one, the last export's command."""
        card, command = self._answers.current, self._context.state.last_export
        if card is not None and card.text.strip() and self._pages.focused_pane != "jobs":
            self.copy(card.text.strip(), f"the answer of {card.view}")
        elif command:
            self.copy(command, "the command of the last export")
        else:
            self._context.ui.say("There is nothing to copy yet.", warning=True)

    def copy(self, text: str, what: str) -> None:
        """Copy and say how."""
        self._context.ui.copy(text)

        async def also() -> None:
            tool = await copy_with_tool(text)
            way = f"through {tool} and the terminal (OSC 52)" if tool else "through the terminal (OSC 52)"
            self._context.ui.say(f"Copied {what} {way}.")

        self._context.ui.run(also, "copy", "copy", exclusive=True)

    def save_screenshot(self) -> None:
        """The screen as SVG."""
        try:
            path = self._context.ui.save_screenshot(str(self._context.setup.screenshot_folder))
        except OSError as error:
            self._context.ui.say(f"The screenshot cannot be saved: {cause(error)}", error=True)
            return
        self._context.ui.say(f"Saved {path}")
