"""What the addresses answer: pages, files, actions, and everything that must not be had."""

import errno
import fcntl
import html
import json
import os
import re
import shutil
import zipfile
from io import BytesIO

import pytest

from nas.cli import main
from nas.exit_codes import WRONG_INPUT
from nas.storage import JOURNAL
from nas.web import pages
from nas.web.export_job import EXPORTED, STATE
from nas.web.export_job import LOCK as EXPORT_LOCK
from nas.web.runs import Refused
from searchspace.choosers import replay
from searchspace.space import member
from searchspace.spec import spec_id
from tests.nas.conftest import Stopped, StudyExecutor
from tests.nas.web.conftest import HOST, Client, searched


@pytest.fixture
def studies(finished, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "studies")


def front_of(studies):
    return json.loads((studies / "mine" / "front.json").read_text())["members"]


def test_the_list_says_what_each_study_is_and_how_far(client):
    text = client.get("/").text
    row = re.search(r"<tbody>(.*?)</tbody>", text)[1]
    assert re.findall(r'data-title="([^"]*)"', row) == [
        "study",
        "state",
        "target",
        "budget",
        "trials",
        "best so far",
        "age",
    ]
    best = max(each["accuracy"]["value"] for each in front_of(client.studies.root))
    for words in ("mine", "finished", "rk3288", "100ms", "9 of 9", f"{100 * best:.1f} %"):
        assert words in row


def test_a_folder_without_studies_says_so(client_of, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "study.txt").write_text("no study")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "study.yaml").write_text("in the wrong place")
    assert "There is no study in" in client_of(tmp_path).get("/").text
    assert "There is no study in" in client_of(tmp_path / "missing").get("/").text


def test_folders_whose_names_no_study_has_are_passed_over(client_of, studies):
    for name in (".hidden", "a copy", "-x"):
        shutil.copytree(studies / "mine", studies / name)
    got = client_of(studies).get("/")
    assert got.status == 200
    assert re.findall(r'id="study-([^"]*)"', got.text) == ["mine"]


def test_a_study_shows_its_front_its_log_and_its_downloads(client):
    got = client.get("/studies/mine")
    assert got.status == 200
    for each in front_of(client.studies.root):
        assert f'href="/studies/mine/trials/{each["trial"]}"' in got.text
    for words in (
        "budget 100 ms",
        "run begun",
        "12 epochs: 3 of 3 trained",
        "run finished",
        "extrapolated",
        "front.json",
        "Export the front as",
    ):
        assert words in got.text


