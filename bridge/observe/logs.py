"""Structured logs on standard error: an event's name and its fields."""

import logging
import sys

import structlog

from bridge.config.model import Log


def configure(config: Log) -> None:
    """Set up logging for this process."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    level = getattr(logging, config.level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # a line in one write: workers share the stream
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    silence_clients(debug=level == logging.DEBUG)


def silence_clients(debug: bool = False) -> None:
    """Keep the clients' own logs out, unless they are asked for.

    They repeat an outage at every try; the bridge itself says once that it began and once that it ended. The Kafka
    client also leaves failed futures behind, of which asyncio tells; what is the bridge's own runs in task groups.
    """
    for name in ("aiokafka", "grpc", "asyncio"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.CRITICAL)
