"""What some real iterations show: how kernels disperse, how fast the loss falls and how far.

Sources: PBConv (seed 001), section 4.3, for the dispersion; Ru et al., "Speedy Performance Estimation for Neural
Architecture Search", Eq. 1, for the sum of training losses, here over iterations in the place of epochs.
"""

from evaluators.dispersion import network_dispersion
from evaluators.proxies.proxy import Proxy
from evaluators.proxies.subject import Subject


def early_dispersion(subject: Subject) -> float:
    """Standard deviation of the kernels' mean importance after the early iterations."""
    return network_dispersion(subject.early.network).of_mean


def dispersion_gain(subject: Subject) -> float:
    """The same less its value before the first iteration, which is a matter of coverage and not of learning."""
    return early_dispersion(subject) - network_dispersion(subject.network).of_mean


def mean_loss(subject: Subject) -> float:
    """Training loss averaged over all early iterations: their sum, free of their number."""
    return subject.early.mean_loss


def last_loss(subject: Subject) -> float:
    """Training loss averaged over the last quarter of the early iterations."""
    return subject.early.last_loss


DISPERSION = Proxy("dispersion", early_dispersion, 1, "training", "PBConv, section 4.3: std of kernel positions, early")
DISPERSION_GAIN = Proxy("dispersion-gain", dispersion_gain, 1, "training", "the same less its value before training")
TRAINING_SPEED = Proxy("training-speed", mean_loss, -1, "training", "Ru et al. 2021: sum of early training losses")
EARLY_LOSS = Proxy("loss", last_loss, -1, "training", "training loss after some iterations")