def test_a_page_that_did_not_change_is_not_sent_again(client):
    first = client.get("/studies/mine")
    again = client.get("/studies/mine", HTTP_IF_NONE_MATCH=first.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert client.get("/studies/mine", HTTP_IF_NONE_MATCH='"another"').status == 200


def test_a_member_is_drawn_with_shapes_kernels_and_both_forms(client):
    member = front_of(client.studies.root)[0]
    text = client.get(f"/studies/mine/trials/{member['trial']}").text
    assert f"{member['params']:,}" in text  # of the deploy form, counted by the search
    assert f"{100 * member['accuracy']['value']:.1f} %" in text
    size = member["spec"]["input_shape"][1]
    assert f"1x{size}x{size} to" in text
    shares = [float(share) for share in re.findall(r'data-title="share">([0-9.]+) %', text)]
    assert len(shares) > 10
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert "conv(" in text
    assert "train form" in text


@pytest.fixture
def untrained(client):
    """A candidate that no finalist was made of."""
    trained = {each.number for each in client.studies.live("mine").trained}
    return next(each for each in client.studies.trials("mine") if each.values and each.number not in trained)


def test_a_candidate_that_was_not_trained_is_drawn_from_its_genes(client, untrained, problem):
    spec = member(problem.space, replay(untrained.params), problem.task)
    text = client.get(f"/studies/mine/trials/{untrained.number}").text
    assert "was not trained" in text
    assert spec_id(spec) in text
    for stage in spec.stages:
        assert f"{stage[-1].width}x" in text
    # Per kernel, and so in sum, what the search expected of the whole.
    shares = [float(share) for share in re.findall(r'([0-9.e-]+) ms</td><td data-title="share">', text)]
    assert sum(shares) == pytest.approx(untrained.values[1], rel=0.02)
    assert f"{int(untrained.user_attrs['params']):,}" in text, "of the deploy form, as the search counted them"
    assert "train form" in text
    assert "stage1.width" in text


def test_genes_of_another_space_are_said_to_be_none_of_this_one(client_of, studies, untrained):
    path = studies / "mine" / "study.yaml"
    path.write_text(path.read_text().replace("space: edge-small", "space: mix"))
    got = client_of(studies).get(f"/studies/mine/trials/{untrained.number}")
    assert got.status == 200
    assert re.search(r"It cannot be drawn: [^<]*gene", got.text)
    assert "stage1.width" in got.text


@pytest.mark.parametrize(
    "way",
    [
        "/studies/none",
        "/studies/mine/trials/99",
        "/studies/mine/trials/x",
        "/studies/mine/more",
        "/elsewhere",
        "/own/app.py",
        "/own/../app.py",
        "/studies/mine/resume",
        "/studies/mine/stop",
    ],
)
def test_what_is_not_there_is_not_found(client, way):
    assert client.get(way).status == 404


def test_downloads_are_the_files_themselves(client):
    folder = client.studies.root / "mine"
    trial = front_of(client.studies.root)[0]["trial"]
    for path in ("front.json", "front.csv", "study.yaml", "log.txt", f"models/{trial}/model.onnx"):
        got = client.get(f"/studies/mine/files/{path}")
        assert (got.status, got.body) == (200, (folder / path).read_bytes())
        assert got.headers["Content-Disposition"].startswith('attachment; filename="mine-')
        assert got.headers["Content-Length"] == str(len(got.body))


def test_the_archive_is_what_was_exported_last(client_of, studies):
    client = client_of(studies)
    assert client.get("/studies/mine/exported.zip").status == 404
    assert "exported.zip" not in client.get("/studies/mine").text
    folder = studies / "mine" / EXPORTED / "7"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"network")
    (folder / "away").symlink_to("/etc/passwd")
    got = client.get("/studies/mine/exported.zip")
    with zipfile.ZipFile(BytesIO(got.body)) as archive:
        assert archive.namelist() == ["mine/7/model.onnx"]
        assert archive.read("mine/7/model.onnx") == b"network"
    assert got.headers["Content-Disposition"] == 'attachment; filename="mine-exported.zip"'


ENDED = {"ended": "2026-11-20T10:00:00+00:00"}


def export_part(text):
    return re.search(r'<section id="export".*?</section>', text)[0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            ENDED | {"members": 2},
            "Exported 2026-11-20 10:00 UTC: onnx, ncnn of 2 networks.",
        ),
        (
            ENDED | {"members": 2, "problems": ["trial 3: ncnn: wrong"]},
            "Left out: trial 3",
        ),
        (ENDED | {"failure": "no front"}, "failed: no front"),
        (ENDED | {"cancelled": True}, "The export of onnx, ncnn was cancelled; nothing of it was kept."),
        ({}, "was cut short; nothing of it was kept"),
    ],
)
def test_the_page_says_how_the_last_export_ended(client_of, studies, state, words):
    client = client_of(studies)
    assert "Exported" not in export_part(client.get("/studies/mine").text)
    began = {"formats": ["onnx", "ncnn"], "int8": False, "began": "2026-11-20T09:59:00+00:00", "problems": []}
    (studies / "mine" / STATE).write_text(json.dumps(began | state))
    assert words in export_part(client.get("/studies/mine").text)


def test_while_an_export_is_at_work_the_page_says_what_it_does(client_of, studies):
    client = client_of(studies)
    began = {"formats": ["onnx"], "int8": False, "began": "-", "problems": [], "doing": "onnx", "members": 3}
    (studies / "mine" / STATE).write_text(json.dumps(began))
    with (studies / "mine" / EXPORT_LOCK).open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = export_part(client.get("/studies/mine").text)
        assert "being exported: onnx for 3 networks" in part
        assert re.findall(r'<form [^>]*action="([^"]*)"', part) == ["/studies/mine/cancel"]
    part = export_part(client.get("/studies/mine").text)
    assert re.findall(r'<form [^>]*action="([^"]*)"', part) == ["/studies/mine/export"]


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({}, 400, "formats: at least one of onnx, ncnn, mnn, torch"),
        ({"other": "on"}, 400, "formats: at least one"),
        ({"mnn": "on", "int8": "on"}, 400, "onnx has to be among the formats"),
    ],
)
def test_an_export_of_nothing_is_refused(client, form, status, words):
    got = client.post("/studies/mine/export", form | {"token": client.guard.token})
    assert (got.status, client.runs.asked) == (status, [])
    assert words in got.text


