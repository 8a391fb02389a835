"""The log of a study: what its drivers did, and what people pressed, in the words of the moment."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG = "log.txt"
TIME = "%Y-%m-%d %H:%M:%S"

logger = logging.getLogger(__name__)


@contextmanager
def study_log(folder: Path) -> Iterator[None]:
    """Has what the library says of a run kept in the study's log, and how the run ended."""
    handler = logging.FileHandler(folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", TIME))
    log = logging.getLogger("nas")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        logger.info("run begun")
        yield
        logger.info("run finished")
    except KeyboardInterrupt:
        logger.info("run stopped")
        raise
    except Exception as error:
        # Whoever started the run hears of it as well; this line is for those who look later.
        logger.info("run broke: %s: %s", type(error).__name__, " ".join(str(error).split()))
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


def add_line(folder: Path, text: str) -> None:
    """Puts a line of one's own into the log of a study, whoever else is writing to it."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime(TIME)} {text}\n")
