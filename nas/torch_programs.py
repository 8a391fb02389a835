"""What a network is to people with torch alone: an exported program, and a plain file with a list of steps.

The program is made of what the file builds, so that both are the same network. Reading a program runs no code of it;
the file is ours as written.
"""

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from hardware.graph import DeployModel, FloatArray
from searchspace.torch_source import SOURCE, STEPS, WEIGHTS, torch_source

PROGRAM = "model.pt2"


def write_torch(model: DeployModel, folder: Path, title: str, batch: int | None) -> None:
    """Writes the file that builds the network, its steps and weights, and the program.

    batch None leaves the first axis free.
    """
    source = torch_source(model, title)
    (folder / SOURCE).write_text(source.text, encoding="utf-8")
    (folder / STEPS).write_text(source.steps, encoding="utf-8")
    save_file({name: torch.tensor(value) for name, value in source.weights.items()}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its user alone, and the folder is made to be handed on
    network = _load(folder / SOURCE)
    # One image would make a program for one.
    images = torch.zeros(2 if batch is None else batch, *model.graph.input_shape)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if batch is None else None
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own, about parts of torch.
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        torch.export.save(program, folder / PROGRAM)


def _load(source: Path) -> torch.nn.Module:
    network: torch.nn.Module = runpy.run_path(str(source))["load"]()
    return network


def run_program(path: Path, images: FloatArray) -> FloatArray:
    """What a .pt2 makes of (n, channels, height, width); one of a fixed batch takes that many images at a time."""
    program = torch.export.load(path)
    (entering,) = [
        node.meta["val"].shape[0]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    return _run(program.module(), images, entering if isinstance(entering, int) else None)


def run_source(path: Path, images: FloatArray) -> FloatArray:
    """What the network that a written file builds makes of (n, channels, height, width)."""
    return _run(_load(path), images, None)


def _run(network: Callable[[torch.Tensor], torch.Tensor], images: FloatArray, batch: int | None) -> FloatArray:
    torch.set_num_threads(1)
    with torch.no_grad():
        parts = [network(part) for part in torch.split(torch.from_numpy(images), batch or 64)]
    result: FloatArray = torch.cat(parts).numpy()
    return result


def run(path: Path, images: FloatArray) -> FloatArray:
    """What a .pt2, or the network that a written .py builds, makes of (n, channels, height, width)."""
    return {".pt2": run_program, ".py": run_source}[path.suffix](path, images)
