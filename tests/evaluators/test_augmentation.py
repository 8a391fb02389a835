"""Changed images and labels, each against a computation by hand."""

import random

import numpy as np
import pytest
import torch

from evaluators.augmentation import augmented, cut_and_mixed, flipped, mixed
from evaluators.recipe import Recipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_about_half_of_the_images_are_mirrored_and_the_others_are_themselves():
    images = torch.rand(400, 2, 3, 4)
    found = flipped(images, generator())
    mirrored = 0
    for before, after in zip(images.numpy(), found.numpy(), strict=True):
        same, turned = np.array_equal(before, after), np.array_equal(before[:, :, ::-1], after)
        assert same != turned
        mirrored += turned
    assert 150 < mirrored < 250


def test_a_mixture_is_a_weighted_sum_of_two_images_and_of_their_losses():
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])
    batch = mixed(images, labels, torch.tensor([1, 2, 0]), 0.7, random.Random(0))
    for index, partner in enumerate((1, 2, 0)):
        expected = 0.7 * images[index].numpy() + 0.3 * images[partner].numpy()
        np.testing.assert_allclose(batch.images[index].numpy(), expected, rtol=1e-6)
    logits = torch.randn(3, 3, generator=generator())
    shares = torch.zeros(3, 3)
    for index, partner in enumerate((1, 2, 0)):
        shares[index, index] += 0.7
        shares[index, partner] += 0.3
    # Smoothing by 0.2 over three classes.
    smooth = 0.8 * shares + 0.2 / 3
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    assert float(batch.loss(logits, 0.2)) == pytest.approx(float(expected), rel=1e-5)


def test_the_label_is_shared_by_the_area_that_was_cut_out():
    images = torch.zeros(2, 3, 7, 9)
    images[1] = 1.0
    seen = set()
    for seed in range(60):
        batch = cut_and_mixed(images, torch.tensor([0, 1]), torch.tensor([1, 0]), 0.4, random.Random(seed))
        foreign = float(batch.images[0, 0].mean())
        assert batch.share == pytest.approx(1 - foreign)
        assert float(batch.images[1, 2].mean()) == pytest.approx(1 - foreign)
        rows, columns = np.nonzero(batch.images[0, 1].numpy())
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "one rectangle"
            seen.add((rows.min(), columns.min()))
    assert len(seen) > 10
    assert float(images[0].max()) == 0, "the images given are left alone"


def test_a_batch_of_one_has_nobody_to_be_mixed_with():
    images = torch.rand(1, 1, 4, 4)
    batch = augmented(images, torch.tensor([0]), Recipe(shift=0.0, mixup=1.0, cutmix=1.0), generator())
    assert torch.equal(batch.images, images)
    assert batch.share == 1


def test_with_both_ways_batches_take_turns_and_follow_the_generator():
    images, labels = torch.zeros(8, 1, 6, 6), torch.arange(8)
    images[4:] = 1.0
    recipe = Recipe(shift=0.0, mixup=1.0, cutmix=1.0)
    batches = [augmented(images, labels, recipe, generator(seed)) for seed in range(40)]
    blended = sum(bool(((batch.images > 0) & (batch.images < 1)).any()) for batch in batches)
    assert 5 < blended < 35
    again = [augmented(images, labels, recipe, generator(seed)) for seed in range(40)]
    assert all(torch.equal(one.images, two.images) for one, two in zip(batches, again, strict=True))
