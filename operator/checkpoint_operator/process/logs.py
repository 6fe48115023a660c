"""Logging: one handler on standard error, as text or JSON, with every message redacted."""

from __future__ import annotations

import argparse
import logging
import sys
from enum import StrEnum

from pythonjsonlogger.json import JsonFormatter

from checkpoint_operator.gather.redaction import Redactor


class LogFormat(StrEnum):
    """Format of the log lines."""

    TEXT = "text"
    JSON = "json"


class _Redacting(logging.Formatter):
    """Redacts messages and tracebacks of all libraries. A message is one line, whatever it quotes."""

    def __init__(self, inner: logging.Formatter, redactor: Redactor) -> None:
        super().__init__()
        self._inner = inner
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        cleaned = logging.makeLogRecord(record.__dict__)
        cleaned.msg = self._redactor.clean(record.getMessage()).replace("\r", "\\r").replace("\n", "\\n")
        cleaned.args = None
        if record.exc_info:
            cleaned.exc_text = self._redactor.clean(self._inner.formatException(record.exc_info))
            cleaned.exc_info = None
        return self._inner.format(cleaned)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a command logs."""
    formats = [each.value for each in LogFormat]
    parser.add_argument("--log-format", choices=formats, default=LogFormat.TEXT.value, help="(default: text)")
    parser.add_argument("--verbose", action="store_true", help="log debug messages too")


def configure(log_format: LogFormat, *, redactor: Redactor, verbose: bool = False) -> None:
    """Set up the root logger, replacing its handlers."""
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    structured = JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting(structured if log_format is LogFormat.JSON else text, redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # They log every request and every watched event.
    for chatty in ("asyncio", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("kopf").setLevel(logging.DEBUG if verbose else logging.WARNING)
