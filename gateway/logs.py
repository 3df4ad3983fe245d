"""What goes to the log: one line per record on standard error, and never a token."""

import logging
import re
import sys
import time

_TOKEN = re.compile(r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*|(?<=access_token=)[^&\s\"']+")
"""A JSON Web Token begins with the base64 of '{"'. LiveKit's SDK logs them when a join is refused."""

_REQUEST = re.compile(r"FfiRequest \{.*\}", re.DOTALL)
"""LiveKit's native library logs a request that it refuses, with the text that was to be sent."""


_MARKS = ("eyJ", "access_token=", "FfiRequest {")
"""A line without any of these has nothing to be taken out; most have none, and this is soon seen."""


class RedactingFormatter(logging.Formatter):
    """Formats the record, traceback included, and then takes every token and native request out."""

    _second = -1
    _second_written = ""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if any(mark in line for mark in _MARKS):
            line = _TOKEN.sub("[token]", _REQUEST.sub("[request]", line))
        return line

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As the standard library does, which asks for the local time with each record."""
        second = int(record.created)
        if second != self._second:
            self._second_written = time.strftime(self.default_time_format, time.localtime(second))
            self._second = second
        return f"{self._second_written},{int(record.msecs):03}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line, whatever names of others are in it: a line end would let them write lines of their own."""
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")


def configure_logging(level: str, *, livekit: bool = False) -> None:
    """`livekit`: what LiveKit's SDK warns of is logged as well."""
    _leave_out_what_no_line_shows()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Other people's loggers stay at WARNING: LiveKit's INFO and sse-starlette's DEBUG carry what
    # users wrote, and nobody but us knows what of it must not be in a log.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("gateway").setLevel(level)
    # One refused join is nine lines of it; what they come to is logged by us.
    logging.getLogger("livekit").setLevel(logging.WARNING if livekit else logging.CRITICAL)


def _leave_out_what_no_line_shows() -> None:
    """Thread, process and place in the source of each record: half of what a record costs (Logging
    HOWTO, "Optimization")."""
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging._srcfile = None
