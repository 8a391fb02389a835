"""The training loop, step by step and as a whole."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.accuracy import accuracy
from evaluators.augmentation import shifted
from evaluators.checkpoints import load_checkpoint, save_checkpoint
from evaluators.datasets import Splits, open_dataset
from evaluators.recipe import Recipe, learning_rate_factor
from evaluators.training import (
    OtherTraining,
    Training,
    TrainingDiverged,
    mixed_precision,
    steps_per_epoch,
    train,
    train_steps,
)
from searchspace.blocks.classifier import Classifier
from searchspace.blocks.gfae import Gfae
from searchspace.blocks.rdp import Rdp
from searchspace.blocks.rep import Rep
from searchspace.network import build_network
from searchspace.spec import ArchSpec

SMALL = ArchSpec((1, 16, 16), Rep(16), ((Rdp(32, 2),), (Rdp(64, 2),)), Classifier(10))


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", seed=0).at(16)


def numbered(count, channels=1, side=4):
    """Images that carry their own number in every pixel, so that a batch says which ones it holds."""
    x = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, channels, side, side).contiguous()
    y = torch.arange(count) % 2
    return Splits(x, y, x[:2], y[:2])


class Recorder(nn.Module):
    """Two classes, no opinion on them, and a memory of what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))
        self.seen = []
        self.modes = []

    def forward(self, x):
        self.seen.append(x[:, 0, 0, 0].int().tolist())
        self.modes.append(self.training)
        return 0 * (self.weight.sum() + self.bias) + torch.zeros(len(x), 2)


PLAIN = Recipe(batch_size=4, shift=0.0)


# The schedule


def test_the_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    found = [learning_rate_factor(step, 6, 2) for step in range(6)]
    half_cosine = [0.5 * (1 + math.cos(math.pi * share)) for share in (1 / 5, 2 / 5, 3 / 5, 4 / 5)]
    assert found == pytest.approx([1 / 2, 1, *half_cosine])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (2, 1), (7, 1), (20, 3), (1000, 150)])
def test_the_learning_rate_peaks_at_one_and_never_reaches_zero(steps, warmup):
    factors = [learning_rate_factor(step, steps, warmup) for step in range(steps)]
    assert max(factors) == 1
    assert factors.index(1) == warmup - 1
    assert min(factors) > 0
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup - 1 :] == sorted(factors[warmup - 1 :], reverse=True)


def test_weights_decay_by_the_schedule_and_biases_do_not():
    # Without a gradient, decay is all that is left of AdamW's step: w becomes w (1 - rate decay).
    network = Recorder()
    recipe = Recipe(batch_size=4, shift=0.0, learning_rate=0.1, weight_decay=0.5, warmup_share=0.4)
    list(train_steps(network, numbered(8), recipe, 5, seed=0))
    rates = [0.1 * factor for factor in (0.5, 1, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3)))]
    expected = math.prod(1 - 0.5 * rate for rate in rates)
    torch.testing.assert_close(network.weight.detach(), torch.full((2, 2), expected))
    assert torch.equal(network.bias.detach(), torch.ones(2))


def test_a_huge_gradient_is_cut_to_length_one():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return 1e6 * self.weight.expand(len(x), 2)

    network = Steep()
    cut = []
    handle = network.weight.register_post_accumulate_grad_hook(lambda weight: cut.append(float(weight.grad.norm())))
    x = torch.zeros(4, 1, 2, 2)
    splits = Splits(x, torch.zeros(4, dtype=torch.int64), x, torch.zeros(4, dtype=torch.int64))
    list(train_steps(network, splits, PLAIN, 1, seed=0))
    handle.remove()
    assert cut[0] > 1e5
    assert float(network.weight.grad.norm()) == pytest.approx(1, rel=1e-4)


# The batches


