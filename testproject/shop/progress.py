"""A progress bar that is one moving line on a terminal and a few plain lines elsewhere."""

from __future__ import annotations

import time

from django.core.management.base import OutputWrapper

WIDTH = 30
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_FRAMES = 0.1


class Progress:
    """``show()`` as often as you like; ``say()`` prints a line above the bar."""

    def __init__(self, out: OutputWrapper, label: str, total: int) -> None:
        self.out = out
        self.label = label
        self.total = total
        self.moving = out.isatty()
        self.last_shown = 0.0
        self.last_text = ""

    def show(self, done: int, note: str = "") -> None:
        """Draw the state, but not more often than an eye or a log can use."""
        pause = SECONDS_BETWEEN_FRAMES if self.moving else SECONDS_BETWEEN_LINES
        if time.monotonic() - self.last_shown >= pause:
            self._write(self._text(done, note))

    def finish(self, done: int, note: str = "") -> None:
        """Draw the last state and leave the line."""
        text = self._text(done, note)
        if text != self.last_text:
            self._write(text)
        if self.moving:
            self.out.write("")
            self.out.flush()
        self.last_text = ""

    def say(self, line: str) -> None:
        if self.moving and self.last_text:
            self.out.write("\r" + " " * len(self.last_text) + "\r", ending="")
        self.out.write(line)
        if self.moving and self.last_text:
            self.out.write(self.last_text, ending="")
        self.out.flush()

    def _text(self, done: int, note: str) -> str:
        share = min(done / self.total, 1.0) if self.total else 1.0
        bar = ("#" * round(share * WIDTH)).ljust(WIDTH, ".")
        return f"{self.label} [{bar}] {share:4.0%}  {done}/{self.total}  {note}".rstrip()

    def _write(self, text: str) -> None:
        self.last_shown = time.monotonic()
        if self.moving:
            self.out.write("\r" + text.ljust(len(self.last_text)), ending="")
        else:
            self.out.write(text)
        self.last_text = text
        self.out.flush()
