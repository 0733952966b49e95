import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import generate_latest

from control_plane.observability import configure_logging, logger, metrics_registry


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def fail(secret: str) -> None:
    raise ValueError("no such door")


def test_an_event_carries_its_fields_and_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True, process="gateway")

    logger("x").info("report.applied", device="edge-1", seq=7)

    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "report.applied"
    assert (line["device"], line["seq"], line["process"]) == ("edge-1", 7, "gateway")
    assert line["level"] == "info"


def test_a_librarys_line_looks_like_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True, process="worker")

    logging.getLogger("somebody.else").warning("lost %s", "connection")

    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["process"]) == (
        "lost connection",
        "warning",
        "worker",
    )


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    configure_logging("INFO", json=as_json)
    parts = ["fla", "hidden", "token"]
    try:
        fail("_".join(parts))
    except ValueError:
        logging.getLogger("x").exception("failed")

    shown = capsys.readouterr().err
    assert "no such door" in shown
    assert "fla_hidden_token" not in shown


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")

    logger("x").info("quiet")

    assert capsys.readouterr().err == ""


def test_metrics_tell_of_the_process_itself() -> None:
    text = generate_latest(metrics_registry()).decode()

    assert "python_info" in text
