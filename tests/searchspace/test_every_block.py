"""Every block of a space is found without trying its members."""

import random

import pytest

from hardware.boards import read_boards
from hardware.instruction_counts import read_counts
from hardware.kernels import fuse
from hardware.targets import COUNTS_FILE, TARGETS_FOLDER
from nas.count_command import operations_alone
from searchspace.choosers import random_choice
from searchspace.every_block import every_block
from searchspace.network import block_graph, deploy_graph
from searchspace.space import Task, member, narrowed
from searchspace.spaces import EDGE_SMALL, SPACES

TASKS = (Task(1, 10), Task(3, 10))


def blocks_of(spec):
    shape = spec.input_shape
    for _, block in spec.blocks():
        yield shape, block
        shape = block_graph(shape, block).output_shape


def test_the_blocks_are_those_of_all_members_and_no_other():
    # Few enough members to meet them all by chance.
    genes = {"resolution": (32, 48), "stem.width": (8,), "stage*.family": ("rdp",), "head.width": (0, 128)}
    genes |= {"stage1.width": (8, 16), "stage2.width": (16, 24), "stage3.width": (24,), "stage4.width": (48, 64)}
    genes |= {"stage1.depth": (1, 2), "stage2.depth": (1,), "stage3.depth": (2,), "stage4.depth": (1, 2)}
    space = narrowed(EDGE_SMALL, genes)
    met = set()
    for seed in range(1500):
        met |= set(blocks_of(member(space, random_choice(random.Random(seed)), TASKS[seed % 2])))
    assert met == set(every_block(space, TASKS))


def kind_of(kernel):
    """What a kernel does, without how large it is."""
    op = kernel.ops[0]
    depthwise = getattr(op, "groups", 1) > 1
    window = (getattr(op, "kernel", ()), getattr(op, "dilation", 1) > 1, depthwise)
    return kernel.key.partition("(")[0], window if isinstance(window[0], tuple) and len(set(window[0])) == 1 else ()


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_kind_of_kernel_of_every_space_is_counted(space):
    from hardware.kernel_keys import kernel_of

    boards = read_boards(TARGETS_FOLDER)
    counted = {kind_of(kernel_of(key)) for key in read_counts(COUNTS_FILE, boards.counts).by_kernel}
    rng = random.Random(f"kinds {space.name}")
    for number in range(150):
        graph = deploy_graph(member(space, random_choice(rng), TASKS[number % 2]))
        assert {kind_of(kernel) for kernel in fuse(graph, boards.fusion_rules)} <= counted


def test_operations_of_spaces_of_ones_own_are_counted_too():
    counts = read_counts(COUNTS_FILE, read_boards(TARGETS_FOLDER).counts).by_kernel
    assert all(kernel.key in counts for kernel in operations_alone())
