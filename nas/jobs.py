"""What workers run; everything in and out can be pickled, and the data are opened once per process."""

from evaluators.early import EarlySettings, look_early
from evaluators.evaluator import Outcome
from nas.problem import DataKey, dataset
from searchspace.spec import ArchSpec


def early_job(spec: ArchSpec, data: DataKey, settings: EarlySettings, seed: int) -> Outcome:
    """The first look at a candidate."""
    return look_early(spec, dataset(data).at(spec.input_shape[1]), settings, seed)
