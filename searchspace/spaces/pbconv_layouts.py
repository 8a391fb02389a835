"""`pbconv-layouts`: RDPNet-0.25x (seed 004, Table 2) with the PBConv layout of its 3x3 convolutions left to choose."""

from dataclasses import replace

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.coverage import MAX_TYPES, cut_sequence, kernel_types, place
from searchspace.part import Answer, Part, Question, fixed
from searchspace.registry import BlockSpec, family_of
from searchspace.space import Entrance, Space
from searchspace.spec import ArchSpec

_KERNEL = 3
_TYPES = {f"{height}x{width}": (height, width) for height, width in kernel_types(_KERNEL)}
_TYPE_QUESTIONS = tuple(Question(f"layout.type{index + 1}", tuple(_TYPES)) for index in range(MAX_TYPES))
_STEP_QUESTIONS = tuple(
    Question(f"layout.step{index + 1}", tuple(range(MAX_TYPES))) for index in range(_KERNEL * _KERNEL)
)


def _one_layout(answer: Answer, spec: ArchSpec) -> ArchSpec:
    """A layout by the paper's genotype: up to three types of small kernels, and which of them comes next."""
    types = [answer(question) for question in _TYPE_QUESTIONS]
    steps = [_TYPES[types[answer(question)]] for question in _STEP_QUESTIONS]
    layout = place(cut_sequence(steps, _KERNEL), _KERNEL)

    def carry(block: BlockSpec) -> BlockSpec:
        sizes = family_of(block).layout_kernels(block)
        return replace(block, **{name: layout for name, size in sizes.items() if size == _KERNEL})

    return spec.map_blocks(carry)


PBCONV_LAYOUTS = Space(
    "pbconv-layouts",
    Part((), lambda answer, task: Entrance((task.channels, 32, 32), Rep(16))),
    Part((), lambda answer, task: Classifier(task.classes)),
    (
        fixed((Rdp(16),)),
        fixed((Rdp(32, 2), *(Rdp(32),) * 3)),
        fixed((Rdp(64, 2), *(Rdp(64),) * 13)),
        fixed((Rdp(1280, 2),)),
    ),
    Part((*_TYPE_QUESTIONS, *_STEP_QUESTIONS), _one_layout),
)
