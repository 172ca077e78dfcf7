"""Log lines as JSON objects, for collectors that read a container's output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from django_jobs import jsonvalues


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": jsonvalues.redact_text(jsonvalues.clean_text(record.getMessage())),
        }
        if record.exc_info:
            line["traceback"] = jsonvalues.redact_text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def write_json() -> None:
    """Let everything that is logged go to standard error as JSON, one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    if root.level > logging.INFO:
        root.setLevel(logging.INFO)
