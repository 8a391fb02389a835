"""The page of one candidate: what it is, what it costs, what came of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from nas.web.anatomy import Anatomy, Row, StageRows, stage_of, title_of
from nas.web.charts import Slab, network_chart
from nas.web.downloads import Download
from nas.web.markup import Markup, element, joined, table
from nas.web.pages import download_list, facts, hint, page
from searchspace.references.comparison import Counts


def trial_page(
    name: str,
    trial: FrozenTrial,
    found: Anatomy | str,
    member: Mapping[str, Any] | None,
    downloads: Sequence[Download],
    back: str,
    with_optuna: bool,
) -> str:
    """One candidate: what it is, what it costs, what came of it; `found` is why it cannot be drawn where it cannot."""
    parts: list[object] = [
        element("p", element("a", f"Back to {name}", href=back, id="back"), class_="crumbs"),
        element("h1", f"Trial {trial.number}"),
        _trial_facts(trial, found, member),
    ]
    if not downloads:
        parts.append(hint("It was not trained, or not here, so there are no files of it."))
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
        ["train form", f"{trained.params:,}", f"{trained.macs / 1e6:.2f} M"],
        ["deploy form", f"{deployed.params:,}", f"{deployed.macs / 1e6:.2f} M"],
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
    params, macs = f"{row.deployed.params:,} params", f"{_millions(row.deployed)} M multiply-adds"
    if row.trained != row.deployed:
        params, macs = f"{row.trained.params:,} to {params}", f"{_millions(row.trained)} to {macs}"
    return element(
        "li",
        element("strong", f"{times}{row.family}"),
        element("span", f" gives {_shape(row.output_shape)}"),
        element("p", row.genes),
        hint(f"{params}, {macs}" + (" each" if row.repeat > 1 else "")),
    )


def _kernels(found: Anatomy) -> list[Markup]:
    if found.untimed is not None:
        return [_section("Latency per kernel", element("p", found.untimed, class_="bad"))]
    longest = max(each.latency_ms for each in found.kernels)
    total = sum(each.latency_ms for each in found.kernels)
    rows = [
        [
            each.block,
            element("code", each.key),
            joined(_latency_bar(each.latency_ms / longest), f"{each.latency_ms:.3g} ms"),
            f"{100 * each.latency_ms / total:.1f} %",
            each.tier,
        ]
        for each in found.kernels
    ]
    titles = ("block", "kernel", "latency", "share", "tier")
    listed = element(
        "div", table(titles, rows, caption="Kernels in running order, as the table knows them"), class_="cards kernels"
    )
    return [_section("Latency per kernel", listed)]


def _latency_bar(share: float) -> Markup:
    # A width is an attribute here and not a style, which the page's own rules forbid in its text.
    bar = element("rect", width=f"{100 * share:.1f}%", height=8, rx=2, class_="bar")
    return element("svg", bar, class_="meter", aria_hidden="true", height=8)


def _millions(counts: Counts) -> str:
    return f"{counts.macs / 1e6:.2f}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
