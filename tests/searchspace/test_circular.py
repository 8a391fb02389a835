"""Circular convolution against a circulant matrix and the Fourier transform."""

import numpy as np
import pytest
import torch

from hardware.graph import GraphBuilder, with_weights
from searchspace.circular import HEIGHT, WIDTH, circular_conv, emit_circular_conv, resample, spread
from searchspace.deploy_module import DeployModule

SHAPES = [(3, 5, 8), (2, 1, 6), (2, 7, 1), (1, 2, 2)]


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product_with_a_circulant_matrix(shape, axis):
    x, length = drawn(2, *shape), shape[axis]
    kernel = drawn(shape[0], length)
    # Row i of the matrix holds the kernel from its first value at column i, round the end.
    rows = torch.stack([torch.roll(kernel, i, 1) for i in range(length)], 1)
    expected = torch.einsum("cij,bcjw->bciw" if axis == HEIGHT else "cij,bchj->bchi", rows, x)
    torch.testing.assert_close(circular_conv(x, kernel, axis), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_product_of_spectra(shape, axis):
    x, length = drawn(2, *shape), shape[axis]
    kernel = drawn(shape[0], length)
    # It is a correlation, so the kernel's spectrum is conjugated.
    spectrum = torch.fft.fft(x, dim=axis + 1) * spread(torch.fft.fft(kernel).conj(), axis)
    expected = torch.fft.ifft(spectrum, dim=axis + 1).real
    torch.testing.assert_close(circular_conv(x, kernel, axis), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_emitted_operations_compute_it(shape, axis):
    x, kernel = drawn(2, *shape), drawn(shape[0], shape[axis])
    graph = GraphBuilder(shape)
    emit_circular_conv(graph, "ring", graph.input, axis)
    weights = {"ring.weight": spread(kernel, axis)[:, None].numpy(), "ring.bias": np.zeros(shape[0])}
    result = DeployModule(with_weights(graph.build(), weights))(x)
    torch.testing.assert_close(result, circular_conv(x, kernel, axis), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("base", "length"), [(8, 5), (5, 8), (4, 1), (1, 6), (7, 7), (3, 2)])
def test_resampling_is_linear_and_keeps_the_ends(base, length):
    values = drawn(2, base)
    expected = [np.interp(np.linspace(0, base - 1, length), np.arange(base), row) for row in values.numpy()]
    np.testing.assert_allclose(resample(values, length), expected, atol=1e-12)
