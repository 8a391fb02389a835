"""A study whose target's table has changed: refused, and gone on with where that is accepted."""

import json
import signal
from dataclasses import replace

import pytest

from evaluators.static import StaticCosts
from nas import driver
from nas.cli import main
from nas.exit_codes import DONE, WRONG_INPUT
from nas.members import read_front
from nas.settings import read_study_file
from nas.storage import open_study
from searchspace.spec import ArchSpec, spec_id
from tests.nas.conftest import StudyExecutor

SEARCH = ["search", "--target", "rk3288", "--budget", "100ms", "--data-limit", "200", "--study", "mine", "--trials"]
NEW = "f" * 64


class Dearer(StaticCosts):
    """The same networks at three times the latency, as a new table might have it."""

    def __call__(self, spec):
        cost = super().__call__(spec)
        latency = cost.latency
        dearer = replace(latency, value_ms=3 * latency.value_ms, low_ms=3 * latency.low_ms, high_ms=3 * latency.high_ms)
        return replace(cost, latency=dearer)


@pytest.fixture
def nas(tmp_path, capsys, monkeypatch, fastest):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)

    def nas(executor, *words):
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        code = main([*words, "--out", str(tmp_path)])
        told = capsys.readouterr()
        return code, told.out, told.err

    yield nas
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def new_table(monkeypatch, problem):
    def install():
        monkeypatch.setattr(
            driver,
            "resolve",
            lambda settings, table=None: replace(
                problem, settings=settings, target=replace(problem.target, sha256=NEW), costs=Dearer(problem.target)
            ),
        )

    return install


@pytest.mark.parametrize("storage", [None, pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_changed_table_is_refused_and_on_request_everything_paid_for_is_used(nas, new_table, tmp_path, storage):
    url = f"sqlite:///{tmp_path / 'studies.db'}" if storage else None
    assert nas(StudyExecutor(), *SEARCH, "15", *(["--storage", url] if url else []))[0] == DONE
    folder = tmp_path / "mine"
    old = read_study_file(folder)
    trials = open_study(folder, "mine", url).get_trials(deepcopy=False)
    known = {json.loads(line)["arch"] for line in (folder / "results.jsonl").read_text().splitlines()}
    new_table()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and "lock" not in path.name}
    code, out, err = nas(None, "resume", "mine")
    assert (code, out) == (WRONG_INPUT, "")
    assert err.count("\n") == 1
    assert "has changed since it began" in err
    assert "`nas resume mine --accept-changed-table`" in err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before}

    still_feasible = [t for t in trials if 3 * t.user_attrs["latency_high_ms"] <= 100]
    assert 0 < len(still_feasible) < 15, "were it all or none, nothing would be decided anew"
    executor = StudyExecutor()
    code, _, err = nas(executor, "resume", "mine", "--accept-changed-table")
    assert code == DONE, err
    assert f"the latency table of rk3288 is {NEW[:12]} now" in err
    looked_at = [spec for spec in executor.specs if isinstance(spec, ArchSpec)]
    assert not {spec_id(spec) for spec in looked_at} & known, "nothing is paid for twice"
    record = read_study_file(folder)
    assert record.target_sha256 == NEW
    assert record.accepted_tables == [old.target_sha256]
    found = open_study(folder, record.durable_name, url).get_trials(deepcopy=False)
    assert len(found) == 15
    assert [t.user_attrs["arch"] for t in found] == [t.user_attrs["arch"] for t in trials], "trials keep their numbers"
    feasible = {t.user_attrs["arch"] for t in found if t.constraints["latency_over_budget"] <= 0}
    assert feasible == {t.user_attrs["arch"] for t in still_feasible}
    assert max(each["latency_ms"]["high"] for each in read_front(folder)["members"]) <= 100
    assert len(open_study(folder, "mine", url).get_trials(deepcopy=False)) == 15, "what was is still to be read"

    again = StudyExecutor()
    assert nas(again, "resume", "mine")[0] == DONE
    assert again.specs == [], "from here on it is a study like any other"
    more = StudyExecutor()
    assert nas(more, "resume", "mine", "--trials", "2")[0] == DONE
    found = open_study(folder, record.durable_name, url).get_trials(deepcopy=False)
    assert len(found) == 17
    assert max(t.user_attrs["latency_high_ms"] for t in found[15:]) <= 100


def test_accepting_a_table_that_has_not_changed_changes_nothing(nas, tmp_path):
    assert nas(StudyExecutor(), *SEARCH, "6")[0] == DONE
    before = (tmp_path / "mine" / "study.yaml").read_bytes()
    again = StudyExecutor()
    assert nas(again, "resume", "mine", "--accept-changed-table")[0] == DONE
    assert again.specs == []
    assert (tmp_path / "mine" / "study.yaml").read_bytes() == before
