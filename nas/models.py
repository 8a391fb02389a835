"""`nas models`: the published networks, what is printed about them and what is counted here."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from nas.console import output_width, print_table, print_text
from nas.exit_codes import DONE
from nas.view import View
from searchspace.references.comparison import BlockCounts, Compared, ComparedNetwork, Counts, compare, compare_all
from searchspace.registry import BlockSpec, family_of
from searchspace.spec import spec_id, spec_to_dict

UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}

# What one table with all columns takes; narrower terminals get two tables.
WIDE = 130

PUBLISHED = ("params", "dev %", "FLOPs", "dev %", "as", "verdict")
OWN = ("train M", "MMACs", "deploy M", "MMACs", "top-1", "data")


def models(name: str | None, view: View) -> int:
    """`nas models`: a line per published network, or one of them in full."""
    found = compare_all() if name is None else (compare(name),)
    if view.json:
        documents = [_document(network) for network in found]
        print(json.dumps({"models": documents} if name is None else documents[0], indent=2, allow_nan=False))
    elif name is None:
        _print_list(found)
    else:
        _print_one(found[0])
    return DONE


def _print_list(found: Sequence[ComparedNetwork]) -> None:
    published = [_published_cells(network.headline) for network in found]
    own = [_own_cells(network) for network in found]
    names = [network.name for network in found]
    if output_width() >= WIDE:
        rows = [[name, *left, *right] for name, left, right in zip(names, published, own, strict=True)]
        print_table("published, and counted here", ("model", *PUBLISHED, *OWN), rows)
    else:
        rows = [[name, *cells] for name, cells in zip(names, published, strict=True)]
        print_table("published, and how far our count is from it", ("model", *PUBLISHED), rows)
        print()
        rows = [[name, *cells] for name, cells in zip(names, own, strict=True)]
        print_table("counted here; top-1 is the paper's", ("model", *OWN), rows)
    print_text(
        "Counts are in millions, MMACs are multiply-adds, `as` is what the paper counts. exact: our count rounds to "
        "what is printed. fitted: chosen after seeing the figures. unexplained: no network that the paper describes "
        "has them. `nas models NAME` says why."
    )


def _published_cells(row: Compared) -> list[str]:
    figures = row.figures
    return [
        figures.params.text.replace(" ", "") if figures.params else "-",
        _percent(row.params_deviation_percent),
        figures.flops.text.replace(" ", "") if figures.flops else "-",
        _percent(row.flops_deviation_percent),
        figures.convention or "-",
        row.verdict,
    ]


def _own_cells(network: ComparedNetwork) -> list[str]:
    accuracy = network.accuracy
    return [
        f"{network.trained.params / 1e6:.3f}",
        f"{network.trained.macs / 1e6:.1f}",
        f"{network.deployed.params / 1e6:.3f}",
        f"{network.deployed.macs / 1e6:.1f}",
        f"{accuracy.top1:.1f}" if accuracy else "-",
        accuracy.data if accuracy else "-",
    ]


def _print_one(network: ComparedNetwork) -> None:
    columns = ("block", "family", "output", "train M", "deploy M", "MMACs", "genes")
    title = f"{network.name}, {spec_id(network.spec)}; genes that have their default are left out"
    print_table(title, columns, map(_block_cells, network.blocks), wrap=columns[-1])
    for form, counts in (("train", network.trained), ("deploy", network.deployed)):
        print_text(f"{form:8}{counts.params:,} parameters, {counts.macs:,} multiply-adds")
    for row in network.rows:
        print()
        print_text(f"{row.paper}, {row.figures.table}: {row.verdict}")
        for line in _row_lines(row):
            print_text(f"  {line}")


def _row_lines(row: Compared) -> list[str]:
    figures = row.figures
    lines = []
    if figures.params:
        deviation = _percent(row.params_deviation_percent)
        lines.append(f"parameters  {figures.params.text} printed, {row.counted.params:,} counted, {deviation} %")
    if figures.flops and row.flops is not None:
        size = UNITS[figures.flops.unit]
        counted = f"{row.flops / size:.4g} {figures.flops.unit}"
        lines.append(
            f"FLOPs       {figures.flops.text} printed, {counted} counted as {figures.convention}, "
            f"{_percent(row.flops_deviation_percent)} %"
        )
        if figures.convention == "ptflops":
            lines.append(f"            {_percent(row.macs_deviation_percent)} % with multiply-adds alone")
    if figures.has_sizes:
        lines.append(f"counts      {figures.form} form, {figures.classes} classes, {figures.resolution} pixels")
    for each in figures.accuracy:
        trained_with = f" with {each.trained_with}" if each.trained_with else ""
        lines.append(f"top-1       {each.top1} % on {each.data}{trained_with}")
    if figures.why:
        lines.append(f"why         {figures.why}")
    lines.append(f"the paper   {row.counting}")
    return lines


def _block_cells(counted: BlockCounts) -> list[str]:
    return [
        counted.path,
        family_of(counted.block).name,
        "x".join(map(str, counted.output_shape)),
        f"{counted.trained.params / 1e6:.3f}",
        f"{counted.deployed.params / 1e6:.3f}",
        f"{counted.deployed.macs / 1e6:.2f}",
        " ".join(f"{gene}={value}" for gene, value in chosen_genes(counted.block).items()),
    ]


def chosen_genes(block: BlockSpec) -> dict[str, Any]:
    """The genes of a block that have no default, or another value."""
    return {
        gene.name: getattr(block, gene.name)
        for gene in fields(block)
        if gene.default is MISSING or getattr(block, gene.name) != gene.default
    }


def _percent(deviation: float | None) -> str:
    return "-" if deviation is None else f"{deviation:+.1f}"


def _document(network: ComparedNetwork) -> dict[str, Any]:
    return {
        "name": network.name,
        "spec_id": spec_id(network.spec),
        "spec": spec_to_dict(network.spec),
        "verdict": network.headline.verdict,
        "train": _counts(network.trained),
        "deploy": _counts(network.deployed),
        "published": [_row_document(row) for row in network.rows],
        "blocks": [
            {
                "path": each.path,
                "family": family_of(each.block).name,
                "output_shape": list(each.output_shape),
                "train": _counts(each.trained),
                "deploy": _counts(each.deployed),
            }
            for each in network.blocks
        ],
    }


def _row_document(row: Compared) -> dict[str, Any]:
    figures = row.figures
    return {
        "paper": row.paper,
        "table": figures.table,
        "params": float(figures.params.value) if figures.params else None,
        "flops": float(figures.flops.value) if figures.flops else None,
        "convention": figures.convention,
        "form": figures.form,
        "classes": figures.classes,
        "resolution": figures.resolution,
        "accuracy": [each.model_dump() for each in figures.accuracy],
        "own": {"train": _counts(row.trained), "deploy": _counts(row.deployed), "flops": row.flops},
        "params_deviation_percent": row.params_deviation_percent,
        "flops_deviation_percent": row.flops_deviation_percent,
        "macs_deviation_percent": row.macs_deviation_percent,
        "verdict": row.verdict,
        "why": figures.why,
        "counting": row.counting,
        "headline": figures.headline,
    }


def _counts(counts: Counts) -> dict[str, int]:
    return {"params": counts.params, "macs": counts.macs}
