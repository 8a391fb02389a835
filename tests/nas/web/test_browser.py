"""The whole of it in a real browser: watch a study live, stop it, take it up again, take its front home."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import pytest

from nas.members import read_front
from nas.settings import read_study_file
from nas.study_log import LOG
from nas.web.export_job import PARTIAL
from nas.web.runs import driver_of
from tests.nas.web.browser import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

STUDY = """
target: rk3288
budget: 5ms
data_limit: 200
trials: 40
iterations: 8
finalists: 1
epochs: 1
workers: 1
genes:
  resolution: 32
  stem.width: [8, 16]
  stem.stride: 2
  stage*.family: rdp
  stage1.depth: 1
  stage2.depth: [1, 2]
  stage3.depth: 2
  stage4.depth: 1
"""
TOTAL = 40

# How much wider than the window a page is.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def running(*words, **options):
    with subprocess.Popen([sys.executable, "-m", "nas", *map(str, words)], **options) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture
def browser(tmp_path):
    found = Browser(CHROMIUM, tmp_path / "profile")
    yield found
    found.close()


def state(browser):
    return browser.text("#facts .state")


def wait_for_state(browser, wanted, seconds=300):
    script = f"document.querySelector('#facts .state')?.innerText === '{wanted}'"
    browser.until(script, f"the study being {wanted}", seconds)


def trials(browser):
    return int(
        browser.value(
            "[...document.querySelectorAll('#facts div')].find(e => e.innerText.startsWith('trials'))"
            ".querySelector('dd').innerText.split(' ')[0]"
        )
    )


def by_keyboard(browser, wanted):
    """Walks to an element with the Tab key and presses Enter."""
    browser.value("document.activeElement.blur()")
    for _ in range(60):
        browser.key("Tab")
        if browser.value("document.activeElement.id") == wanted:
            browser.key("Enter")
            return
    raise AssertionError(f"{wanted} cannot be reached by keyboard")


def test_a_study_is_watched_stopped_resumed_and_taken_home(tmp_path, browser):
    studies = tmp_path / "studies"
    folder = studies / "mine"
    (tmp_path / "study.yaml").write_text(STUDY)
    search = ("search", tmp_path / "study.yaml", "--study", "mine", "--out", studies, "--quiet")
    with (
        running("dashboard", "--port", "0", "--out", studies, stdout=subprocess.PIPE, text=True) as dashboard,
        running(*search, stdout=subprocess.DEVNULL) as first,
    ):
        base = dashboard.stdout.readline().split()[0]
        browser.show(1280)
        browser.open(base)
        # The list fills itself: the study was not there when the page was loaded.
        browser.until("document.querySelector('#study-mine')", "the study in the list")
        browser.until("document.querySelector('.state')?.innerText === 'running'", "the study running")
        browser.press("#study-mine")
        browser.until("location.pathname === '/studies/mine' && document.readyState === 'complete'", "its page")

        browser.value("window.loadedOnce = true")
        browser.until("document.querySelectorAll('#search .for-wide a').length > 0", "a front", 120)
        seen = trials(browser)
        browser.until(f"document.querySelector('#log pre').innerText.includes('trial {seen + 1}:')", "more")
        assert trials(browser) > seen
        assert browser.value("window.loadedOnce") is True  # all that without loading the page again

        browser.press("#stop")
        browser.until("document.querySelector('[role=status].notice')", "an answer to Stop")
        assert first.wait(60) == 130  # as after Ctrl-C
        wait_for_state(browser, "stopped")
        stopped_at = trials(browser)
        assert seen < stopped_at < TOTAL
        assert "Stop was pressed" in browser.text("#log")

        by_keyboard(browser, "resume")
        wait_for_state(browser, "running")
        os.kill(driver_of(folder), signal.SIGKILL)
        wait_for_state(browser, "crashed")
        browser.press("#resume")
        wait_for_state(browser, "finished")
        assert trials(browser) == TOTAL
        assert browser.value("document.querySelectorAll('#trained .for-wide a').length") == 1

        browser.value("document.querySelector('#more-trials').value = 2")
        browser.press("#extend")
        wait_for_state(browser, "running")
        wait_for_state(browser, "finished")
        assert trials(browser) == TOTAL + 2
        assert read_study_file(folder).trials == TOTAL + 2
        log = (folder / LOG).read_text().splitlines()
        assert [line.split("dashboard: ")[1] for line in log if "dashboard: " in line] == [
            "Stop was pressed",
            "Resume was pressed",
            "Resume was pressed",
            "Extend by 2 trials was pressed",
        ]

        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "home"))
        member = read_front(folder)["members"][0]["trial"]
        # Long enough to be seen at work: ONNX alone is there before the page looks again.
        for kind in ("torch", "mnn", "ncnn"):
            browser.press(f"#format-{kind}")
        by_keyboard(browser, "export-front")
        browser.until("document.querySelector('#exporting')?.innerText.includes(' for 1 network')", "the export")
        by_keyboard(browser, "cancel")
        browser.until("document.querySelector('#export')?.innerText.includes('was cancelled')", "its end")
        assert not (folder / PARTIAL).exists()
        browser.press("#format-torch")
        by_keyboard(browser, "export-front")
        browser.until("document.querySelector('#exporting')", "the export at work")
        browser.until("document.querySelector('#export')?.innerText.includes('Exported')", "the export", 300)
        browser.press("[id='file-exported.zip']")
        archive = tmp_path / "home" / "mine-exported.zip"
        wait_for_file(browser, archive)
        with zipfile.ZipFile(archive) as opened:
            names = {name.partition(f"mine/{member}/")[2] for name in opened.namelist()}
            assert {"model.onnx", "example_onnx.py", "model.pt2", "network.py", "manifest.json"} <= names
            manifest = json.loads(opened.read(f"mine/{member}/manifest.json"))
            assert {each["parity"] is not None for each in manifest["formats"].values()} == {True}

        browser.press(f"#trained-{member}")
        browser.until("document.querySelectorAll('.kernels tbody tr').length > 5", "the member's kernels")
        ways = ("/", "/studies/mine", f"/studies/mine/trials/{member}")
        papers = {}
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                browser.show(width, scheme=scheme, mobile=width == 390)
                for way in ways:
                    browser.open(base.rstrip("/") + way)
                    assert browser.value(OVERFLOW) <= 0, f"{way} is wider than {width} pixels"
                    papers[scheme] = browser.value("getComputedStyle(document.body).backgroundColor")
                    pressable = [
                        each for each in browser.accessible() if each[0] in ("button", "link", "spinbutton", "checkbox")
                    ]
                    assert pressable
                    assert all(name.strip() for _, name in pressable), pressable
        assert papers["light"] != papers["dark"]

        browser.open(f"{base}dashboard/studies/0")
        browser.until("document.body.innerText.includes('mine')", "Optuna's own page of the study")
    assert [each for each in browser.statuses if each[1] >= 400] == []
    assert browser.problems == []


def wait_for_file(browser, path):
    for _ in range(600):
        if path.exists():
            return
        browser.value("new Promise(done => setTimeout(done, 50))")
    raise AssertionError(f"{path} was not downloaded")
