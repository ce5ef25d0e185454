import io
import json
import logging
from collections.abc import Iterator

import pytest

from dsobs.cli.own_log import configure_logging
from dsobs.config import Secret
from dsobs.config.models import Log


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("dsobs")
    before = (root.handlers[:], root.level, own.level)
    # configure_logging closes the handlers it replaces; pytest's are needed afterwards.
    root.handlers = []
    yield
    root.handlers, root.level, own.level = before


def lines(log: Log, record: str = "seen", **extra: object) -> list[str]:
    out = io.StringIO()
    configure_logging(log, stream=out)
    logging.getLogger("dsobs.signals").info(record, extra=extra)
    return out.getvalue().splitlines()


def test_json_lines_bear_ecs_names_and_the_extra_fields() -> None:
    (line,) = lines(Log(format="json"), alert="EngineHung", stall=7.5, key=Secret("hunter2"))
    fields = json.loads(line)
    assert fields.pop("@timestamp").endswith("Z")
    assert fields == {
        "alert": "EngineHung",
        "stall": 7.5,
        "key": "********",
        "log.level": "info",
        "log.logger": "dsobs.signals",
        "message": "seen",
        "ecs.version": "8.11.0",
        "service.name": "dsobs",
    }


def test_a_stream_that_is_no_terminal_gets_json_unless_told_otherwise() -> None:
    assert lines(Log())[0].startswith("{")
    assert lines(Log(format="text"))[0].endswith("INFO    dsobs.signals: seen")


def test_text_is_one_line_a_record_whatever_is_in_it() -> None:
    (line,) = lines(Log(format="text"), "a\nb\x1b[2J", reason="c\nd")
    assert line.endswith("dsobs.signals: a\\nb\\x1b[2J reason=c\\nd")


@pytest.mark.parametrize("value", ["\udcff", 2**80, {1: "\udcff"}])
def test_fields_that_json_cannot_hold_are_written_as_text(value: object) -> None:
    (line,) = lines(Log(format="json"), odd=value)
    assert json.loads(line)["message"] == "seen"
    assert "odd" in json.loads(line)


def test_an_exception_is_in_the_record_of_either_form() -> None:
    for log, wanted in ((Log(format="json"), '"error.type":"LookupError"'), (Log(format="text"), "LookupError: gone")):
        out = io.StringIO()
        configure_logging(log, stream=out)
        try:
            raise LookupError("gone")
        except LookupError:
            logging.getLogger("dsobs").exception("failed")
        assert wanted in out.getvalue()


def test_libraries_are_heard_from_warning_up_and_dsobs_from_its_level() -> None:
    out = io.StringIO()
    configure_logging(Log(format="text", level="debug"), stream=out)
    logging.getLogger("aiohttp").info("chatter")
    logging.getLogger("aiohttp").warning("trouble")
    logging.getLogger("dsobs").debug("detail")
    assert [line.partition(": ")[2] for line in out.getvalue().splitlines()] == ["trouble", "detail"]