def test_an_epoch_shows_each_image_once_and_leaves_out_what_fills_no_batch():
    network = Recorder()
    list(train_steps(network, numbered(11), PLAIN, 12, seed=0))
    assert steps_per_epoch(numbered(11), PLAIN) == 2
    assert all(len(batch) == 4 for batch in network.seen)
    epochs = [network.seen[place] + network.seen[place + 1] for place in range(0, 12, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "each in an order of its own"
    assert set().union(*epochs) == set(range(11)), "nobody is left out for ever"


def test_fewer_images_than_a_batch_are_one_batch():
    network = Recorder()
    list(train_steps(network, numbered(3), PLAIN, 2, seed=0))
    assert [sorted(batch) for batch in network.seen] == [[0, 1, 2], [0, 1, 2]]


def test_the_seed_decides_the_order():
    orders = []
    for seed in (0, 0, 1):
        network = Recorder()
        list(train_steps(network, numbered(12), PLAIN, 3, seed))
        orders.append(network.seen)
    assert orders[0] == orders[1] != orders[2]


def test_training_is_in_training_mode_and_draws_one_loss_per_step():
    network = Recorder().eval()
    losses = train_steps(network, numbered(8), PLAIN, 3, seed=0)
    assert network.seen == [], "nothing happens before it is drawn"
    # Two classes without an opinion.
    assert list(losses) == pytest.approx([math.log(2)] * 3)
    assert network.modes == [True] * 3


def test_whole_epochs_report_the_mean_of_their_own_losses(digits):
    recipe = Recipe(batch_size=500)
    network = build_network(SMALL, 0)
    losses = list(train_steps(network, digits, recipe, 2 * steps_per_epoch(digits, recipe), seed=3))
    heard = []
    train(
        build_network(SMALL, 0),
        digits,
        recipe,
        epochs=2,
        seed=3,
        on_epoch=lambda done, loss: heard.append((done, loss)),
    )
    assert steps_per_epoch(digits, recipe) == 2
    assert heard == [(1, pytest.approx(sum(losses[:2]) / 2)), (2, pytest.approx(sum(losses[2:]) / 2))]


# Moved images


def naively_moved(image, down, right):
    """numpy image (c, h, w) with its content moved, zeros where nothing was."""
    _, height, width = image.shape
    moved = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[:, row, column] = image[:, row - down, column - right]
    return moved


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 6, 4)])
def test_each_image_is_moved_as_a_whole_by_an_offset_of_its_own(shape):
    images = torch.rand(400, *shape, generator=torch.Generator().manual_seed(0)) + 0.1
    moved = shifted(images, 2, torch.Generator().manual_seed(1)).numpy()
    offsets = []
    for before, after in zip(images.numpy(), moved, strict=True):
        fitting = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(naively_moved(before, down, right), after)
        ]
        assert len(fitting) == 1
        offsets += fitting
    assert set(offsets) == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