def test_a_study_without_a_front_is_not_exported(client_of, studies):
    (studies / "mine" / "front.json").unlink()
    client = client_of(studies)
    got = client.post("/studies/mine/export", {"onnx": "on", "token": client.guard.token})
    assert (got.status, client.runs.asked) == (409, [])
    assert "has no front yet" in got.text


@pytest.mark.parametrize(
    "way",
    [
        "/studies/mine/files/journal.log",
        "/studies/mine/files/driver.lock",
        "/studies/mine/files/results.jsonl",
        "/studies/mine/files/../../secret.txt",
        "/studies/mine/files/models/../../../secret.txt",
        "/studies/mine/files/models/0/../../../../secret.txt",
        "/studies/mine/files//etc/passwd",
        "/studies/../studies/mine",
        "/studies/..",
        "/studies/.",
        "/studies/mine/files/models",
        "/studies/mine/files/models/1",
        "/studies/mine/files/models/1/.hidden",
        "/studies/linked",
        "/studies/linked/files/study.yaml",
        "/studies/mine/files/models/1/leads_out",
        "/studies/mine/files/models/1/sub/secret.txt",
        "/studies/.hidden",
        "/studies/mine\0",
    ],
)
def test_no_path_leads_out_of_the_folder_of_studies(client_of, studies, tmp_path, way):
    (tmp_path / "secret.txt").write_text("SECRET")
    outside = shutil.copytree(studies / "mine", tmp_path / "outside")
    (outside / "study.yaml").write_text((outside / "study.yaml").read_text() + "# SECRET\n")
    (studies / "linked").symlink_to(outside)
    shutil.copytree(studies / "mine", studies / ".hidden")
    models = studies / "mine" / "models" / "1"
    models.mkdir(exist_ok=True)
    (models / "leads_out").symlink_to(tmp_path / "secret.txt")
    (models / "sub").symlink_to(tmp_path)
    (models / ".hidden").write_text("SECRET")
    got = client_of(studies).get(way)
    assert got.status == 404
    assert b"SECRET" not in got.body


@pytest.mark.parametrize("way", ["/", "/studies/mine", "/studies/none", "/studies/mine/trials/0", "/own/dashboard.js"])
def test_every_answer_forbids_foreign_scripts_frames_and_guessing(client, way):
    headers = client.get(way).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    if not way.startswith("/own"):
        rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == "'self'"
        assert rules["frame-ancestors"] == "'none'"


def test_pages_hold_no_script_or_style_of_their_own(client):
    for way in ("/", "/studies/mine", f"/studies/mine/trials/{front_of(client.studies.root)[0]['trial']}"):
        text = client.get(way).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text)
        assert re.findall("<script[^>]*>", text) == ['<script src="/own/dashboard.js" defer>']


def test_a_report_cannot_act_as_a_page_of_the_dashboard(client):
    policy = client.get("/studies/mine/files/report.html").headers["Content-Security-Policy"]
    assert policy.startswith("sandbox;")
    assert "script-src" not in policy


