"""Numbers or a failure with its reason, and nothing in between."""

import math
import pickle

import pytest

from evaluators.evaluator import Failure, checked, failure_from
from evaluators.image_files import DataError


def test_finite_values_pass_as_they_are():
    values = {"a": 0.0, "b": -1e308, "c": 5e-324}
    assert checked(values) is values
    assert checked({}) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_fails_all_of_them_and_is_named(value):
    assert checked({"z": 1.0, "loss": value, "b": 2.0}) == Failure(f"not finite: loss = {value}")


def test_all_that_are_not_finite_are_named():
    found = checked({"loss": math.nan, "fine": 1.0, "dispersion": math.inf})
    assert found == Failure("not finite: dispersion = inf, loss = nan")


def test_a_reason_is_one_line_that_says_what_kind_of_error_it_was():
    assert failure_from(ValueError("one\n  two\t three")) == Failure("ValueError: one two three")
    assert failure_from(MemoryError()) == Failure("MemoryError: ")
    assert failure_from(SystemExit(3)) == Failure("SystemExit: 3")


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (ValueError("no kernel"), True),
        (RuntimeError("shapes"), True),
        (MemoryError(), True),
        (FileNotFoundError(2, "gone"), False),
        (OSError(28, "No space left on device"), False),
        (ModuleNotFoundError("onnx"), False),
        (DataError("a folder with one class"), False),
    ],
)
def test_only_what_a_candidate_is_to_blame_for_lasts(error, lasting):
    assert failure_from(error).lasting is lasting


def test_a_reason_is_not_endless():
    reason = failure_from(RuntimeError("x" * 10_000)).reason
    assert len(reason) == 500
    assert reason.startswith("RuntimeError: xxx")


def test_a_failure_can_be_sent_to_another_process():
    failure = Failure("why")
    assert pickle.loads(pickle.dumps(failure)) == failure
