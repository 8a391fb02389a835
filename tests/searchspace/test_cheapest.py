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
from searchspace.part import Part, Question, one_of
from searchspace.space import Entrance, Space, Task, member, narrowed

TASK = Task(channels=2, classes=3)


SIZE, STEM, STEM_STRIDE = Question("size", (8, 12)), Question("stem", (4, 8)), Question("stem_stride", (1, 2))
HEAD = Question("head", (0, 16))
WIDTH, STRIDE, DEPTH = Question("width", (4, 8)), Question("stride", (1, 2)), Question("depth", (1, 2))
PLAIN = Question("plain", (True, False))


def enter(answer, task):
    size = answer(SIZE)
    return Entrance((task.channels, size, size), Rep(answer(STEM), answer(STEM_STRIDE)))


def stage(answer, in_shape):
    yield Rdp(answer(WIDTH), answer(STRIDE)) if answer(PLAIN) else InvertedResidual(answer(WIDTH), answer(STRIDE), 3, 2)
    # What is offered in a small map is another stage than in a large one.
    if min(in_shape[1:]) > 4:
        yield from (Rdp(answer(WIDTH)),) * (answer(DEPTH) - 1)


ENTRANCE = Part((SIZE, STEM, STEM_STRIDE), enter)
CLASSIFIER = Part((HEAD,), lambda answer, task: Classifier(task.classes, answer(HEAD)))
STAGE = Part((WIDTH, STRIDE, PLAIN, DEPTH), stage)
SPACE = Space("small", ENTRANCE, CLASSIFIER, (STAGE, STAGE))


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
    # The shortest road to a shape is not the shortest road behind it: the head weighs as well.
    def price(shape, block):
        if isinstance(block, Classifier):
            return 100.0 if block.width else 0.0
        return 0.0 if isinstance(block, Rdp) else 1.0

    found = cheapest_member(SPACE, TASK, price)
    assert found.spec.head.width == 0
    assert found.price == 1.0


def test_a_space_without_stages_has_a_cheapest_member():
    space = Space("frames", ENTRANCE, CLASSIFIER, ())
    price = price_of(3)
    specs = [spec for _, spec in every_outcome(lambda choose: member(space, choose, TASK))]
    assert len(specs) == 16
    assert cheapest_member(space, TASK, price).price == min(total(spec, price) for spec in specs)


def test_of_options_that_only_add_the_first_that_is_allowed_is_tried_alone():
    kernel = Question("kernel", (3, 5))
    times = Question("times", (1, 2, 3), only_adds=True)
    # Nothing that really only adds, so that it shows in the blocks which options were tried.
    part = Part((kernel, times), lambda answer, shape: (InvertedResidual(8, 1, answer(kernel), answer(times)),))
    space = narrowed(Space("wide", ENTRANCE, CLASSIFIER, (part,)), {"stage1.times": (3, 2)})
    priced = set()

    def price(shape, block):
        priced.add(block)
        return 1.0

    found = cheapest_member(space, TASK, price)
    assert (found.price, found.genes["stage1.times"]) == (3.0, 2)
    tried = {(block.kernel, block.expand) for block in priced if isinstance(block, InvertedResidual)}
    assert tried == {(3, 2), (5, 2)}


def test_what_is_not_read_has_its_first_option_in_the_genes():
    family, unread = Question("family", ("rdp", "ir")), Question("kernel", (7, 3))
    rdp = Part((), lambda answer, shape: (Rdp(8),))
    inverted = Part((unread,), lambda answer, shape: (InvertedResidual(8, 1, answer(unread)),))
    space = Space("two", ENTRANCE, CLASSIFIER, (one_of("family", {"rdp": rdp, "ir": inverted}),))
    found = cheapest_member(space, TASK, lambda shape, block: 5.0 * isinstance(block, InvertedResidual))
    assert found.genes["stage1.family"] == "rdp"
    assert found.genes["stage1.kernel"] == 7
    assert family in space.stages[0].questions
    assert member(space, replay(found.genes), TASK) == found.spec


def test_equal_prices_end_too():
    found = cheapest_member(SPACE, TASK, lambda shape, block: 1.0)
    assert found.price == 4.0, "stem, one block in each stage, head"
