"""An operation is a row in every table; a table without it would fail at its first use, so it fails here."""

from typing import get_args

import pytest

from hardware import cost, kernels, ncnn_layers, ncnn_model, onnx_model, ops
from searchspace import deploy_module, torch_source

OPS = set(get_args(ops.Op))


@pytest.mark.parametrize(
    "table",
    [
        ops.OUTPUT_SHAPE,
        ops.ARITY,
        ops.WEIGHT_SHAPES,
        ops.LABEL,
        cost.MACS,
        cost.WINDOW,
        kernels.DETAIL,
        ncnn_layers.LAYERS,
        ncnn_model.EMITTERS,
        onnx_model.EMITTERS,
        deploy_module.TORCH_FORM,
        torch_source.CALLS,
    ],
)
def test_every_op_has_its_row_in_every_table(table):
    assert set(table) == OPS


def test_activations_have_a_form_in_each_engine():
    from searchspace.layers import ACTIVATION_MODULES

    assert set(ACTIVATION_MODULES) == set(ops.ACTIVATIONS) == set(deploy_module.ACTIVATIONS)
    assert set(onnx_model.ACTIVATIONS) == set(ncnn_model.ACTIVATIONS) == set(ops.ACTIVATIONS)
