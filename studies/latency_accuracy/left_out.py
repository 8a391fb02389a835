"""How well networks that a profile of this machine learnt from are foretold without them: the ground for constants.

    python studies/latency_accuracy/left_out.py [--runtime onnxruntime] [--folds 3]

The checks of a certificate must choose nothing. So what the model is made of is decided on the other networks: a
seventh of them is left out, the table is made from the rest, and the seventh is foretold; `--folds` says for how many
sevenths. Nothing is timed; the profile is the one that is kept on this machine.
"""

import argparse
import random

import numpy as np

from hardware.job_results import load_results
from hardware.kernel_fit import KernelFit
from hardware.latency_table import UnmeasuredKernel
from hardware.profiled_table import ProfiledModel, ProfiledTable
from hardware.profiling import Profile, learnt, predict_ms, undisturbed
from hardware.table_fit import fit_table
from hardware.targets import described_target, host_identity
from nas.tables import Wanted, job_folder, profile_of
from searchspace.spaces import space_named

SEVENTHS = 7
# Small networks take less; heavy ones have more weights and take no longer.
SMALL_MS, HEAVY_MB, HEAVY_MS = 0.15, 10.0, 2.0
MEGABYTE = 2**20


def left_out(runtime: str, space: str, folds: int) -> dict[str, np.ndarray]:
    """Predicted over measured, less 1, of each network that was left out: of all, and by kind."""
    described = described_target("host", runtime)
    profile: Profile = profile_of(space_named(space), described.fusion_rules)
    times = undisturbed(profile, load_results(job_folder(Wanted("host", space, runtime, 1, 0.0), described)))
    traces, _ = learnt(profile, times, apart={check.name for check in profile.checks})
    graphs = {subject.name: subject.graph for subject in profile.learning}
    random.Random(0).shuffle(traces)
    scales: dict[str, tuple[float, ...]] = {}
    found: dict[str, list[float]] = {"all": [], "small": [], "heavy": [], "rest": []}
    for fold in range(folds):
        fit = fit_table([trace for index, trace in enumerate(traces) if index % SEVENTHS != fold])
        if not scales:
            kernels = KernelFit({key: row.median_ms for key, row in fit.rows.items()})
            scales = {family: tuple(theta) for family, theta in kernels.scales.items()}
        model = ProfiledModel(ProfiledTable(host_identity(described, 1), "", {}, fit, scales))
        for trace in traces[fold::SEVENTHS]:
            try:
                predicted_ms = predict_ms(model, graphs[trace.name], profile.rules)
            except UnmeasuredKernel:
                continue
            is_heavy = trace.weight_bytes > HEAVY_MB * MEGABYTE and trace.whole_ms < HEAVY_MS
            kind = "small" if trace.whole_ms < SMALL_MS else "heavy" if is_heavy else "rest"
            for name in ("all", kind):
                found[name].append(predicted_ms / trace.whole_ms - 1)
    return {name: np.array(errors) for name, errors in found.items() if errors}


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--space", default="edge-small")
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args()
    print("| networks | left out | mean error | within 5 % | within 10 % | median |\n|---|---|---|---|---|---|")
    for name, errors in left_out(options.runtime, options.space, options.folds).items():
        size = np.abs(errors)
        print(
            f"| {name} | {len(errors)} | {100 * size.mean():.1f} % | {100 * (size <= 0.05).mean():.1f} % | "
            f"{100 * (size <= 0.1).mean():.1f} % | {100 * np.median(errors):+.1f} % |"
        )


if __name__ == "__main__":
    main()