@pytest.mark.parametrize("reach", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_moved_images_lie_in_memory_like_fresh_ones(channels, reach):
    # Grey images with the strides of channels-last make oneDNN's backward of a strided 1x1 convolution write past its
    # memory; `is_contiguous` is true of either.
    images = torch.rand(6, channels, 8, 8)
    moved = shifted(images, reach, torch.Generator().manual_seed(0))
    assert moved.stride() == torch.empty(6, channels, 8, 8).stride()


def test_without_reach_images_are_themselves():
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(shifted(images, 0, torch.Generator()), images)


def test_moving_follows_the_generator_and_leaves_the_images_alone():
    images = torch.rand(20, 1, 6, 6)
    before = images.clone()
    first, again = (shifted(images, 2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(images, before)


# Accuracy


@pytest.mark.parametrize("batch_size", [1, 4, 10, 1000])
def test_accuracy_and_loss_are_those_of_numpy(batch_size):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9), nn.Linear(9, 5)).train()
    with torch.no_grad():
        network[1].running_mean.uniform_(-1, 1)
        network[1].running_var.uniform_(0.5, 2)
    x = torch.randn(10, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 5, (10,), generator=torch.Generator().manual_seed(1))
    found = accuracy(network, x, y, batch_size=batch_size)
    with torch.no_grad():
        logits = network.eval()(x).double().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert found.value == (logits.argmax(1) == y.numpy()).mean()
    assert found.loss == pytest.approx(-log_shares[np.arange(10), y.numpy()].mean(), rel=1e-5)
    assert found.images == 10


@pytest.mark.parametrize("training", [True, False])
def test_measuring_accuracy_changes_neither_the_mode_nor_the_statistics(training):
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    accuracy(network, torch.randn(6, 1, 2, 2), torch.zeros(6, dtype=torch.int64))
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# As a whole


def test_a_small_network_learns_digits(digits):
    spec = replace(SMALL, stages=((Rdp(32, 2), Rdp(32)), (Rdp(64, 2), Rdp(64))))
    network = build_network(spec, 0)
    untrained = accuracy(network, digits.val_x, digits.val_y).value
    train(network, digits, Recipe(), epochs=6, seed=0)
    assert untrained < 0.3
    assert accuracy(network, digits.val_x, digits.val_y).value > 0.9


def test_a_run_repeats_itself_to_the_digit_whatever_else_draws_random_numbers(digits):
    def trained(seed, torch_seed):
        torch.manual_seed(torch_seed)
        network = build_network(SMALL, 0)
        losses = list(train_steps(network, digits, Recipe(batch_size=16), 5, seed))
        return losses, network.state_dict()

    (losses, state), (again, same), (other, _) = trained(1, 5), trained(1, 6), trained(2, 5)
    assert losses == again != other
    assert all(torch.equal(state[name], same[name]) for name in state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_training_at_its_step(value):
    class Breaks(Recorder):
        def forward(self, x):
            return super().forward(x) + (value if len(self.seen) == 3 else 0.0)

    losses = train_steps(Breaks(), numbered(8), PLAIN, 5, seed=0)
    assert next(losses)
    assert next(losses)
    with pytest.raises(TrainingDiverged, match="the loss became nan at step 3 of 5; lower the learning rate"):
        next(losses)


# Put down and taken up


@pytest.fixture(scope="module")
def few():
    return open_dataset("digits", seed=0, limit=200).at(16)


EVERYTHING = Recipe(batch_size=50, average_share=0.2, flip=True, mixup=0.4, cutmix=1.0)
# A network whose layers draw random numbers of their own.
DRAWING = ArchSpec((1, 16, 16), Rep(8, 2), ((Gfae(drop_key=0.3, drop_path=0.2),),), Classifier(10))


def training_of(splits, spec=DRAWING, recipe=EVERYTHING, epochs=6, seed=0):
    steps = epochs * steps_per_epoch(splits, recipe)
    return Training(build_network(spec, seed), splits, recipe, steps=steps, seed=seed)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_three_epochs_and_three_more_from_a_file_are_six(few, tmp_path, optimizer):
    recipe = replace(EVERYTHING, optimizer=optimizer)
    whole = training_of(few, recipe=recipe)
    losses = [whole.advance_epoch() for _ in range(6)]

    first = training_of(few, recipe=recipe)
    before = [first.advance_epoch() for _ in range(3)]
    save_checkpoint(first, tmp_path / "a" / "checkpoint.pt")
    torch.manual_seed(7)
    second = training_of(few, recipe=recipe)
    load_checkpoint(second, tmp_path / "a" / "checkpoint.pt")
    assert second.epochs_done == 3
    assert before + [second.advance_epoch() for _ in range(3)] == losses
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["checkpoint.pt"]
    for one, other in ((whole.network, second.network), (whole.result(), second.result())):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_a_training_put_down_within_an_epoch_goes_on_within_it(few, tmp_path):
    whole = list(training_of(few).advance(11))
    first = training_of(few)
    before = list(first.advance(7))
    save_checkpoint(first, tmp_path / "checkpoint.pt")
    second = training_of(few)
    load_checkpoint(second, tmp_path / "checkpoint.pt")
    assert before + list(second.advance(4)) == whole


def test_nothing_is_trained_beyond_the_end(few):
    training = training_of(few, epochs=1)
    assert len(list(training.advance(10**6))) == steps_per_epoch(few, EVERYTHING) == training.done
    assert list(training.advance(1)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": replace(EVERYTHING, learning_rate=1e-3)}, "learning_rate differ"),
        ({"epochs": 7}, "steps differ"),
        ({"seed": 1}, "seed differ"),
        ({"spec": SMALL}, "of another network"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(few, tmp_path, change, message):
    save_checkpoint(training_of(few), tmp_path / "checkpoint.pt")
    with pytest.raises(OtherTraining, match=f"checkpoint.pt: .*{message}.*remove it to train from the beginning"):
        load_checkpoint(training_of(few, **change), tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "cut"])
def test_a_damaged_checkpoint_is_refused(few, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(training_of(few), path)
    path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else damage)
    with pytest.raises(OtherTraining, match="not a checkpoint"):
        load_checkpoint(training_of(few), path)


def test_a_checkpoint_cannot_carry_code(few, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"about": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(OtherTraining, match="not a checkpoint"):
        load_checkpoint(training_of(few), tmp_path / "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_network_that_draws_by_itself_repeats_itself(few):
    runs = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        expected = torch.rand(3)
        torch.manual_seed(torch_seed)
        runs.append(list(training_of(few).advance(3)))
        assert torch.equal(torch.rand(3), expected), "torch's own generator is left where it was"
    assert runs[0] == runs[1]


def test_averaged_weights_are_what_is_judged(digits):
    recipe = Recipe(batch_size=50, average_share=0.05)
    training = training_of(digits, spec=SMALL, recipe=recipe)
    for _ in range(3):
        training.advance_epoch()
    judged = training.result()
    assert judged is not training.network
    last, averaged = (accuracy(each, digits.val_x, digits.val_y) for each in (training.network, judged))
    assert averaged.loss < last.loss, "in the middle of the way the average stands better than the last step"


def test_a_gradient_that_is_no_number_ends_training_at_its_step():
    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.weight.sqrt().expand(len(x), 2)  # 0, with an infinite slope

    x = torch.zeros(4, 1, 2, 2)
    splits = Splits(x, torch.tensor([0, 1, 0, 0]), x, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TrainingDiverged, match=r"the gradient's length became (inf|nan) at step 1 of 3"):
        list(train_steps(Steep(), splits, PLAIN, 3, seed=0))


def test_sixteen_bits_are_for_devices_that_have_them():
    assert isinstance(mixed_precision(torch.device("cpu")), nullcontext)
