"""Buttons pressed on the real server, and what becomes of the processes that they start."""

import html
import re
import shutil
import sys
import time
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from nas.members import read_front
from nas.run_record import read_run_record
from nas.settings import read_study_file
from nas.study_log import LOG
from nas.web import runs
from nas.web.export_job import EXPORTED, PARTIAL, read_state
from nas.web.export_job import LOCK as EXPORT_LOCK
from nas.web.runs import holder_of
from tests.nas.conftest import StudyExecutor
from tests.nas.web.conftest import searched

PATIENCE_S = 120

# Writes half of an export, and then takes longer than anybody waits.
HALF_AN_EXPORT = """
import sys, time
from nas.web import export_job

def slow(study, trials, plan, out, on_format):
    (out / "7").mkdir(parents=True)
    (out / "7" / "model.onnx").write_bytes(b"half")
    on_format("onnx")
    time.sleep(600)

export_job.export_members = slow
sys.exit(export_job.main())
"""


class Page:
    """The page of the study `mine`, and its buttons."""

    def __init__(self, base, folder):
        self.folder = folder
        self._base = base
        self._way = f"{base}/studies/mine"

    @property
    def text(self):
        with urlopen(self._way, timeout=30) as answer:
            return html.unescape(answer.read().decode())

    @property
    def log(self):
        return [line.split(" ", 2)[2] for line in (self.folder / LOG).read_text().splitlines()]

    @property
    def state(self):
        return re.search(r'class="state (\w+)"', self.text)[1]

    def press(self, action, **form):
        """The page that a press leads to, and its status."""
        token = re.search(r'name="token" value="([^"]*)"', self.text)[1]
        asked = Request(f"{self._way}/{action}", urlencode({"token": token} | form).encode())
        asked.add_header("Origin", self._base)
        try:
            with urlopen(asked, timeout=30) as answer:
                return answer.status, html.unescape(answer.read().decode())
        except HTTPError as refused:
            with refused:
                return refused.status, html.unescape(refused.read().decode())

    def until(self, words):
        deadline = time.monotonic() + PATIENCE_S
        while words not in (text := self.text):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        return text


@pytest.fixture
def page(serve, finished, tmp_path):
    """That of a finished study."""
    return Page(serve(shutil.copytree(finished, tmp_path / "studies")), tmp_path / "studies" / "mine")


@pytest.mark.slow
def test_a_study_goes_on_with_other_finalists_under_another_budget_as_the_form_says(serve, problem, fastest, tmp_path):
    # The networks that are trained besides are so for real, one epoch on 200 digits.
    searched(problem, fastest, tmp_path, StudyExecutor(), study="mine", epochs=1, finalists=1, backend="inline")
    page = Page(serve(tmp_path), tmp_path / "mine")
    assert page.press("extend", trials="", finalists="2", budget="20ms")[0] == 200
    page.until('<span class="state running">')
    text = page.until('<span class="state finished">')
    record = read_study_file(page.folder)
    assert (record.finalists, record.budget, record.earlier_budgets, record.trials) == (2, "20ms", ["100ms"], 9)
    assert 'name="finalists" value="2"' in text
    assert 'name="budget" value="20ms"' in text
    assert 'id="last-words"' not in text
    assert {"dashboard: Extend to 2 finalists, to a budget of 20ms was pressed", "finalists: 2, before 1"} <= {
        *page.log
    }
    front = read_front(page.folder)
    assert front["budget_ms"] == 20
    assert 0 < max(each["latency_ms"]["high"] for each in front["members"]) <= 20
    assert len(read_run_record(page.folder)["finalists"]) == 2


def test_a_budget_that_nothing_keeps_is_said_on_the_page_and_spoils_nothing(page):
    before = (page.folder / "study.yaml").read_bytes()
    assert page.press("extend", budget="1us")[0] == 200
    text = page.until('id="last-words"')
    assert re.search(
        r'id="last-words">no network of space edge-small keeps 1us on rk3288: .* allow at least that<', text
    )
    assert page.state == "finished"
    assert (page.folder / "study.yaml").read_bytes() == before
    assert read_front(page.folder)["budget_ms"] == 100


def test_an_export_that_is_cancelled_leaves_nothing_and_the_one_before_stays(page, monkeypatch):
    before = page.folder / EXPORTED / "7"
    before.mkdir(parents=True)
    (before / "model.onnx").write_bytes(b"whole")
    command = [sys.executable, "-c", HALF_AN_EXPORT, str(page.folder), "onnx"]
    monkeypatch.setattr(runs, "export_command", lambda *given, int8: command)
    assert page.press("export", onnx="on")[0] == 200
    text = page.until("being exported: onnx for")
    assert ">Export</button>" not in text
    assert (page.folder / PARTIAL / "7" / "model.onnx").exists()
    assert page.press("cancel")[0] == 200
    page.until("The export of onnx was cancelled; nothing of it was kept.")
    assert ">Export</button>" in page.text
    assert not (page.folder / PARTIAL).exists()
    assert (before / "model.onnx").read_bytes() == b"whole"
    assert holder_of(page.folder / EXPORT_LOCK) is None
    assert read_state(page.folder).cancelled
    assert page.log[-3:] == [
        "dashboard: Export of onnx was pressed",
        "dashboard: Cancel of the export was pressed",
        "dashboard: export cancelled",
    ]
    status, text = page.press("cancel")
    assert status == 409
    assert "mine is not being exported, so there is nothing to cancel" in text
