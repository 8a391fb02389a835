"""What PBConv's branches cost in training: a step of a network with them over a step of the same without.

    python studies/pbconv_train_step/run.py [--repeats 5] [--batch 32] [--layouts 3]

One core, and the time that it works for this process. Every step of a repeat runs right after the others, so that what
else the machine does falls on all; printed are the median time and the median of the ratios to the plain step of the
same repeat. Layouts are drawn until they have what a drawn one has on average: 4 or 5 branches (4.5) over
12 or 13 of the cells of a 3x3 kernel (12.5).
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.executors.worker_limits import KEEP_MEMORY
from searchspace.coverage import Layout, generate_layout
from searchspace.layers import BranchedConv
from searchspace.network import Network, build_network
from searchspace.references import reference
from searchspace.registry import family_of
from searchspace.spec import ArchSpec

from formulations import FORMULATIONS  # isort: skip  # beside this file

# Host, pixels: small images. ResNet-18 divides them by 4 before its first block.
HOSTS = (("vgg16_cifar", 32), ("resnet18", 64))
KERNEL = 3
CLASSES = 10


def mean_layouts(count: int) -> list[Layout]:
    """Drawn layouts of average size."""
    rng, found = random.Random(0), []
    while len(found) < count:
        layout = generate_layout(KERNEL, rng)
        cells = sum(each.height * each.width for each in layout.rectangles)
        if len(layout.rectangles) in (4, 5) and cells in (12, 13) and layout not in found:
            found.append(layout)
    return found


def with_layout(spec: ArchSpec, layout: Layout) -> ArchSpec:
    """The layout on every 3x3 convolution."""
    return spec.map_blocks(
        lambda block: replace(
            block, **{name: layout for name, size in family_of(block).layout_kernels(block).items() if size == KERNEL}
        )
    )


class Formulated(nn.Module):
    """A `BranchedConv` computed by another formulation."""

    def __init__(self, branched: BranchedConv, compute: Callable[[BranchedConv, Tensor], Tensor]) -> None:
        super().__init__()
        self.branched = branched
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.branched, x)


def formulated(network: Network, name: str) -> Network:
    """The network, changed so that every branched convolution is computed by a formulation."""
    for path, part in list(network.named_modules()):
        if isinstance(part, BranchedConv) and len(part.branches):
            network.set_submodule(path, Formulated(part, FORMULATIONS[name]))
    return network


class Step:
    """Forward and backward of one batch."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.network = network
        self.images = images
        self.labels = labels
        self.seconds: list[float] = []

    def __call__(self) -> None:
        started = time.process_time()
        self.network.zero_grad(set_to_none=True)
        functional.cross_entropy(self.network(self.images), self.labels).backward()
        self.seconds.append(time.process_time() - started)


class AdamStep:
    """One update of all parameters, which the step before has left gradients for."""

    def __init__(self, network: nn.Module, *, fused: bool) -> None:
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=fused)
        self.seconds: list[float] = []

    def __call__(self) -> None:
        started = time.process_time()
        self.optimizer.step()
        self.seconds.append(time.process_time() - started)


def steps_of(spec: ArchSpec, layout: Layout, batch: int) -> dict[str, Step | AdamStep]:
    """What is timed, by name, in the order of running."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *spec.input_shape, generator=generator)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    branched = with_layout(spec, layout)
    steps: dict[str, Step | AdamStep] = {"plain": Step(build_network(spec, 0), images, labels)}
    for name in FORMULATIONS:
        steps[name] = Step(formulated(build_network(branched, 0), name), images, labels)
    for name, chosen in (("plain", spec), ("as here", branched)):
        network, last = build_network(chosen, 0), torch.channels_last
        network.to(memory_format=last)
        steps[f"{name}, channels last"] = Step(network, images.contiguous(memory_format=last), labels)
        step = steps[name]
        assert isinstance(step, Step)
        for fused in (False, True):
            steps[f"{name}, AdamW{' fused' if fused else ''}"] = AdamStep(step.network, fused=fused)
    return steps


def main() -> None:
    """Prints a table per host and layout."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        # The C library reads these when a process starts; without them a step spends its time on page faults.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--layouts", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for host, pixels in HOSTS:
        spec = reference(host)
        spec = replace(spec, input_shape=(3, pixels, pixels), head=replace(spec.head, classes=CLASSES))
        for layout in mean_layouts(options.layouts):
            steps = steps_of(spec, layout, options.batch)
            for repeat in range(options.repeats + 1):
                for step in steps.values():
                    step()
                if repeat == 0:  # a first round that warms up
                    for step in steps.values():
                        step.seconds.clear()
            print(f"{host} at {pixels}x{pixels}, batch {options.batch}, {layout}")
            for name, step in steps.items():
                plain = steps["plain" + name.removeprefix(name.partition(",")[0])]
                ratios = [one / other for one, other in zip(step.seconds, plain.seconds, strict=True)]
                milliseconds = statistics.median(step.seconds) * 1e3
                print(f"  {name:24} {milliseconds:8.1f} ms   {statistics.median(ratios):5.2f}", flush=True)


if __name__ == "__main__":
    main()
