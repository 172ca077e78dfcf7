"""Mail into files: Django's file backend, one file per mail, named after its idempotency key.

Between the moment a mail is sent and the moment its step is recorded a worker can be killed; the
step then runs again and the mail is sent again. No database can prevent that, but the receiver can
notice: here the file's name comes from the key that every try of the step shares, so that the
second mail finds the first one's file, adds a line to ``repeated.txt`` and changes nothing else.

Like many mail servers this one greylists: it turns some senders away the first time (451).
"""

from __future__ import annotations

import hashlib
import smtplib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.filebased import EmailBackend as FileBackend

from testproject.shop.chance import chance

KEY_HEADER = "X-Idempotency-Key"
GREYLISTED_SHARE = 0.03
REPEATED_FILE = "repeated.txt"


class EmailBackend(FileBackend):
    """Writes each message to ``<order>-<hash of key>.eml`` below ``file_path``, at most once."""

    def __init__(self, *args: Any, seed: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = seed

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        return sum(self._deliver(message) for message in email_messages)

    def _deliver(self, message: EmailMessage) -> int:
        folder = Path(self.file_path)
        reference = str(message.extra_headers["X-Order"])
        name = file_name(reference, str(message.extra_headers[KEY_HEADER]))
        self._greylist(folder / "greylisted", reference, name)
        target, part = folder / f"{name}.eml", folder / f"{name}.{id(self):x}.part"
        part.unlink(missing_ok=True)
        self._fname = str(part)
        super().send_messages([message])
        if target.exists():
            with (folder / REPEATED_FILE).open("a") as repeats:
                repeats.write(f"{name}\n")
            part.unlink()
        else:
            part.replace(target)
        return 1

    def _greylist(self, folder: Path, reference: str, name: str) -> None:
        if chance(self.seed, reference, "greylist") >= GREYLISTED_SHARE:
            return
        folder.mkdir(exist_ok=True)
        try:
            (folder / name).touch(exist_ok=False)
        except FileExistsError:
            return
        raise smtplib.SMTPResponseException(451, b"4.7.1 Greylisted, please try again later")


def file_name(reference: str, key: str) -> str:
    """A file name that is safe for any order number and differs for any two keys."""
    readable = "".join(c if c.isascii() and c.isalnum() else "-" for c in reference)[:40]
    return f"{readable}-{hashlib.sha256(f'{reference} {key}'.encode()).hexdigest()[:16]}"