def test_words_from_a_study_never_become_markup(client_of, studies):
    evil = "<script>alert(1)</script>"
    text = (studies / "mine" / "study.yaml").read_text()
    (studies / "mine" / "study.yaml").write_text(text.replace("data: digits", f"data: '{evil}'"))
    (studies / "mine" / "log.txt").write_text(f"{evil}\n")
    journal = (studies / "mine" / JOURNAL).read_text()
    (studies / "mine" / JOURNAL).write_text(
        journal.replace('"latency_tier":"extrapolated"', f'"latency_tier":"{evil}"')
    )
    client = client_of(studies)
    for way in ("/", "/studies/mine", "/studies/mine/trials/0", f"/studies/{evil}", f"/studies/mine?said={evil}"):
        assert evil not in client.get(way).text
    assert "&lt;script&gt;alert(1)" in client.get("/studies/mine").text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no entry", "not an entry of an Optuna journal ("),
        ('{"op_code": 99}', "not an entry of an Optuna journal ("),
        ('{"op_code": 4}', "not an entry of an Optuna journal ("),
        ('{"op_code": 4, "study_id": 7, "worker_id": "a"}', "of a study or trial that is not there (7)"),
    ],
)
def test_a_damaged_study_says_so_and_the_others_are_shown(client_of, studies, line, why):
    for name in ("journal", "settings", "front"):
        shutil.copytree(studies / "mine", studies / name)
    lines = (studies / "journal" / JOURNAL).read_text().splitlines()
    (studies / "journal" / JOURNAL).write_text("\n".join([*lines[:3], line, *lines[3:], ""]))
    (studies / "settings" / "study.yaml").write_text("study: [")
    (studies / "front" / "front.json").write_text("{")
    client = client_of(studies)
    text = client.get("/").text
    assert f"{studies / 'journal' / JOURNAL}:4: {why}" in text
    assert "settings/study.yaml" in text
    assert "front/front.json" in text
    assert "9 of 9" in text
    for name in ("journal", "settings", "front"):
        got = client.get(f"/studies/{name}")
        assert got.status == 200
        assert 'role="alert"' in got.text


def test_looking_changes_nothing_and_takes_no_lock(client_of, studies, monkeypatch):
    def state():
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
            for path in [studies, *studies.rglob("*")]
        }

    monkeypatch.setattr("fcntl.flock", lambda *given: pytest.fail("a lock was taken"))
    with (studies / "mine" / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "half a li')
    before = state()
    client = client_of(studies)
    for way in (
        "/",
        "/studies/mine",
        "/studies/mine/trials/0",
        "/api/studies/0",
        "/dashboard",
    ):
        assert client.get(way).status == 200
    assert state() == before


def test_a_study_that_grows_is_seen_growing(client_of, tmp_path, problem, fastest):
    with pytest.raises(Stopped):
        searched(problem, fastest, tmp_path, StudyExecutor(stop_after=5), study="mine")
    client = client_of(tmp_path)
    seen = len(client.studies.live("mine").points)
    assert 0 < seen < 9
    assert f"{seen} of 9" in client.get("/").text
    assert 'class="state crashed"' in client.get("/").text  # it broke, it was not stopped
    searched(problem, fastest, tmp_path, StudyExecutor(), study="mine")
    assert "9 of 9" in client.get("/").text
    assert 'class="state finished"' in client.get("/").text


@pytest.mark.parametrize(
    ("action", "form", "asked"),
    [
        ("resume", {}, ("resume", "mine", {})),
        ("extend", {"trials": "7"}, ("resume", "mine", {"trials": "7"})),
        ("stop", {}, ("stop", "mine")),
        ("export", {"onnx": "on", "mnn": "on"}, ("export", "mine", ("onnx", "mnn"), False)),
        ("export", {"onnx": "on", "int8": "on"}, ("export", "mine", ("onnx",), True)),
        ("cancel", {}, ("cancel", "mine")),
    ],
)
def test_buttons_do_what_they_say_and_lead_back(client, action, form, asked):
    got = client.post(f"/studies/mine/{action}", form | {"token": client.guard.token})
    assert client.runs.asked == [asked]
    assert (got.status, got.headers["Location"]) == (303, f"/studies/mine?said={action}")
    assert pages.SAID[action] in client.get(got.headers["Location"]).text


def test_the_page_carries_the_token_that_its_buttons_need(client):
    text = client.get("/studies/mine").text
    assert set(re.findall(r'name="token" value="([^"]*)"', text)) == {client.guard.token}
    assert client.guard.token not in client.get("/").text


@pytest.mark.parametrize(
    ("form", "changes", "status"),
    [
        ({}, {}, 403),
        ({"token": "wrong"}, {}, 403),
        ({"token": None}, {"HTTP_ORIGIN": None}, 403),
        ({"token": None}, {"HTTP_ORIGIN": "http://evil.example", "HTTP_SEC_FETCH_SITE": None}, 403),
        ({"token": None}, {"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ({"token": None}, {"HTTP_HOST": "evil.example:8080", "HTTP_ORIGIN": "http://evil.example:8080"}, 421),
        ({"token": None}, {"CONTENT_TYPE": "text/plain"}, 415),
        ({"token": None, "more": "x" * 5000}, {}, 413),
        ({"token": None}, {"CONTENT_LENGTH": "-1"}, 413),
        ({"token": None}, {"REQUEST_METHOD": "PUT"}, 405),
        ({"token": None}, {"REQUEST_METHOD": "DELETE"}, 405),
    ],
)
@pytest.mark.parametrize("action", ["resume", "extend", "stop", "export", "cancel"])
def test_nothing_is_done_for_a_request_from_elsewhere(client, action, form, changes, status):
    form = {name: client.guard.token if value is None else value for name, value in form.items()}
    assert client.post(f"/studies/mine/{action}", {"trials": "1", "onnx": "on"} | form, **changes).status == status
    assert client.runs.asked == []


def field(text, name):
    (found,) = set(re.findall(rf'<input [^>]*name="{name}"[^>]*>', text))
    return re.search(r'value="([^"]*)"', found)[1]


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"trials": "7"}, {"trials": "7"}),
        ({"finalists": "5"}, {"finalists": "5"}),
        ({"budget": "60ms"}, {"budget": "60ms"}),
        (
            {"trials": " 2 ", "finalists": "2", "budget": " 0.05\n s "},
            {"trials": "2", "finalists": "2", "budget": "0.05 s"},
        ),
        ({"trials": "1", "budget": "0.1s"}, {"trials": "1"}),  # what the study has, in another unit
        ({"trials": "1", "finalists": "", "budget": ""}, {"trials": "1"}),
    ],
)
def test_a_study_is_extended_by_what_was_changed_of_what_the_page_shows(client, changes, flags):
    text = client.get("/studies/mine").text
    form = {name: field(text, name) for name in ("token", "trials", "finalists", "budget")}
    assert (form["trials"], form["finalists"], form["budget"]) == ("", "3", "100ms")
    assert client.post("/studies/mine/extend", form | changes).status == 303
    assert client.runs.asked == [("resume", "mine", flags)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("trials", "0"), ("trials", "-1"), ("finalists", "0"), ("finalists", "-3"), ("budget", "5"), ("budget", "0ms")],
)
def test_what_is_no_extension_is_refused_in_the_words_of_the_command_line(client, capsys, name, value):
    assert main(["resume", "mine", f"--{name}={value}", "--out", str(client.studies.root)]) == WRONG_INPUT
    words = capsys.readouterr().err.removeprefix("nas: ").strip()
    got = client.post("/studies/mine/extend", {"token": client.guard.token, name: value})
    assert (got.status, client.runs.asked) == (400, [])
    assert words
    assert words in html.unescape(got.text)


