"""What eight bits cost re-parameterized networks, and what helps: accuracy before and after, by method.

    python studies/int8/run.py [--networks rep,parc] [--images 4000] [--epochs 4] [--out RUNS.jsonl]

Each network is trained and folded, its ONNX file is quantized by every method with 256 training images, and every file
is run by ONNX Runtime on 3,000 validation images. A line per network is added to runs.jsonl as it is done, and
networks that have one are passed over; at the end the table is printed from all lines.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from networks import NETWORKS

from evaluators.datasets import Dataset, open_dataset
from evaluators.recipe import Recipe
from evaluators.training import train
from hardware.graph import DeployModel, with_weights
from hardware.isolated import Failed
from hardware.onnx_int8 import Int8Method, quantize
from hardware.onnx_model import to_onnx
from hardware.ops import Activation, Conv
from hardware.runners.onnxruntime import run
from nas.settings import versions
from searchspace.network import build_network, deploy

RUNS = Path(__file__).with_name("runs.jsonl")
SEED, CALIBRATION_IMAGES, VALIDATION_IMAGES = 0, 256, 3000

# The networks whose channels are drawn apart, too: those with a ReLU between all of their convolutions.
RESCALED = ", rescaled"
NAMES = (*NETWORKS, "rep (RepVGG), rescaled")

METHODS: Mapping[str, Int8Method] = {
    "per tensor": Int8Method("tensor", "all", corrects_biases=False),
    "per tensor, biases": Int8Method("tensor", "all"),
    "per channel": Int8Method("channel", "all", corrects_biases=False),
    "per channel, biases": Int8Method("channel", "all"),
    "per channel, percentile": Int8Method("channel", "percentile", corrects_biases=False),
    "per channel, percentile, biases": Int8Method("channel", "percentile"),
}


def trained(name: str, data: Dataset, epochs: int) -> DeployModel:
    """The network of that name, trained and folded."""
    network = build_network(NETWORKS[name], SEED)
    return deploy(train(network, data.at(32), Recipe(), epochs=epochs, seed=SEED))


def rescaled(model: DeployModel) -> DeployModel:
    """A network that computes the same with channels up to a hundred times apart.

    What leaves a convolution is multiplied by a number of its own for each channel, and what the next one makes of it
    is divided by that, which a ReLU between them lets through.
    """
    graph, weights = model.graph, dict(model.weights)
    readers = {index: [each for each in graph.nodes if index in each.inputs] for index in range(len(graph.nodes))}
    rng = np.random.default_rng(SEED)
    for index, node in enumerate(graph.nodes):
        if not isinstance(node.op, Conv) or len(readers[index]) != 1:
            continue
        gate = readers[index][0]
        after = readers[graph.nodes.index(gate)]
        if (
            gate.op != Activation("relu")
            or len(after) != 1
            or not isinstance(after[0].op, Conv)
            or after[0].op.groups > 1
        ):
            continue
        factors = (10 ** rng.uniform(-1, 1, node.op.out_channels)).astype(np.float32)
        weights[f"{node.name}.weight"] = weights[f"{node.name}.weight"] * factors[:, None, None, None]
        weights[f"{node.name}.bias"] = weights[f"{node.name}.bias"] * factors
        weights[f"{after[0].name}.weight"] = weights[f"{after[0].name}.weight"] / factors[None, :, None, None]
    return with_weights(graph, weights)


def channel_spread(model: DeployModel) -> float:
    """How many times the largest weight of a convolution is that of its weakest channel, at the median convolution."""
    spreads = []
    for name, weight in model.weights.items():
        if name.endswith(".weight") and weight.ndim == 4:
            peaks = np.abs(weight).reshape(len(weight), -1).max(1)
            spreads.append(float(peaks.max() / max(float(peaks.min()), 1e-9)))
    return float(np.median(spreads))


def studied(name: str, data: Dataset, epochs: int) -> dict[str, Any]:
    """Accuracies and sizes of one network by method."""
    model = trained(name.removesuffix(RESCALED), data, epochs)
    if name.endswith(RESCALED):
        model = rescaled(model)
    splits = data.at(32)
    images, labels = splits.val_x[:VALIDATION_IMAGES].numpy(), splits.val_y[:VALIDATION_IMAGES].numpy()
    found: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        float_file = Path(place) / "model.onnx"
        onnx.save(to_onnx(model, metadata={}), float_file)

        def accuracy(file: Path) -> float:
            return float((run(file, images).argmax(1) == labels).mean())

        before, size = accuracy(float_file), float_file.stat().st_size
        for method_name, method in METHODS.items():
            int8_file = Path(place) / "int8.onnx"
            answer = quantize(float_file, int8_file, splits.train_x[:CALIBRATION_IMAGES].numpy(), method)
            if isinstance(answer, Failed):
                found[method_name] = {"refused": answer.reason}
            else:
                found[method_name] = {"accuracy": accuracy(int8_file), "bytes": int8_file.stat().st_size}
    return {
        "network": name,
        "epochs": epochs,
        "training_images": len(splits.train_y),
        "validation_images": len(labels),
        "params": int(sum(weight.size for weight in model.weights.values())),
        "channel_spread": round(channel_spread(model), 1),
        "float": {"accuracy": before, "bytes": size},
        "int8": found,
        "versions": versions(),
    }


def table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per network: accuracy in float, and by how many points each method changes it."""
    rows = [
        f"| network | channel spread | float | {' | '.join(METHODS)} |",
        "|---" * (len(METHODS) + 3) + "|",
    ]
    for name in NAMES:
        if name not in lines:
            continue
        line = lines[name]
        before = line["float"]["accuracy"]
        cells = [
            each["refused"] if "refused" in each else f"{100 * (each['accuracy'] - before):+.2f}"
            for each in (line["int8"][method] for method in METHODS)
        ]
        rows.append(f"| {name} | {line['channel_spread']:g} | {100 * before:.2f} % | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Goes through the networks that have no line yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", help="only those whose name begins with one of these, with commas")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RUNS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(options.data, seed=SEED, limit=options.images)
    lines = {}
    if options.out.exists():
        lines = {line["network"]: line for line in map(json.loads, options.out.read_text("utf-8").splitlines())}
    for name in NAMES:
        wanted = options.networks is None or name.startswith(tuple(options.networks.split(",")))
        if wanted and name not in lines:
            lines[name] = studied(name, data, options.epochs)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[name]) + "\n")
            print(name, lines[name]["float"]["accuracy"], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
