"""The cheapest member against brute force over all members of small spaces."""

import hashlib

import pytest

from searchspace.blocks.classifier import Classifier
from searchspace.blocks.inverted import InvertedResidual
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.cheapest import cheapest_member
from searchspace.choosers import every_outcome, replay
from searchspace.network import block_graph
from searchspace.space import Frame, Space, Task, member

TASK = Task(channels=2, classes=3)


def frame(choose, task):
    size = choose("size", (8, 12))
    return Frame(
        (task.channels, size, size),
        Rep(choose("stem", (4, 8)), choose("stem_stride", (1, 2))),
        Classifier(task.classes, choose("head", (0, 16))),
    )


def stage(choose, in_shape):
    width, stride = choose("width", (4, 8)), choose("stride", (1, 2))
    # What is offered in a small map is another block than in a large one.
    first = Rdp(width, stride) if choose("plain", (True, False)) else InvertedResidual(width, stride, 3, 2)
    return (first, *(Rdp(width),) * (choose("depth", (1, 2)) - 1)) if min(in_shape[1:]) > 4 else (first,)


SPACE = Space("small", frame, (stage, stage))


def price_of(seed):
    """Prices that follow no order of size: a larger block on a larger map may well be the cheaper one."""

    def price(shape, block):
        digest = hashlib.sha256(f"{seed} {shape} {block!r}".encode()).digest()
        return float(digest[0] % 16)

    return price


def total(spec, price):
    shape, paid = spec.input_shape, 0.0
    for _, block in spec.blocks():
        paid += price(shape, block)
        shape = block_graph(shape, block).output_shape
    return paid


@pytest.fixture(scope="module")
def members():
    return {spec for _, spec in every_outcome(lambda choose: member(SPACE, choose, TASK))}


def test_the_space_is_large_enough_to_be_a_test(members):
    assert len(members) > 1000


@pytest.mark.parametrize("seed", range(12))
def test_the_cheapest_member_is_that_of_brute_force(members, seed):
    price = price_of(seed)
    found = cheapest_member(SPACE, TASK, price)
    assert found.price == min(total(spec, price) for spec in members)
    assert total(found.spec, price) == found.price
    assert found.spec in members


@pytest.mark.parametrize("seed", range(4))
def test_its_genes_describe_it_and_leave_none_out(seed):
    found = cheapest_member(SPACE, TASK, price_of(seed))
    assert member(SPACE, replay(found.genes), TASK) == found.spec


def test_a_head_that_is_dear_is_not_overlooked_behind_a_cheap_body():
    # The shortest road to a shape is not the shortest road behind it: heads were chosen before.
    def price(shape, block):
        if isinstance(block, Classifier):
            return 100.0 if block.width else 0.0
        return 0.0 if isinstance(block, Rdp) else 1.0

    found = cheapest_member(SPACE, TASK, price)
    assert found.spec.head.width == 0
    assert found.price == 1.0


def test_a_space_without_stages_has_a_cheapest_frame():
    space = Space("frames", frame, ())
    price = price_of(3)
    frames = [member(space, replay(genes), TASK) for genes, _ in every_outcome(lambda c: frame(c, TASK))]
    assert cheapest_member(space, TASK, price).price == min(total(spec, price) for spec in frames)


def test_equal_prices_end_too():
    found = cheapest_member(SPACE, TASK, lambda shape, block: 1.0)
    assert found.price == 4.0, "stem, one block in each stage, head"
