"""Whether labels and a network's outputs belong together."""

from collections import Counter

from torch import Tensor


class WrongLabels(ValueError):
    """Labels that a network with so many outputs cannot learn."""


def check_labels(labels: Tensor, classes: int) -> None:
    """Makes sure that training labels (n,) are those of so many classes, and that each class has an image.

    Raises:
        WrongLabels: they are not; the message names the first that breaks the rule.
    """
    counts = [0] * classes
    for label, count in sorted(Counter(labels.tolist()).items()):
        if not 0 <= label < classes:
            raise WrongLabels(f"label {label} is out of range: the network tells classes 0 to {classes - 1} apart")
        counts[label] = count
    if 0 in counts:
        raise WrongLabels(f"class {counts.index(0)} has no training image: give it some, or leave the class out")
