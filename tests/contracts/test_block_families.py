"""What every registered block family promises, checked on its own examples: registering one is testing it."""

import random
from dataclasses import fields, replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hardware.cost import cost
from hardware.graph import with_weights
from hardware.kernels import fuse
from hardware.onnx_model import to_onnx
from hardware.ops import Activation, Add, Conv, Mul
from searchspace.coverage import generate_layout
from searchspace.deploy_module import DeployModule
from searchspace.network import block_graph
from searchspace.registry import families
from searchspace.spec import ArchSpec, deploy_form, is_train_gene, spec_from_dict, spec_to_dict

EXAMPLES = [
    pytest.param(family, shape, spec, id=f"{family.name}-{index}")
    for family in families()
    for index, (shape, spec) in enumerate(family.examples)
]


def randomise(module: nn.Module, seed: int) -> None:
    """Batch-norm statistics as after training, with one variance close to zero, and weights away from their start."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            size = part.running_mean.shape
            part.running_mean.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
            part.running_var.copy_(torch.rand(size, generator=generator, dtype=torch.float64) * 2 + 0.1)
            part.running_var[0] = 1e-7
            part.weight.data.copy_(torch.randn(size, generator=generator, dtype=torch.float64))
            # An ordinary gain there too: else each norm of a deep block multiplies by 300, and rounding hides errors.
            part.weight.data[0] *= (1e-7 + part.eps) ** 0.5
            part.bias.data.copy_(torch.randn(size, generator=generator, dtype=torch.float64))


def train_form(family, shape, spec, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        block = family.train(shape, spec).to(dtype)
    randomise(block, 7)
    return block.eval()


def folded_model(family, shape, spec, block):
    weights = {
        f"{node}.{tensor}": value.detach().numpy()
        for node, tensors in block.folded().items()
        for tensor, value in tensors._asdict().items()
    }
    return with_weights(block_graph(shape, spec), weights)


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_train_form_equals_folded_form(family, shape, spec):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
            block = train_form(family, shape, spec, dtype)
            trained = block(x.to(dtype))
            deployed = DeployModule(folded_model(family, shape, spec, block))(x.to(dtype))
            assert trained.std() > 1e-3, "a block that returns a constant proves nothing"
            difference = (trained - deployed).abs().max()
            assert difference <= (bound if dtype == torch.float64 else bound * trained.abs().max())


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_onnxruntime_computes_what_the_train_form_does(family, shape, spec):
    block = train_form(family, shape, spec, torch.float32)
    model = to_onnx(folded_model(family, shape, spec, block))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = block(x).numpy()
    assert np.abs(result - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_macs_and_params_equal_torchs_own_count(family, shape, spec):
    block = train_form(family, shape, spec)
    deployed = DeployModule(folded_model(family, shape, spec, block))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.zeros(1, *shape, dtype=torch.float64))
    counted = cost(block_graph(shape, spec))
    assert counter.get_total_flops() == 2 * counted.macs
    assert sum(buffer.numel() for buffer in deployed.buffers()) == counted.params


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_spec_survives_a_file(family, shape, spec):
    arch = ArchSpec(shape, spec, ((spec, spec),), spec)
    assert spec_from_dict(spec_to_dict(arch)) == arch


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_train_genes_leave_the_deploy_graph_alone(family, shape, spec):
    plain = deploy_form(ArchSpec(shape, spec, (), spec)).stem
    assert all(getattr(plain, gene.name) == gene.default for gene in fields(plain) if is_train_gene(gene))
    assert block_graph(shape, plain).fingerprint() == block_graph(shape, spec).fingerprint()


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_every_layout_field_is_announced_with_the_kernel_it_fits(family, shape, spec):
    announced = family.layout_kernels(spec)
    layouts = {gene.name: getattr(spec, gene.name) for gene in fields(spec) if "layout" in gene.name.lower()}
    assert announced.keys() <= layouts.keys()
    assert all(announced[name] == layout.kernel for name, layout in layouts.items() if layout is not None)
    # What is not announced cannot take one: there is no kernel larger than 1x1 for it.
    largest = max(
        (max(node.op.kernel) for node in block_graph(shape, spec).nodes if isinstance(node.op, Conv)), default=1
    )
    if largest == 1:
        assert not announced
    elif layouts:
        rng = random.Random(0)
        chosen = {name: generate_layout(size, rng, 6) for name, size in announced.items()}
        assert chosen
        branched, plain = (family.train(shape, replace(spec, **genes)) for genes in (chosen, dict.fromkeys(chosen)))
        sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in (branched, plain)]
        assert sizes[0] > sizes[1]


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_a_block_never_begins_with_what_the_block_before_could_swallow(family, shape, spec):
    # Costs of networks are sums over blocks; a kernel that spans two blocks would break that.
    graph = block_graph(shape, spec)
    readers = [node for node in graph.nodes if 0 in node.inputs]
    assert not isinstance(readers[0].op, Activation | Mul)
    first_chain = fuse(graph, [("conv", "relu"), ("conv", "add", "relu")])[0]
    assert not isinstance(first_chain.ops[0], Add)


@pytest.mark.parametrize(("family", "shape", "spec"), EXAMPLES)
def test_gradients_reach_every_parameter(family, shape, spec):
    block = train_form(family, shape, spec).train()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (block(x) ** 2).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
