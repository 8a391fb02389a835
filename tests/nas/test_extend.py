"""A study that goes on as more than it was: other finalists, another budget. What was paid for stays."""

import json
import signal

import pytest

from nas import driver
from nas.cli import main
from nas.exit_codes import DONE, INFEASIBLE, WRONG_INPUT
from nas.members import read_front
from nas.settings import read_study_file
from nas.storage import open_study
from nas.study import check_budget
from nas.web.runs import Runs
from nas.web.studies import Studies
from searchspace.spec import ArchSpec
from tests.nas.conftest import StudyExecutor

WORDS = "search --target rk3288 --budget 100ms --data-limit 200 --study mine --finalists 3 --trials 15"
SEARCH = WORDS.split()


@pytest.fixture
def nas(tmp_path, capsys, monkeypatch, fastest):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)

    def nas(executor, *words):
        monkeypatch.setattr(driver, "_executor", lambda problem: executor)
        code = main([*words, "--out", str(tmp_path)])
        return code, capsys.readouterr().err

    yield nas
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def folder(nas, tmp_path):
    assert nas(StudyExecutor(), *SEARCH)[0] == DONE
    return tmp_path / "mine"


def trials(folder):
    return open_study(folder, read_study_file(folder).durable_name, None).get_trials(deepcopy=False)


def candidates(executor):
    """What was looked at."""
    return [asked for asked in executor.specs if isinstance(asked, ArchSpec)]


def archs(folder):
    return [trial.user_attrs["arch"] for trial in trials(folder)]


def middle_ms(folder):
    """A budget that half of the trials keep."""
    return round(1.0001 * sorted(trial.user_attrs["latency_high_ms"] for trial in trials(folder))[7], 4)


def test_more_finalists_are_trained_beside_those_that_are(nas, folder):
    before = archs(folder)
    models = {path.name for path in (folder / "models").iterdir()}
    executor = StudyExecutor()
    code, err = nas(executor, "resume", "mine", "--finalists", "5")
    assert code == DONE, err
    assert "finalists: 5, before 3" in err
    assert "finalists: 5, before 3" in (folder / "log.txt").read_text()
    assert read_study_file(folder).finalists == 5
    assert archs(folder) == before
    assert candidates(executor) == []
    assert not {str(plan.trial) for plan in executor.plans} & models, "those that are there stay"
    assert len(executor.plans) >= 2
    assert len(json.loads((folder / "run.json").read_text())["finalists"]) == 5


def test_under_another_budget_trials_keep_their_numbers_and_are_judged_anew(nas, folder):
    before = archs(folder)
    first = read_front(folder)
    models = {path.name for path in (folder / "models").iterdir()}
    budget_ms = middle_ms(folder)
    executor = StudyExecutor()
    code, err = nas(executor, "resume", "mine", "--budget", f"{budget_ms}ms")
    assert code == DONE, err
    assert f"budget: {budget_ms}ms, before 100ms" in err
    assert candidates(executor) == [], "no candidate is evaluated again"
    assert archs(folder) == before
    for trial in trials(folder):
        over = trial.user_attrs["latency_high_ms"] / budget_ms - 1
        assert trial.constraints == {"latency_over_budget": pytest.approx(over)}
    assert sum(trial.constraints["latency_over_budget"] <= 0 for trial in trials(folder)) == 8
    shown = Studies(folder.parent, Runs()).trials("mine")
    over = [[each.constraints["latency_over_budget"] for each in found] for found in (shown, trials(folder))]
    assert over[0] == over[1], "on the dashboard too"
    members = read_front(folder)["members"]
    assert read_front(folder)["budget_ms"] == budget_ms
    assert members
    assert max(each["latency_ms"]["high"] for each in members) <= budget_ms
    assert models <= {path.name for path in (folder / "models").iterdir()}
    assert not {str(plan.trial) for plan in executor.plans} & models, "no finalist is trained again"
    record = read_study_file(folder)
    assert (record.budget, record.earlier_budgets) == (f"{budget_ms}ms", ["100ms"])

    back = StudyExecutor()
    code, err = nas(back, "resume", "mine", "--budget", "100ms")
    assert code == DONE, err
    assert back.specs == []
    assert archs(folder) == before
    assert read_front(folder)["members"] == first["members"]


def test_more_trials_under_a_tighter_budget_keep_that_one(nas, folder):
    before = archs(folder)
    budget_ms = middle_ms(folder)
    executor = StudyExecutor()
    code, err = nas(executor, "resume", "mine", "--budget", f"{budget_ms}ms", "--trials", "4")
    assert code == DONE, err
    assert len(candidates(executor)) == 4
    found = trials(folder)
    assert archs(folder)[:15] == before
    assert len(set(archs(folder))) == 19
    assert max(trial.user_attrs["latency_high_ms"] for trial in found[15:]) <= budget_ms
    again = StudyExecutor()
    assert nas(again, "resume", "mine")[0] == DONE
    assert again.specs == []


def test_the_same_budget_in_another_unit_is_no_change(nas, folder):
    before = (folder / "study.yaml").read_bytes()
    assert nas(StudyExecutor(), "resume", "mine", "--budget", "0.1s")[0] == DONE
    assert (folder / "study.yaml").read_bytes() == before


def test_a_budget_that_no_member_keeps_changes_nothing(nas, folder, monkeypatch):
    monkeypatch.setattr(driver, "check_budget", check_budget)
    before = (folder / "study.yaml").read_bytes()
    code, err = nas(StudyExecutor(), "resume", "mine", "--budget", "1us")
    assert code == INFEASIBLE
    assert "allow at least that" in err
    assert (folder / "study.yaml").read_bytes() == before
    assert not (folder / "earlier.json").exists()


@pytest.mark.parametrize("words", [["--budget", "5"], ["--finalists", "0"], ["--budget", "0ms"]])
def test_what_is_no_extension_is_refused_in_one_line(nas, folder, words):
    code, err = nas(None, "resume", "mine", *words)
    assert code == WRONG_INPUT
    assert err.count("\n") == 1


# So many that evolution and the surrogate are beyond their random beginning.
@pytest.mark.parametrize(("sampler", "trials_before"), [("nsga2", 6), ("tpe", 6), ("evolution", 17), ("surrogate", 17)])
def test_a_study_under_another_budget_goes_on_as_if_never_stopped(nas, tmp_path, sampler, trials_before):
    search = [*SEARCH[:-1], str(trials_before), "--sampler", sampler]
    found = []
    for name, stops in (("whole", ["6"]), ("parts", ["2", "4"])):
        assert nas(StudyExecutor(), *search, "--study", name)[0] == DONE
        for more in stops:
            code, err = nas(StudyExecutor(), "resume", name, "--budget", "60ms", "--trials", more)
            assert code == DONE, err
        found.append(archs(tmp_path / name))
    assert len(found[0]) == trials_before + 6
    assert found[0] == found[1]
