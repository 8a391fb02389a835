"""What workers run; everything in and out can be pickled, and the data are opened once per process."""

from evaluators.early import EarlySettings
from evaluators.evaluator import Outcome
from evaluators.first_look import look_early
from nas.problem import DataKey, dataset
from searchspace.spec import ArchSpec


def early_job(
    spec: ArchSpec, data: DataKey, settings: EarlySettings, seed: int, proxies: tuple[str, ...] = ()
) -> Outcome:
    """The first look at a candidate, with what the proxies say that its score is made of."""
    splits = dataset(data).at(spec.input_shape[1])
    return look_early(spec, splits, settings, seed, proxies)
