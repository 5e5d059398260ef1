"""How BentoML's processes log: its handlers stay, their lines become ours."""

from __future__ import annotations

import logging
from typing import Literal

from bentoml._internal.log import SERVER_LOGGING_CONFIG, TRACED_LOG_FORMAT

from bento_service.log_lines import JsonLines, RequestOfLine, TextLines

_LINES = {"text": TextLines, "json": JsonLines}


def use_log_format(log_format: Literal["text", "json"]) -> None:
    """Format the lines of all loggers from now on, in a process that BentoML serves with; elsewhere logging is left as it is.

    BentoML sets its logging up before it imports a service, so what it said before then stays as it was.
    """
    for handler in _handlers_of_bentoml():
        handler.setFormatter(_LINES[log_format]())
        handler.addFilter(RequestOfLine())
        logging.captureWarnings(log_format == "json")


def _handlers_of_bentoml() -> list[logging.Handler]:
    loggers = [logging.getLogger(name) for name in ("", *SERVER_LOGGING_CONFIG["loggers"])]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    return [handler for handler in handlers if getattr(handler.formatter, "_fmt", None) == TRACED_LOG_FORMAT]
