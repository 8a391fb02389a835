"""Labels that no network should be trained on."""

import pytest
import torch

from evaluators.labels import WrongLabels, check_labels


def test_every_class_with_an_image_is_right():
    check_labels(torch.tensor([2, 0, 1, 1]), 3)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(WrongLabels, match=rf"label {label} is out of range: the network tells classes 0 to 2 apart"):
        check_labels(torch.tensor([0, 1, 2, label]), 3)


def test_the_first_class_without_an_image_is_named():
    with pytest.raises(WrongLabels, match="class 1 has no training image"):
        check_labels(torch.tensor([0, 2, 2]), 4)


def test_no_images_at_all_are_a_missing_class():
    with pytest.raises(WrongLabels, match="class 0"):
        check_labels(torch.zeros(0, dtype=torch.int64), 2)
