import math

import numpy as np
import pytest

from hardware.graph import GraphBuilder, with_weights
from hardware.isolated import Failed
from hardware.ncnn_model import graph_param, to_ncnn
from hardware.ops import Conv, Reshape
from hardware.parity import Parity, difference
from hardware.runtimes import RUNTIMES
from tests.converted import check_models, run_files


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, -4.0], [1.5, -4.0], Parity(0.5, 0.125)),
        ([1.0, -4.0], [1.0, -4.0], Parity(0.0, 0.0)),
        ([0.0, 0.0], [0.0, 0.0], Parity(0.0, 0.0)),
        ([1.0, math.nan], [1.0, 2.0], Parity(math.inf, math.inf)),
        ([1.0, 2.0], [1.0, math.nan], Parity(math.inf, math.inf)),
        ([math.nan, 2.0], [math.nan, 2.0], Parity(math.inf, math.inf)),
        ([math.inf, 2.0], [math.inf, 2.0], Parity(math.inf, math.inf)),
        ([1.0, 1.0], [1.0], Parity(math.inf, math.inf)),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")
def test_two_results_are_as_far_apart_as_their_worst_logit(first, second, expected):
    assert difference(np.array([first]), np.array([second])) == expected


def doubled(shape, fifth_axis):
    graph = GraphBuilder(shape)
    if fifth_axis:
        graph.add("back", Reshape(shape), graph.add("far", Reshape((1, 1, *shape)), graph.input))
        return with_weights(graph.build(), {})
    graph.add("doubled", Conv(shape[0], (1, 1), groups=shape[0]), graph.input)
    weights = {"doubled.weight": np.full((shape[0], 1, 1, 1), 2.0), "doubled.bias": np.zeros(shape[0])}
    return with_weights(graph.build(), weights)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_wrong_result_is_told_from_a_right_one(runtime):
    images = np.arange(36.0).reshape(2, 2, 3, 3)
    model = doubled((2, 3, 3), False)
    right, wrong = check_models(runtime, [(model, images)] * 2, [2 * images, images])
    assert (right, right.is_same) == (Parity(0, 0), True)
    assert (wrong, wrong.is_same) == (Parity(35, 1), False)


def test_a_model_that_cannot_be_converted_says_why_and_stops_no_other():
    images = np.ones((1, 2, 3, 3))
    models = [(doubled((2, 3, 3), fifth_axis), images) for fifth_axis in (True, False)]
    refused, fine = check_models("ncnn", models, [images, 2 * images])
    assert isinstance(refused, Failed)
    assert refused.reason.startswith("reshape '"), "it says which operation"
    assert refused.reason.endswith("ncnn holds values of 1 to 4 axes, got (1, 1, 2, 3, 3); reshape to fewer")
    assert fine == Parity(0, 0)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_cannot_be_loaded_is_a_failure_with_the_runtimes_own_words(runtime, tmp_path):
    path = tmp_path / f"nonsense{RUNTIMES[runtime].suffix}"
    path.write_bytes(b"nonsense")
    path.with_suffix(".bin").write_bytes(b"")
    (answer,) = run_files(runtime, [(path, np.ones((1, 2, 3, 3)))])
    assert isinstance(answer, Failed)
    assert answer.reason.startswith(f"ConfigError: {path}: ")


@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_half_an_ncnn_model_is_a_failure(suffix, tmp_path):
    path = tmp_path / "model.param"
    to_ncnn(doubled((2, 3, 3), False)).save(path)
    cut = path.with_suffix(suffix)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (answer,) = run_files("ncnn", [(path, np.ones((1, 2, 3, 3)))])
    assert isinstance(answer, Failed)
    assert "ncnn cannot load" in answer.reason


def test_a_model_without_its_weights_is_not_run(tmp_path):
    path = tmp_path / "model.param"
    path.write_text(graph_param(doubled((2, 3, 3), False).graph))
    (answer,) = run_files("ncnn", [(path, np.ones((1, 2, 3, 3)))])
    assert isinstance(answer, Failed)
    assert "the weights of a .param lie beside it" in answer.reason


def test_mnn_leaves_standard_output_to_the_caller(tmp_path, capfd):
    images = np.ones((1, 2, 3, 3))
    path = tmp_path / "model.mnn"
    (written,) = RUNTIMES["mnn"].write_models([(doubled((2, 3, 3), False), path)])
    assert written == path
    assert (RUNTIMES["mnn"].run(path, images) == 2 * images).all()
    assert capfd.readouterr().out == ""
