"""Logs and metrics: events with fields, for a person or for a machine; one metrics registry."""

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

# Their INFO tells of every message and request, which our own events tell better.
_CHATTY = ("celery", "kombu", "amqtt", "transitions", "httpx", "httpcore", "uvicorn.access")


def configure_logging(level: str = "INFO", *, json: bool = False, process: str = "") -> None:
    """Send every log line of this process, ours and the libraries', to standard error.

    Args:
        level: least level shown.
        json: one JSON object a line, else text for people.
        process: this process's name, on every line.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared, json=json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_number(level))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(_number(level), logging.WARNING))
    if process:
        structlog.contextvars.bind_contextvars(process=process)


def logger(name: str) -> Any:
    """Return a logger of events: ``logger(__name__).info("build.started", build=build_id)``."""
    return structlog.get_logger(name)


def metrics_registry() -> CollectorRegistry:
    """Return a registry with the process's own figures: memory, CPU, files, Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _formatter(shared: list[Any], *, json: bool) -> logging.Formatter:
    # Plain tracebacks: the pretty ones print local variables, which hold secrets, and take seconds.
    if json:
        last: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        last = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )


def _number(level: str) -> int:
    number = logging.getLevelNamesMapping().get(level.upper())
    return logging.INFO if number is None else number