@pytest.mark.parametrize("name", ["trials", "finalists"])
@pytest.mark.parametrize("value", ["1.5", "9" * 30, "\N{SUPERSCRIPT TWO}", "x", "1 --budget=1s"])
def test_a_study_is_extended_by_whole_numbers_only(client, name, value):
    got = client.post("/studies/mine/extend", {"token": client.guard.token, name: value})
    assert (got.status, client.runs.asked) == (400, [])
    assert f"{name}: a whole number, got " in got.text


@pytest.mark.parametrize("form", [{}, {"trials": ""}, {"finalists": "3", "budget": "100ms"}])
def test_an_extension_by_nothing_says_what_may_be_given(client, form):
    got = client.post("/studies/mine/extend", form | {"token": client.guard.token})
    assert (got.status, client.runs.asked) == (400, [])
    assert "give more trials, other finalists or another budget" in got.text
    assert '<a href="/studies/mine" id="back">Back to mine</a>' in got.text


def test_why_a_run_came_to_nothing_is_said_until_something_else_happens(client_of, studies):
    client, log = client_of(studies), studies / "mine" / "log.txt"
    assert 'id="last-words"' not in client.get("/studies/mine").text
    with log.open("a") as file:
        file.write("nas: no network of space edge-small keeps <1us>\n")
    said = re.search(r'<p [^>]*role="alert" id="last-words">(.*?)</p>', client.get("/studies/mine").text)
    assert said[1] == "no network of space edge-small keeps &lt;1us&gt;"
    with log.open("a") as file:
        file.write("2026-11-20 10:00:00 dashboard: Resume was pressed\n")
    assert 'id="last-words"' not in client.get("/studies/mine").text


