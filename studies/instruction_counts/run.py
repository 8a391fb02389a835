"""What counting instructions does to the error of every board, how counts were checked, and how far they reach.

    python studies/instruction_counts/run.py boards      before (closed form alone) and after, board by board
    python studies/instruction_counts/run.py kinds       counts beside the closed form: kinds no network has
    python studies/instruction_counts/run.py coverage    which kernels of the named spaces are counted (minutes)
    python studies/instruction_counts/run.py whole       small networks counted whole beside their kernels (needs QEMU)

`closed_form_only.jsonl` and `kinds.csv` hold what the closed form said before kernels were counted, by the code of
commit 62424c2; the rest is derived anew.
"""

import csv
import json
import random
import statistics
import sys
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from hardware.armv7.count_tables import EXECUTED  # noqa: E402
from hardware.armv7.counting import Count, Subject, count, kernel_subject  # noqa: E402
from hardware.armv7.ground import NCNN_VERSION, ready_ground  # noqa: E402
from hardware.instruction_counts import read_counts  # noqa: E402
from hardware.kernels import fuse  # noqa: E402
from hardware.ncnn_model import FUSION_RULES, graph_param  # noqa: E402
from hardware.targets import COUNTS_FILE, cache_folder  # noqa: E402
from nas.count_command import derive, kernels_of  # noqa: E402
from searchspace.choosers import random_choice  # noqa: E402
from searchspace.network import deploy_graph  # noqa: E402
from searchspace.space import Task, member, narrowed  # noqa: E402
from searchspace.spaces import SPACES, space_named  # noqa: E402

# Members of a few milliseconds, which QEMU runs in a second.
SMALL = {
    "resolution": (32,),
    "stem.width": (8, 16),
    "stage1.width": (8, 16),
    "stage2.width": (16, 24),
    "stage3.width": (24, 32),
    "stage4.width": (48, 64),
}
NETWORKS = 12


def boards() -> None:
    """A line for each board and number of threads."""
    before = {}
    for line in (HERE / "closed_form_only.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        before[row["target"], row["threads"]] = row
    print("| board | threads | networks | closed form | worst three | counts | worst three |")
    print("|---|---|---|---|---|---|---|")
    for report in derive().reports:
        old = before[report.target, report.threads]
        new = {row.network: row.percent for row in report.rows}
        cells = [
            f"{value:.1f} % | {_worst(rows)}"
            for value, rows in ((old["mape"], old["rows"]), (report.mape_percent, new))
        ]
        print(f"| {report.target} | {report.threads} | {len(new)} | {' | '.join(cells)} |")


def _worst(rows: dict[str, float]) -> str:
    worst = sorted(rows, key=lambda name: -abs(rows[name]))[:3]
    return ", ".join(f"{name} {rows[name]:+.0f} %" for name in worst)


def kinds() -> None:
    """Counted over closed form by kind, from kinds.csv."""
    found = defaultdict(list)
    with (HERE / "kinds.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["kind"]].append((float(row["counted"]) / float(row["closed_form"]), row))
    print("| kind | kernels | counted / closed form: median, range | for example | closed form | counted |")
    print("|---|---|---|---|---|---|")
    for kind, pairs in found.items():
        ratios = sorted(ratio for ratio, _ in pairs)
        _, row = min(pairs, key=lambda pair: abs(pair[0] - statistics.median(ratios)))
        span = f"{statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"| {kind} | {len(ratios)} | {span} | `{row['kernel']}` | {row['closed_form']} | {row['counted']} |")


def coverage() -> None:
    """How many kernels of each space are counted, and of which kinds none is."""
    known = read_counts(COUNTS_FILE, EXECUTED).by_kernel
    print("| space | kernels | counted | members drawn at random: kernels counted, share of time counted |")
    print("|---|---|---|---|")
    from hardware.latency_table import Tier, kernel_sums
    from hardware.targets import load_target

    model = load_target("rk3288").latency_model
    for name in (*SPACES, "references"):
        keys = {kernel.key for kernel in kernels_of(name)}
        cell = "-"
        if name in SPACES:
            rng = random.Random(f"coverage {name}")
            drawn = [deploy_graph(member(SPACES[name], random_choice(rng), Task(3, 10))) for _ in range(200)]
            kernels = [fuse(graph, FUSION_RULES) for graph in drawn]
            counted = sum(kernel.key in known for each in kernels for kernel in each)
            sums = [kernel_sums(model, each) for each in kernels]
            share = 1 - sum(each.extrapolated_ms for each in sums) / sum(each.total_ms for each in sums)
            cell = f"{100 * counted / sum(map(len, kernels)):.0f} %, {100 * share:.0f} %"
        print(f"| `{name}` | {len(keys)} | {len(keys & known.keys())} | {cell} |", flush=True)
        none = Counter(key.partition("(")[0] for key in keys) - Counter()
        missing = [kind for kind in none if not any(key.startswith(f"{kind}(") for key in keys & known.keys())]
        assert not missing, f"{name}: nothing was counted of {missing}"
    assert Tier.calibrated


def whole() -> None:
    """Small members counted as one network, beside the sum of their kernels; written to whole.csv."""
    ground = ready_ground(cache_folder() / f"armv7-{NCNN_VERSION}")
    known = dict(read_counts(COUNTS_FILE, EXECUTED).by_kernel)
    space, rng = narrowed(space_named("edge-small"), SMALL), random.Random("whole")
    with (HERE / "whole.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("network", "kernels", "sum_of_kernels", "whole", "ratio"))
        for number in range(NETWORKS):
            graph = deploy_graph(member(space, random_choice(rng), Task(3, 10)))
            kernels = fuse(graph, FUSION_RULES)
            new = {kernel.key: kernel for kernel in kernels if kernel.key not in known}
            subjects = [kernel_subject(kernel, 0.0) for kernel in new.values()]
            one = Subject("whole", graph_param(graph), (("in0", graph.input_shape),), (), "out0", 0.0)
            for name, found in count(ground, [*subjects, one]):
                assert isinstance(found, Count), found
                known[name] = found.instructions
            total = sum(known[kernel.key] for kernel in kernels)
            writer.writerow((number, len(kernels), total, known["whole"], f"{total / known['whole']:.4f}"))
            file.flush()
            print(f"{number}: {total} / {known['whole']} = {total / known['whole']:.4f}", flush=True)


if __name__ == "__main__":
    {"boards": boards, "kinds": kinds, "coverage": coverage, "whole": whole}[sys.argv[1]]()
