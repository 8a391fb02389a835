"""The trust report, against SciPy's correlations and members whose accuracy is known."""

import json
import math
import random

import pytest
from scipy import stats

from evaluators.evaluator import Failure
from hardware.strict_yaml import ConfigError
from nas import driver
from nas.cli import main
from nas.console import QuietObserver
from nas.driver import begin, run_study
from nas.exit_codes import BROKE, DONE, WRONG_INPUT
from nas.ground import Ground
from nas.leading import led_problem
from nas.report import write_report
from nas.results import ResultStore
from nas.run_record import read_run_record
from nas.settings import read_study_file
from nas.trust import FALLBACK, MIX, judged, leading_score
from nas.trust_members import Allowance, TrustFailed, TrustRun, read_trust, spread_members, trust_job
from nas.trust_table import TRUST_TITLES, trust_rows, what_it_rests_on
from searchspace.spec import spec_id
from tests.nas.conftest import Stopped, StudyExecutor, formula, share


def members(count=24, *, signal, macs, seed=0):
    """Networks whose accuracy one proxy foretells by `signal` and multiply-adds by `macs`, from 0 to 1."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        truth = index / count
        noisy = {
            "sign": signal * truth + (1 - signal) * rng.random(),
            "macs": 10 + 3 * (macs * truth + (1 - macs) * rng.random()),
            "params": rng.random(),
        }
        found.append({"accuracy": 0.5 + truth / 2, "proxies": noisy, "proxy_seconds": 1.0, "seconds": 2.0})
    rng.shuffle(found)
    return found


def test_correlations_are_scipys():
    pool = members(signal=0.6, macs=0.4)
    report = judged(pool)
    truth = [each["accuracy"] for each in pool]
    better = sorted(pool, key=lambda each: -each["accuracy"])[:12]
    for name in ("sign", "macs", "params"):
        column = [each["proxies"][name] for each in pool]
        found = report["proxies"][name]
        assert found["all"]["spearman"] == pytest.approx(stats.spearmanr(column, truth).statistic)
        assert found["all"]["kendall"] == pytest.approx(stats.kendalltau(column, truth).statistic)
        half = stats.spearmanr([each["proxies"][name] for each in better], [each["accuracy"] for each in better])
        assert found["better_half"]["spearman"] == pytest.approx(half.statistic)
        for part in ("all", "better_half"):
            assert found[part]["spearman_low"] <= found[part]["spearman"] <= found[part]["spearman_high"]
    over = report["proxies"]["sign"]["over"]["macs"]
    expected = report["proxies"]["sign"]["all"]["spearman"] - report["proxies"]["macs"]["all"]["spearman"]
    assert over["value"] == pytest.approx(expected)
    assert "macs" not in report["proxies"]["macs"]["over"]


def test_an_interval_holds_what_the_bootstrap_of_scipy_holds():
    pool = members(40, signal=0.6, macs=0.4)
    report = judged(pool)["proxies"]["sign"]["all"]
    column, truth = [each["proxies"]["sign"] for each in pool], [each["accuracy"] for each in pool]
    interval = stats.bootstrap(
        (column, truth),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=999,
        method="percentile",
        random_state=0,
    ).confidence_interval
    assert (report["spearman_low"], report["spearman_high"]) == pytest.approx(tuple(interval), abs=0.05)


def test_a_mix_that_beats_multiply_adds_beyond_the_interval_leads():
    report = judged(members(signal=0.95, macs=0.0))
    assert report["leads"] == MIX
    assert "sign" in report["mix"]["proxies"]
    assert report["proxies"][MIX]["over"]["macs"]["low"] > 0
    score, proxies = leading_score(json.loads(json.dumps(report)))
    assert proxies == tuple(report["mix"]["proxies"])

    def known(value):
        return {f"proxy-{name}": value for name in proxies}

    assert score.value(known(0.2)) < score.value(known(0.6)) < score.value(known(50.0)) < score.value(known(60.0))


@pytest.mark.parametrize(("signal", "macs"), [(0.3, 0.9), (0.0, 0.0), (0.8, 0.8)])
def test_without_such_a_mix_multiply_adds_lead(signal, macs):
    report = judged(members(signal=signal, macs=macs))
    assert report["leads"] == FALLBACK
    score, proxies = leading_score(report)
    assert proxies == ()
    assert score.value({"macs": 1000.0}) == pytest.approx(math.log(1000))


def test_chance_does_not_earn_the_lead():
    # Fifteen columns of noise: chosen on all members, a mix of them would look good.
    rng = random.Random(5)
    pool = members(signal=0.0, macs=0.0)
    for each in pool:
        each["proxies"] |= {f"noise{index}": rng.random() for index in range(15)}
    report = judged(pool)
    best = max(each["all"]["spearman"] for name, each in report["proxies"].items() if name != MIX)
    assert best > 0.25, "on the members that it was chosen on, something always looks good"
    assert report["leads"] == FALLBACK


def test_a_proxy_that_is_silent_somewhere_is_told_and_not_mixed():
    pool = members(signal=0.95, macs=0.0)
    del pool[3]["proxies"]["sign"]
    report = judged(pool)
    assert report["incomplete"] == ["sign"]
    assert "sign" not in report["mix"]["proxies"]
    assert "sign" not in report["proxies"]


def test_members_that_are_all_alike_leave_the_lead_to_multiply_adds():
    pool = [each | {"accuracy": 0.1} for each in members(signal=0.9, macs=0.1)]
    report = judged(pool)
    assert report["leads"] == FALLBACK
    assert report["proxies"]["macs"]["all"]["spearman"] is None
    json.dumps(report, allow_nan=False)
    assert all("-" in row for row in trust_rows(report))


def test_too_few_members_are_refused():
    with pytest.raises(ValueError, match="at least 12 trained members, got 11"):
        judged(members(11, signal=0.5, macs=0.5))


# Members and their training


def trust_of(spec):
    """What `trust_job` might say: a proxy that is right, and multiply-adds that are not."""
    accuracy = round(share(f"accuracy {spec_id(spec)}"), 3)
    proxies = {"naswot": accuracy, "macs": share(f"macs {spec_id(spec)}"), "params": share(f"params {spec_id(spec)}")}
    return {
        "proxies": proxies,
        "silent": {},
        "accuracy": accuracy,
        "loss": 1.0,
        "images": 249,
        "proxy_seconds": 1.0,
        "seconds": 2.0,
    }


class TrustExecutor(StudyExecutor):
    """Answers for members as well; `plans_trusted` are those that were asked for."""

    def __init__(self, answer=trust_of, **options):
        super().__init__(**options)
        self._trust = answer
        self._usual = self._answer
        self._answer = lambda asked: self._trust(asked[1]) if isinstance(asked, tuple) else self._usual(asked)
        self.proxies = []

    def submit(self, job):
        if job.function is trust_job:
            return self._take(("trust", job.arguments[0].spec))
        if len(job.arguments) == 5:
            self.proxies.append(job.arguments[4])
        return super().submit(job)

    @property
    def trusted(self):
        return [asked[1] for asked in self.specs if isinstance(asked, tuple)]


class Notes(QuietObserver):
    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


def test_members_are_spread_over_what_they_cost(problem, fastest):
    places = spread_members(Ground(problem, fastest), 12, seed=0)
    assert len({spec_id(place.spec) for place in places}) == 12
    assert all(place.cost.latency.high_ms <= problem.settings.budget_ms for place in places)
    costs = sorted(place.cost.macs for place in places)
    assert costs[-1] / costs[0] > 10
    middle = (math.log(costs[0]) + math.log(costs[-1])) / 2
    gaps = [abs(math.log(place.cost.macs) - middle) for place in places]
    assert gaps[0] < gaps[-1]
    assert places == spread_members(Ground(problem, fastest), 12, seed=0)
    assert places != spread_members(Ground(problem, fastest), 12, seed=1)


@pytest.fixture
def trusting(tmp_path, changed, fastest):
    def run(executor, allowance=Allowance(14, None), listener=None, **settings):  # noqa: B008
        own = changed(**settings)
        store = ResultStore(tmp_path / "results.jsonl")
        return TrustRun(own, tmp_path, executor, store).run(fastest, allowance, listener or Notes())

    run.folder = tmp_path
    return run


def test_the_report_is_kept_and_nothing_is_trained_twice(trusting):
    with pytest.raises(Stopped):
        trusting(TrustExecutor(stop_after=5))
    rest = TrustExecutor()
    report = trusting(rest)
    assert len(rest.trusted) == 9
    assert read_trust(trusting.folder) == json.loads(json.dumps(report))
    assert report["leads"] == MIX
    assert report["mix"]["proxies"] == ["naswot"]
    again = TrustExecutor()
    assert trusting(again) == report
    assert again.trusted == []
    assert len(trust_rows(report)[0]) == len(TRUST_TITLES)


def test_where_the_time_is_short_there_is_no_report(trusting):
    notes = Notes()
    assert trusting(TrustExecutor(), Allowance(24, 1e-9), notes) is None
    assert len(notes.heard) == 1
    assert notes.heard[0].startswith("no trust report: 12 members take about")
    assert read_trust(trusting.folder) is None


def test_members_that_fail_are_counted_and_too_many_end_it(trusting):
    failing = {}

    def answer(spec):
        failing[spec_id(spec)] = len(failing) < 2
        return Failure("no") if failing[spec_id(spec)] else trust_of(spec)

    report = trusting(TrustExecutor(answer))
    assert (report["members"], report["failures"]) == (12, ["no", "no"])
    assert what_it_rests_on(report).endswith(" 2 more could not be trained.")
    with pytest.raises(TrustFailed, match=r"0 of 14 members could be trained, at least 12 .* the first failure: never"):
        trusting(TrustExecutor(lambda spec: Failure("never")), seed=1)


def test_a_machine_at_fault_is_held_against_no_member(trusting):
    with pytest.raises(TrustFailed, match="members cannot be trained: disk"):
        trusting(TrustExecutor(lambda spec: Failure("disk", lasting=False)))
    assert len(TrustExecutor().trusted) == 0
    assert trusting(TrustExecutor())["members"] == 14


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_report_is_named(tmp_path, content):
    (tmp_path / "trust.json").write_text(content)
    with pytest.raises(ConfigError, match=r"trust\.json"):
        read_trust(tmp_path)


# In a search


def with_proxies(spec):
    found = formula(spec)
    return found if isinstance(found, Failure) else found | {"proxy-naswot": share(f"accuracy {spec_id(spec)}")}


@pytest.fixture
def run(tmp_path, monkeypatch, changed, fastest):
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)
    folder = tmp_path / "mine"

    def run(executor, observer=None, **settings):
        own = changed(**{"trials": 9, "finalists": 2, "study": "mine"} | settings)
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        begin(own.settings, folder, QuietObserver())
        return run_study(own, folder, observer or Notes())

    run.folder = folder
    return run


def led_executor(**options):
    executor = TrustExecutor(**options)
    usual = executor._usual
    executor._usual = lambda asked: with_proxies(asked) if hasattr(asked, "stages") else usual(asked)
    return executor


def test_a_search_is_led_by_the_mix_that_earned_it(run):
    notes = Notes()
    executor = led_executor()
    outcome = run(executor, notes, trust=12)
    assert len(executor.trusted) == 12
    assert set(executor.proxies) == {("naswot",)}
    assert any(text.startswith("trust: the mix naswot ranks members") for text in notes.heard)
    record = read_study_file(run.folder)
    assert (record.led_by, record.leading, record.score) == (MIX, MIX, "loss")
    told = [each for each in read_run_record(run.folder)["finalists"] if each["proxy"]["score"] is not None]
    ordered = sorted(told, key=lambda each: each["proxy"]["proxy-naswot"])
    scores = [each["proxy"]["score"] for each in ordered]
    assert scores == sorted(scores)
    assert outcome.document["members"]
    page = write_report(run.folder).read_text()
    assert "The search was led by mix" in page
    assert "over params" in page


def test_a_study_that_is_led_goes_on_as_it_was(run, problem):
    first = run(led_executor(), trust=12)
    again = led_executor()
    assert run(again, trust=12).document == first.document
    assert again.specs == []
    led = led_problem(problem, run.folder, read_study_file(run.folder))
    assert (led.leading, led.proxies) == (MIX, ("naswot",))
    (run.folder / "trust.json").unlink()
    with pytest.raises(ConfigError, match="the trust report that leads its search is gone"):
        run(led_executor(), trust=12)


def test_multiply_adds_lead_where_nothing_beats_them(run):
    def misled(spec):
        found = trust_of(spec)
        return found | {"proxies": found["proxies"] | {"macs": found["accuracy"], "naswot": share(spec_id(spec))}}

    executor = TrustExecutor(misled)
    run(executor, trust=12)
    assert read_study_file(run.folder).leading == "macs"
    assert set(executor.proxies) == {()}
    for each in read_run_record(run.folder)["finalists"]:
        assert each["proxy"]["score"] == pytest.approx(math.log(each["macs"]))


@pytest.mark.parametrize("settings", [{}, {"trust": 0, "time": "10h"}])
def test_nobody_is_asked_where_nobody_said_so(run, settings):
    executor = TrustExecutor()
    run(executor, **settings)
    assert executor.trusted == []
    assert read_study_file(run.folder).led_by is None


def test_a_search_with_the_time_for_it_asks(run):
    executor = led_executor()
    run(executor, time="10h")
    assert len(executor.trusted) == 24
    assert read_study_file(run.folder).led_by == MIX


def test_a_search_that_has_begun_is_not_led_anew(run):
    run(TrustExecutor())
    executor = TrustExecutor()
    run(executor, time="10h")
    assert executor.trusted == []


# The command


SEARCH = ["--target", "rk3288", "--budget", "100ms", "--data-limit", "200", "--study", "mine"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, fastest):
    monkeypatch.setattr(driver, "check_budget", lambda problem: fastest)

    def command(executor, *words):
        monkeypatch.setattr(driver, "_executor", lambda settings: executor)
        code = main([*map(str, words), "--out", str(tmp_path)])
        return code, *capsys.readouterr()

    return command


def test_the_command_tells_and_keeps_and_the_search_follows(command, tmp_path):
    code, out, err = command(TrustExecutor(), "trust", *SEARCH, "--trust", "12", "--json")
    assert code == DONE, err
    assert json.loads(out) == read_trust(tmp_path / "mine")
    executor = led_executor()
    code, _, err = command(executor, "search", *SEARCH, "--trust", "12", "--trials", "9")
    assert code == DONE, err
    assert executor.trusted == []
    assert set(executor.proxies) == {("naswot",)}


def test_a_study_that_is_there_is_only_told(command, tmp_path):
    command(StudyExecutor(), "search", *SEARCH, "--trials", "9")
    code, out, err = command(TrustExecutor(), "trust", "mine", "--trust", "12")
    assert code == DONE, err
    assert "naswot" in out
    assert "the study's search was led by its own score" in out
    assert read_study_file(tmp_path / "mine").led_by is None
    assert read_trust(tmp_path / "mine")["leads"] == MIX


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trust", *SEARCH, "--trust", "11"], "trust: at least 12 members to say anything, got 11"),
        (["search", *SEARCH, "--trust", "11"], "trust: at least 12 members, or 0 for no trust report, got 11"),
        (["search", *SEARCH, "--trust", "-1"], "trust: "),
        (["trust", *SEARCH, "--trust-epochs", "0"], "trust-epochs: "),
        (["trust", "nosuch"], "no study 'nosuch'"),
        (["trust", "--budget", "5ms"], "target: needed"),
    ],
)
def test_wrong_input_is_one_line(command, words, message):
    code, out, err = command(TrustExecutor(), *words)
    assert code == WRONG_INPUT
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_flag_that_is_the_studys_own_is_refused(command):
    command(StudyExecutor(), "search", *SEARCH, "--trials", "9")
    code, _, err = command(TrustExecutor(), "trust", "mine", "--data", "digits")
    assert code == WRONG_INPUT
    assert "data: study mine has its own; leave the flag out" in err


def test_too_few_that_train_are_told_in_a_line(command):
    executor = TrustExecutor(lambda spec: Failure("never"))
    code, _, err = command(executor, "trust", *SEARCH, "--trust", "12", "--quiet")
    assert code == BROKE
    assert err.startswith("nas: trust: 0 of 12 members could be trained")
    assert err.count("\n") == 1