def test_what_is_refused_is_said(client, monkeypatch):
    def refuse(folder, more):
        raise Refused("mine is running already; a study has one driver at a time")

    monkeypatch.setattr(client.runs, "resume", refuse)
    got = client.post("/studies/mine/resume", {"token": client.guard.token})
    assert got.status == 409
    assert "one driver at a time" in got.text


def test_a_study_that_cannot_be_written_is_said_to_be_so(client, monkeypatch):
    def full(folder, more):
        raise OSError(errno.ENOSPC, "No space left on device", "log.txt")

    monkeypatch.setattr(client.runs, "resume", full)
    got = client.post("/studies/mine/resume", {"token": client.guard.token})
    assert got.status == 500
    assert "No space left on device" in got.text


def test_an_unforeseen_error_names_nothing_to_the_reader(client, monkeypatch):
    def broken(name):
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr(client.studies, "live", broken)
    got = client.get("/studies/mine")
    assert got.status == 500
    assert "secret" not in got.text


def test_optunas_pages_know_the_constraints_and_every_study(client_of, studies):
    shutil.copytree(studies / "mine", studies / "other")
    client = client_of(studies)
    listed = json.loads(client.get("/api/studies").body)["study_summaries"]
    assert [each["study_name"] for each in listed] == ["mine", "other"]
    trials = json.loads(client.get("/api/studies/1").body)["trials"]
    assert [each["number"] for each in trials] == list(range(9))
    assert all(len(each["constraints"]) == 1 and each["constraints"][0] <= 0 for each in trials)
    assert "/dashboard/studies/1" in client.get("/studies/other").text
    assert client.get("/dashboard").status == 200
    assert client.get("/static/bundle.js").status == 200


@pytest.mark.parametrize(
    ("method", "way"),
    [
        ("DELETE", "/api/studies/0"),
        ("POST", "/api/studies"),
        ("POST", "/api/studies/0/rename"),
        ("PUT", "/api/studies/0/note"),
        ("POST", "/api/trials/0/tell"),
        ("DELETE", "//api/studies/0"),
        ("PATCH", "/api/studies/0"),
        ("POST", "/dashboard"),
        ("delete", "/api/studies/0"),
    ],
)
def test_optunas_own_calls_that_write_are_shut(client_of, studies, method, way):
    before = (studies / "mine" / JOURNAL).read_bytes()
    client = client_of(studies)
    body = b'{"study_name": "new", "directions": ["minimize"]}'
    changes = {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body)}
    assert client.get(way, method, HTTP_ORIGIN=f"http://{HOST}", **changes).status == 403
    assert len(json.loads(client.get("/api/studies").body)["study_summaries"]) == 1
    assert (studies / "mine" / JOURNAL).read_bytes() == before


def test_optunas_writes_come_from_its_own_pages_even_when_they_are_asked_for(client_of, studies):
    client = client_of(studies, optuna_writes=True)
    assert client.get("/api/studies/0", "DELETE", HTTP_ORIGIN="http://evil.example").status == 403
    # From its own page it gets as far as the journals, and those nobody can write through this.
    assert client.get("/api/studies/0", "DELETE", HTTP_ORIGIN=f"http://{HOST}").status == 500
    assert (studies / "mine" / JOURNAL).exists()


def test_without_optuna_dashboard_the_own_pages_remain(client):
    app = client.app
    own = Client(type(app)(client.studies, client.runs, client.guard, None))
    assert own.get("/studies/mine").status == 200
    assert "Optuna" not in own.get("/").text
    got = own.get("/dashboard")
    assert got.status == 404
    assert "pip install" in got.text


def test_a_head_request_has_the_headers_alone(client):
    got = client.get("/studies/mine", "HEAD")
    assert (got.status, got.body) == (200, b"")
    assert int(got.headers["Content-Length"]) == len(client.get("/studies/mine").body)
    assert client.get("/studies/mine/files/front.json", "HEAD").body == b""


def test_a_journal_that_was_put_back_is_read_anew(client_of, studies):
    client = client_of(studies)
    assert "9 of 9" in client.get("/").text
    lines = (studies / "mine" / JOURNAL).read_bytes().splitlines(keepends=True)
    (studies / "mine" / "shorter").write_bytes(b"".join(lines[:5]))
    (studies / "mine" / "shorter").replace(studies / "mine" / JOURNAL)
    assert "4 of 9" in client.get("/").text
    assert len(json.loads(client.get("/api/studies/0").body)["trials"]) == 4
