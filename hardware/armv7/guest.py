"""Runs ncnn models under QEMU with a mark around each: `python3 guest.py SUBJECTS`, inside the emulated machine.

Needs the standard library and ncnn's wheel. SUBJECTS has a JSON object a line: the text of a .param, the inputs to fill
with their shapes in ncnn's order, the values to compute beforehand, the value to count, and how many rounds. A mark is
a call of getpgid(), which nothing else here makes and which `counter.c` answers with a count. Each round makes three:

    mark  compute the value  mark  ask for the value that is there by now  mark

so that the second count less the third is what computing took. Prints a line for each subject: how many marks it
made, and why it failed or ''.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

# What ncnn would rather compute with where the processor can.
NOT_FP32 = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_vulkan_compute",
)


class Failed(Exception):
    """ncnn cannot run a subject."""


def load(param: str) -> Any:
    """The model with weights of zero on one thread, in fp32."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    for option in NOT_FP32:
        setattr(net.opt, option, False)
    if net.load_param_mem(param) != 0:
        raise Failed("ncnn cannot read the model")
    if net.load_model(ncnn.DataReaderFromEmpty()) != 0:
        raise Failed("ncnn cannot make weights for the model")
    return net


def extract(extractor: Any, name: str) -> None:
    """Computes a value and leaves it in the layout in which the next layer takes it (type 1)."""
    code, value = extractor.extract(name, 1)
    if code != 0 or value.empty():
        raise Failed(f"ncnn stops with code {code} at {name}")


def run(subject: dict[str, Any], marks: list[None]) -> None:
    """Counts a subject; each mark that was made stands in `marks`."""
    import ncnn

    net = load(subject["param"])
    mats = []
    for name, shape in subject["inputs"]:
        mat = ncnn.Mat(*shape)
        mat.fill(0.01)
        mats.append((name, mat))
    for _ in range(subject["rounds"]):
        extractor = net.create_extractor()
        for name, mat in mats:
            extractor.input(name, mat)
        for name in subject["ready"]:
            extract(extractor, name)
        output = subject["output"]
        marks.append(None)
        os.getpgid(0)
        for _ in range(2):
            extract(extractor, output)
            marks.append(None)
            os.getpgid(0)


def main(path: str) -> None:
    """Counts every subject of the file."""
    # A collection in between would be counted.
    gc.disable()
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            marks: list[None] = []
            why = ""
            try:
                run(json.loads(line), marks)
            except (Failed, RuntimeError, MemoryError) as error:
                why = str(error) or type(error).__name__
            print(json.dumps([len(marks), why]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
