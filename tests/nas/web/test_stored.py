"""A storage's studies on our own pages: what it holds is shown, what only the folder has is said to be elsewhere."""

import json
import re
import shutil

import optuna
import pytest

from nas.storage import RECORD, open_study, url_storage
from nas.web.app import App
from nas.web.guard import Guard
from nas.web.optuna_pages import OptunaPages
from nas.web.runs import Runs
from nas.web.stored import StoredStudies
from nas.web.studies import Studies, database
from tests.nas.conftest import StudyExecutor
from tests.nas.web.conftest import Client, searched


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('db')}/trials.db"


@pytest.fixture(scope="module")
def there(tmp_path_factory, url, problem, fastest):
    """The folder of studies on the machine where a study was searched whose trials are in the database."""
    studies = tmp_path_factory.mktemp("there") / "studies"
    searched(problem, fastest, studies, StudyExecutor(), study="shared", storage=url)
    foreign = optuna.create_study(study_name="a/foreign <one>", storage=url_storage(url))
    foreign.add_trial(optuna.trial.create_trial(value=0.5))
    return studies


def pages_of(studies, url):
    return Client(App(Studies(studies, Runs()), Runs(), Guard("127.0.0.1"), None, StoredStudies(url)))


@pytest.fixture
def elsewhere(there, url, tmp_path):
    """The dashboard on another machine: it has the database and an empty folder."""
    return pages_of(tmp_path / "empty", url)


def stored_rows(text):
    table = text[text.index('id="stored"') :]
    return re.findall(r'id="stored-(\d+)">([^<]*)</a></td>(.*?)</tr>', table)


def test_the_studies_of_the_storage_are_listed_with_what_it_knows_of_them(elsewhere):
    rows = {name: (number, row) for number, name, row in stored_rows(elsewhere.get("/").text)}
    assert set(rows) == {"shared", "a/foreign &lt;one&gt;"}
    for words in ("elsewhere", "rk3288", "100ms", "9 of 9", "loss"):
        assert words in rows["shared"][1]
    assert "not begun by this program" in rows["a/foreign &lt;one&gt;"][1]


def test_a_study_is_shown_as_on_its_own_machine_but_for_its_files(elsewhere, there, url):
    number = next(number for number, name, _ in stored_rows(elsewhere.get("/").text) if name == "shared")
    text = elsewhere.get(f"/stored/{number}").text
    own = pages_of(there, url).get("/studies/shared").text
    charts = re.compile(r'<section id="(search|hypervolume)".*?</section>')
    drawn, own_drawn = ({part[1]: part[0] for part in charts.finditer(each)} for each in (text, own))
    assert set(drawn) == {"search", "hypervolume"}
    for name, part in own_drawn.items():
        assert drawn[name] == part.replace("/studies/shared/trials", f"/stored/{number}/trials")
    assert "on the machine where it was begun" in text
    assert "<form" not in text, "nothing here can be resumed or stopped"


def test_its_trials_are_drawn_without_its_folder(elsewhere):
    number = next(number for number, name, _ in stored_rows(elsewhere.get("/").text) if name == "shared")
    text = elsewhere.get(f"/stored/{number}").text
    trial = re.search(rf'href="(/stored/{number}/trials/\d+)"', text)[1]
    text = elsewhere.get(trial).text
    assert "Latency per kernel" in text
    assert "cannot be drawn" not in text
    assert f'href="/stored/{number}"' in text
    assert elsewhere.get(f"/stored/{number}/trials/999").status == 404


def test_a_study_whose_folder_is_here_is_listed_once(there, url):
    text = pages_of(there, url).get("/").text
    assert 'id="study-shared"' in text
    assert [name for _, name, _ in stored_rows(text)] == ["a/foreign &lt;one&gt;"]


def test_optunas_pages_are_linked_by_the_number_that_the_storage_has(there, url, finished, tmp_path):
    studies = shutil.copytree(there, tmp_path / "studies")
    shutil.copytree(finished / "mine", studies / "mine")
    found, stored = Studies(studies, Runs()), StoredStudies(url)
    pages = Client(App(found, Runs(), Guard("127.0.0.1"), OptunaPages(lambda: database(url)), stored))
    number = url_storage(url).get_study_id_from_name("shared")
    assert f'href="/dashboard/studies/{number}"' in pages.get("/studies/shared").text
    # Its trials are in a journal, which Optuna's pages do not show now.
    assert 'href="/dashboard/studies/' not in pages.get("/studies/mine").text


def test_a_foreign_study_says_that_it_is_one(elsewhere):
    number = next(number for number, name, _ in stored_rows(elsewhere.get("/").text) if name != "shared")
    text = elsewhere.get(f"/stored/{number}").text
    assert "not begun by this program" in text
    assert elsewhere.get(f"/stored/{number}/trials/0").status == 404


def test_new_trials_are_seen_and_a_deleted_study_is_gone(there, url, tmp_path, problem, fastest):
    studies = shutil.copytree(there, tmp_path / "studies")
    own_url = f"sqlite:///{tmp_path}/own.db"
    searched(problem, fastest, studies, StudyExecutor(), study="grows", storage=own_url)
    stored = StoredStudies(own_url)
    assert stored.live("grows").overview.done == 9
    assert stored.live("grows") is stored.live("grows"), "nothing is drawn anew while nothing changes"
    searched(problem, fastest, studies, StudyExecutor(), study="grows", storage=own_url, trials=12)
    assert stored.live("grows").overview.done == 12
    assert stored.live("grows").overview.record.trials == 12
    optuna.delete_study(study_name="grows", storage=url_storage(own_url))
    assert stored.names() == []
    pages = Client(App(Studies(tmp_path / "none", Runs()), Runs(), Guard("127.0.0.1"), None, stored))
    assert pages.get("/stored/1").status == 404


def test_the_settings_that_a_storage_keeps_hold_no_url(there, url):
    kept = open_study(there, "shared", url).user_attrs[RECORD]
    assert json.loads(kept)["storage"] is None
    assert "sqlite" not in kept


def test_a_storage_that_does_not_answer_is_one_line_beside_the_folder(finished, tmp_path):
    got = pages_of(finished, f"sqlite:///{tmp_path}/gone.db").get("/")
    assert got.status == 200
    assert 'id="study-mine"' in got.text
    assert "gone.db does not exist" in got.text


def test_without_a_storage_there_are_no_stored_studies(client):
    assert client.get("/stored/1").status == 404
    assert "stored" not in client.get("/").text
