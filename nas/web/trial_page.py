"""The page of one candidate: what it is, what it costs, what came of it."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from optuna.trial import FrozenTrial

from nas.web.anatomy import Anatomy, KernelTime, Row, StageRows, stage_of, title_of
from nas.web.charts import Slab, network_chart
from nas.web.downloads import Download
from nas.web.markup import Markup, element, joined, table
from nas.web.pages import download_list, facts, hint, page


def trial_page(
    name: str,
    trial: FrozenTrial,
    found: Anatomy | str,
    member: Mapping[str, Any] | None,
    downloads: Sequence[Download],
    back: str,
    with_optuna: bool,
    no_files: str = "It was not trained, so there are no files of it.",
) -> str:
    """One candidate: what it is, what it costs, what came of it; `found` is why it cannot be drawn where it cannot."""
    parts: list[object] = [
        element("p", element("a", f"Back to {name}", href=back, id="back"), class_="crumbs"),
        element("h1", f"Trial {trial.number}"),
        _trial_facts(trial, found, member),
    ]
    if not downloads:
        parts.append(hint(no_files))
    if isinstance(found, str):
        parts.append(element("p", f"It cannot be drawn: {found}", class_="bad"))
    else:
        parts += _drawing(found)
        parts += _kernels(found)
    if downloads:
        parts.append(_section("Files", download_list(name, downloads)))
    genes = [[gene, str(value)] for gene, value in trial.params.items()]
    shown = element("div", table(("gene", "value"), genes, caption="Genes as they were proposed"), class_="genes")
    parts.append(
        shown
        if isinstance(found, str)
        else element("details", element("summary", "Genes as they were proposed"), shown)
    )
    return page(f"Trial {trial.number} of {name}", *parts, with_optuna=with_optuna)


def _section(title: str, *inside: object) -> Markup:
    return element("section", element("h2", title), *inside)


def _trial_facts(trial: FrozenTrial, found: Anatomy | str, member: Mapping[str, Any] | None) -> Markup:
    attributes = trial.user_attrs
    pairs: list[tuple[str, object]] = []
    if "failure" in attributes:
        pairs.append(("failed", element("span", attributes["failure"], class_="bad")))
    if member is not None:
        latency, accuracy, kept = member["latency_ms"], member["accuracy"], member["certificate"]
        pairs += [
            ("validation accuracy", f"{100 * accuracy['value']:.1f} % of {accuracy['images']} images"),
            (
                "test accuracy",
                f"{100 * member['test_accuracy']['value']:.1f} % of {member['test_accuracy']['images']} images",
            ),
            ("latency", f"{latency['value']:.3g} ms, {latency['low']:.3g} to {latency['high']:.3g}, {latency['tier']}"),
            ("promise", kept["why"]),
        ]
        if member["unfused_latency_ms"] is not None:
            pairs.append(("train form, measured", f"{member['unfused_latency_ms']:.3g} ms"))
    elif trial.values is not None:
        high = attributes.get("latency_high_ms")
        upto = f", at most {high:.3g}" if isinstance(high, float) else ""
        pairs += [
            ("score", f"{trial.values[0]:.4g}"),
            ("expected latency", f"{trial.values[1]:.3g} ms{upto}, {attributes.get('latency_tier', 'unknown')}"),
        ]
    pairs.append(("architecture", attributes.get("arch", "-") if isinstance(found, str) else found.spec_id))
    return facts(pairs)


def _drawing(found: Anatomy) -> list[Markup]:
    order = {stage.title: index for index, stage in enumerate(found.stages)}
    slabs = [
        Slab(
            order[stage_of(each.path)],
            f"{title_of(each.path)}: {_shape(each.output_shape)}",
            each.output_shape[1] if len(each.output_shape) > 1 else 1,
            each.output_shape[0],
        )
        for each in found.blocks
    ]
    stages = [f"{stage.title} to {_shape(stage.output_shape)}" for stage in found.stages]
    trained, deployed = found.trained, found.deployed
    forms = [
        ["train form", f"{trained.params:,}", _amount(trained.macs)],
        ["deploy form", f"{deployed.params:,}", _amount(deployed.macs)],
    ]
    return [
        _section(
            "Architecture",
            network_chart(slabs, stages),
            hint("From the image on the left: height is how large the maps are, width how many channels."),
            element(
                "div",
                table(("form", "params", "multiply-adds"), forms, caption="What trains, and what it is folded into"),
                class_="cards",
            ),
            element("ol", *(_stage(each, index) for index, each in enumerate(found.stages)), class_="stages"),
        )
    ]


def _stage(stage: StageRows, index: int) -> Markup:
    shapes = f"{_shape(stage.input_shape)} to {_shape(stage.output_shape)}"
    return element(
        "li",
        element(
            "h3",
            element("span", "", class_=f"chip stage{index % 6}"),
            f"{stage.title} ",
            element("span", shapes, class_="faint"),
        ),
        element("ul", *(_block(row) for row in stage.rows), class_="blocks"),
    )


def _block(row: Row) -> Markup:
    times = f"{row.repeat} x " if row.repeat > 1 else ""
    params, macs = f"{row.deployed.params:,} params", f"{_amount(row.deployed.macs)} multiply-adds"
    if row.trained != row.deployed:
        params = f"{row.trained.params:,} to {params}"
        # Where next to nothing is saved, the figures are the same.
        macs = macs if macs.startswith(f"{_amount(row.trained.macs)} ") else f"{_amount(row.trained.macs)} to {macs}"
    return element(
        "li",
        element("strong", f"{times}{row.family}"),
        element("span", f" gives {_shape(row.output_shape)}"),
        element("p", row.genes),
        hint(f"{params}, {macs}" + (" each" if row.repeat > 1 else "")),
    )


def _kernels(found: Anatomy) -> list[Markup]:
    """A bar for each stage, which opens on a bar for each of its kernels; the longest stage is open."""
    if found.untimed is not None:
        return [_section("Latency per kernel", element("p", found.untimed, class_="bad"))]
    total = sum(each.latency_ms for each in found.kernels)
    stages = [
        (stage, list(group)) for stage, group in groupby(found.kernels, key=lambda each: each.block.partition(",")[0])
    ]
    sums = [sum(each.latency_ms for each in kernels) for _, kernels in stages]
    longest = max(each.latency_ms for each in found.kernels)
    parts = []
    for (stage, kernels), taken in zip(stages, sums, strict=True):
        count = f"{len(kernels)} kernel{'s' if len(kernels) != 1 else ''}"
        told = element("span", f"{stage}: {taken:.3g} ms, {100 * taken / total:.1f} %, {count}")
        parts.append(
            element(
                "details",
                element("summary", told, _latency_bar(taken / max(sums))),
                _kernel_table(stage, kernels, longest, total),
                open=taken == max(sums),
                class_="stage-time",
            )
        )
    words = f"{total:.3g} ms in {len(found.kernels)} kernels, in running order, as the latency table knows them."
    return [_section("Latency per kernel", hint(words), *parts)]


def _kernel_table(stage: str, kernels: Sequence[KernelTime], longest: float, total: float) -> Markup:
    rows = [
        [
            each.block,
            element("code", each.key),
            joined(_latency_bar(each.latency_ms / longest), f"{each.latency_ms:.3g} ms"),
            f"{100 * each.latency_ms / total:.1f} %",
            each.tier,
        ]
        for each in kernels
    ]
    titles = ("block", "kernel", "latency", "share", "tier")
    return element("div", table(titles, rows, caption=f"Kernels of {stage}"), class_="cards kernels")


def _latency_bar(share: float) -> Markup:
    # A width is an attribute here and not a style, which the page's own rules forbid in its text.
    bar = element("rect", width=f"{100 * share:.1f}%", height=8, rx=2, class_="bar")
    return element("svg", bar, class_="meter", aria_hidden="true", height=8)


def _amount(macs: int) -> str:
    """In three figures, so that what folding saves in a small block can be seen."""
    return f"{macs / 1e6:.3g} M" if macs >= 1e6 else f"{macs / 1e3:.3g} k"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
