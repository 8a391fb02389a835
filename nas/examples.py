"""The lines of Python that go with each exported format: they need its runtime, numpy and pillow, nothing of ours."""

from collections.abc import Mapping
from dataclasses import dataclass

from hardware.ops import Shape


@dataclass(frozen=True, slots=True)
class ExampleFacts:
    """What the examples have to know of a model; `batch` is the fixed one, None where it is free."""

    input_shape: Shape
    batch: int | None


PREPROCESSING = "preprocessing.py"

_PREPROCESSING = '''"""What becomes of an image before the network sees it, and what its scores say."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))


def read_image(path=None):
    """The image at a path, or else that of the command line, or else sample.png, as ({channels}, {height}, {width})."""
    with Image.open(path or (sys.argv[1] if len(sys.argv) > 1 else HERE / "sample.png")) as file:
        side = min(file.size)
        left, top = (file.width - side) // 2, (file.height - side) // 2
        square = file.convert("{mode}").crop((left, top, left + side, top + side))
    image = square.resize(({width}, {height}), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32).reshape({height}, {width}, {channels}) / 255
    mean, std = (np.float32(ABOUT["preprocessing"][name]) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def best_class(scores):
    """The most likely class, and its score."""
    best = int(np.argmax(scores))
    return f"{{ABOUT['classes'][best]}} {{float(scores[best]):.3f}}"
'''

# Of each format what lies between the image x and its class, imports included.
_EXAMPLES: Mapping[str, str] = {
    "onnx": """import onnxruntime
from preprocessing import HERE, best_class, read_image

session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
scores = session.run(None, {{"image": {batched}}})[0][0]
print(best_class(scores))
""",
    "ncnn": """import ncnn
from preprocessing import HERE, best_class, read_image

net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(HERE / "model.param"))
net.load_model(str(HERE / "model.bin"))
x, extractor = read_image(), net.create_extractor()
extractor.input("in0", ncnn.Mat(x))
print(best_class(extractor.extract("out0")[1]))
""",
    "mnn": """import MNN
from preprocessing import HERE, best_class, read_image

manager = MNN.nn.create_runtime_manager(({{"backend": "CPU", "precision": "high"}},))
manager.set_hint(3, 1)  # smaller Winograd tiles, which round less
net = MNN.nn.load_module_from_file(str(HERE / "model.mnn"), ["image"], ["output"], runtime_manager=manager)
x = read_image()[None]
scores = net.forward([MNN.expr.const(x, x.shape, MNN.expr.NCHW)])[0]
print(best_class(MNN.expr.convert(scores, MNN.expr.NCHW).read()[0]))
""",
    "torch": """import torch
from preprocessing import HERE, best_class, read_image

network = torch.export.load(HERE / "model.pt2").module()  # or: from network import load; network = load()
with torch.no_grad():
    scores = network(torch.from_numpy({batched}))[0]
print(best_class(scores))
""",
}

_FILES = {"onnx": "model.onnx", "ncnn": "model.param", "mnn": "model.mnn", "torch": "model.pt2"}


def script_name(name: str) -> str:
    """What the example of a format is called."""
    return f"example_{name}.py"


def example(name: str, facts: ExampleFacts) -> str:
    """The text of the example for a format by its name; it needs `preprocessing` beside it."""
    batched = "read_image()[None]" if facts.batch in (None, 1) else f"read_image()[None].repeat({facts.batch}, 0)"
    title = f"What {_FILES[name]} sees in an image: `python {script_name(name)} IMAGE`, or without one in sample.png."
    return f'"""{title}"""\n\n{_EXAMPLES[name].format(batched=batched)}'


def preprocessing(facts: ExampleFacts) -> str:
    """The text of the file that the examples of a folder share."""
    channels, height, width = facts.input_shape
    mode = "L" if channels == 1 else "RGB"
    return _PREPROCESSING.format(mode=mode, channels=channels, height=height, width=width)
