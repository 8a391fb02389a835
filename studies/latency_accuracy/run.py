"""How well tables of this machine foretell networks: held-out members of a space, and published networks.

    python studies/latency_accuracy/run.py [--runtimes onnxruntime,mnn,ncnn] [--minutes 12,6,6] [--draw checks]

For each runtime the table is measured as `nas profile` does it, with what was measured before, and its certificates are
printed, one for each space that was ever profiled; then every published network that the runtime takes is predicted
from the table and measured whole. With 0 minutes nothing is added to the table.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hardware.kernels import fuse
from hardware.latency_table import UnmeasuredKernel, kernel_sums
from hardware.profiled_table import ProfiledTable
from hardware.rank_correlation import spearman
from hardware.strict_yaml import ConfigError
from hardware.targets import cache_folder, described_target, load_target
from hardware.transports import Local
from nas import tables
from nas.certificates import measure_graph
from nas.tables import Wanted, make, tabulate
from searchspace.network import deploy_graph
from searchspace.references import reference, reference_names

COLUMNS = (
    *("runtime", "space", "kernels in networks", "checks", "MAPE", "within 5 %", "within 10 %", "Spearman"),
    "noise, within 5 %",
)


def profiled(runtime: str, space: str, minutes: float) -> ProfiledTable:
    """The table of this machine, with so many more minutes spent on it."""

    def tell(done: int, total: int, left_s: float) -> None:
        print(f"\r{runtime}: {done} of at most {total}, {left_s:.0f} s left ", end="", file=sys.stderr, flush=True)

    wanted = Wanted("host", space, runtime, 1, 60 * minutes)
    if not minutes:
        return tabulate(wanted, described_target("host", runtime), {})
    table = make(wanted, Local(), tell)
    print(file=sys.stderr)
    return table


def certificate_row(table: ProfiledTable, space: str) -> str:
    """One line of the first table."""
    found = table.certificates[space]
    cells = (
        f"{table.identity.runtime} {table.identity.runtime_version}",
        space,
        f"{len(table.fit.rows)} in {table.fit.networks}",
        f"{found.networks}",
        f"{found.mape_percent:.1f} %",
        f"{found.within_5_percent:.0f} %",
        f"{found.within_10_percent:.0f} %",
        f"{found.spearman:.4f}",
        f"{found.noise_percent:.1f} %, {found.noise_within_5_percent:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


def published(runtime: str) -> list[dict[str, float | str]]:
    """Of each published network that the runtime takes, what is predicted and what was measured."""
    target = load_target("host", threads=1, runtime=runtime)
    found = []
    for name in reference_names():
        graph = deploy_graph(reference(name))
        try:
            predicted = target.latency_model.network(
                kernel_sums(target.latency_model, fuse(graph, target.fusion_rules))
            )
            measured = measure_graph(target, graph, name)
        except (UnmeasuredKernel, ConfigError) as error:
            found.append({"name": name, "why": str(error)})
            continue
        found.append(
            {
                "name": name,
                "predicted_ms": predicted.value_ms,
                "tier": predicted.tier.value,
                "measured_ms": measured.median_ms,
                "ratio": predicted.value_ms / measured.median_ms,
            }
        )
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measures and prints tables in Markdown; the figures go into figures.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", default="onnxruntime,mnn,ncnn")
    parser.add_argument("--minutes", default="12,6,6", help="for each runtime")
    parser.add_argument("--space", default="edge-small")
    parser.add_argument("--draw", default="checks", help="another word draws other networks to check with")
    options = parser.parse_args()
    if options.draw != "checks":
        # What checks here is learnt from elsewhere: the samples must not meet.
        os.environ["XDG_CACHE_HOME"] = str(cache_folder() / f"draw-{options.draw}")
    tables.profile_of = partial(tables.profile_of, draw=options.draw)
    runtimes = options.runtimes.split(",")
    minutes = dict(zip(runtimes, map(float, options.minutes.split(",")), strict=True))
    found = {runtime: profiled(runtime, options.space, minutes[runtime]) for runtime in runtimes}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for table in found.values():
        for space in table.certificates:
            print(certificate_row(table, space))
    figures = {
        "draw": options.draw,
        "machine": {"cpu": found[runtimes[0]].identity.cpu, "system": platform.platform()},
        "certificates": {name: certificates(table) for name, table in found.items()},
        "published": {},
    }
    for runtime in runtimes:
        rows = published(runtime)
        figures["published"][runtime] = rows
        known = [row for row in rows if "ratio" in row]
        print(f"\n| published, {runtime} | predicted ms | measured ms | ratio | tier |\n|---|---|---|---|---|")
        for row in known:
            print(
                f"| {row['name']} | {row['predicted_ms']:.3f} | {row['measured_ms']:.3f} | {row['ratio']:.2f} | "
                f"{row['tier']} |"
            )
        unknown = [str(row["name"]) for row in rows if "why" in row]
        if unknown:
            print(f"\nNot predicted, since no kernels like theirs were measured: {', '.join(unknown)}.")
        if len(known) > 1:
            order = spearman([row["measured_ms"] for row in known], [row["predicted_ms"] for row in known])
            print(f"\nmedian ratio {statistics.median(row['ratio'] for row in known):.2f}, Spearman {order:.3f}")
    Path(__file__).with_name("figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def certificates(table: ProfiledTable) -> dict[str, object]:
    """The certificates by space with the overheads that were found, for JSON."""
    by_space: dict[str, object] = {space: found.model_dump() for space, found in table.certificates.items()}
    return by_space | {"overheads": asdict(table.fit.overheads), "conditions": dict(table.conditions)}


if __name__ == "__main__":
    main()
