"""The lines of Python that go with each exported format: they need its runtime, numpy and pillow, nothing of ours."""

from collections.abc import Mapping
from dataclasses import dataclass

from hardware.ops import Shape


@dataclass(frozen=True, slots=True)
class ExampleFacts:
    """What an example has to know of its model; `batch` is the fixed one, None where it is free."""

    input_shape: Shape
    batch: int | None


_HEAD = '''"""What {file} sees in an image: `python {script} IMAGE`, or without one in sample.png."""

import json
import sys
from pathlib import Path

import numpy as np
{import_line}
from PIL import Image

here = Path(__file__).parent
about = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
mean, std = (np.float32(about["preprocessing"][name]) for name in ("mean", "std"))
with Image.open(sys.argv[1] if len(sys.argv) > 1 else here / "sample.png") as file:
    side = min(file.size)
    left, top = (file.width - side) // 2, (file.height - side) // 2
    square = file.convert("{mode}").crop((left, top, left + side, top + side))
image = square.resize(({width}, {height}), Image.Resampling.BILINEAR)
x = (np.asarray(image, np.float32).reshape({height}, {width}, {channels}) / 255 - mean) / std
x = np.ascontiguousarray(x.transpose(2, 0, 1))
'''

_TAIL = """best = int(np.argmax(scores))
print(about["classes"][best], f"{float(scores[best]):.3f}")
"""

# Of each format: the file that it runs, what it imports, and the lines between the image x and its scores.
_LINES: Mapping[str, tuple[str, str, str]] = {
    "onnx": (
        "model.onnx",
        "import onnxruntime",
        """session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
scores = session.run(None, {{"image": {batched}}})[0][0]
""",
    ),
    "ncnn": (
        "model.param",
        "import ncnn",
        """net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(here / "model.param"))
net.load_model(str(here / "model.bin"))
extractor = net.create_extractor()
extractor.input("in0", ncnn.Mat(x).clone())
scores = np.array(extractor.extract("out0")[1])
""",
    ),
    "mnn": (
        "model.mnn",
        "import MNN",
        """interpreter = MNN.Interpreter(str(here / "model.mnn"))
interpreter.setSessionHint(3, 1)  # smaller Winograd tiles, which round less
session = interpreter.createSession({{"backend": "CPU", "precision": "high"}})
layout = MNN.Tensor_DimensionType_Caffe
interpreter.getSessionInput(session).copyFrom(MNN.Tensor((1, *x.shape), MNN.Halide_Type_Float, x[None], layout))
interpreter.runSession(session)
found = interpreter.getSessionOutput(session)
scores = np.zeros(found.getShape(), np.float32)
result = MNN.Tensor(scores.shape, MNN.Halide_Type_Float, scores, layout)
found.copyToHostTensor(result)
scores = np.array(result.getNumpyData())[0]
""",
    ),
    "torch": (
        "model.pt2",
        "import torch",
        """network = torch.export.load(here / "model.pt2").module()  # or: from network import load; network = load()
scores = network(torch.from_numpy({batched})).detach().numpy()[0]
""",
    ),
}


def script_name(name: str) -> str:
    """What the example of a format is called."""
    return f"example_{name}.py"


def example(name: str, facts: ExampleFacts) -> str:
    """The text of the example for a format by its name."""
    file, import_line, lines = _LINES[name]
    channels, height, width = facts.input_shape
    head = _HEAD.format(
        file=file,
        script=script_name(name),
        import_line=import_line,
        mode="L" if channels == 1 else "RGB",
        width=width,
        height=height,
        channels=channels,
    )
    batched = "x[None]" if facts.batch in (None, 1) else f"x[None].repeat({facts.batch}, 0)"
    return head + lines.format(batched=batched) + _TAIL
