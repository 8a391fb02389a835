"""The pages: the list of studies, one study as it runs, and what all pages share."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from nas.export_formats import FORMATS, Format
from nas.pace import duration, rate
from nas.settings import StudyFile
from nas.web.charts import hypervolume_chart, legend, search_chart, trained_chart
from nas.web.downloads import Download
from nas.web.export_job import ExportState
from nas.web.markup import Markup, element, joined, table
from nas.web.studies import Live, Overview, Point, age

# What is said after a button was pressed; only these, never words from the address.
SAID = {
    "resume": "The study is being taken up again; that takes a few seconds.",
    "extend": "The study is being taken up again as more than it was; that takes a few seconds.",
    "export": "The front is being exported; its state is below.",
    "cancel": "The export was asked to end; what it has written is taken away.",
    "stop": "The study was asked to stop; it ends after what it is doing.",
}

# How a command says in the log why it came to nothing.
COMMAND_SAYS = "nas: "


def study_url(name: str, *parts: object) -> str:
    """The address of something in a study."""
    return "/".join(["/studies", quote(name), *(quote(str(part)) for part in parts)])


def stored_url(number: int, *parts: object) -> str:
    """The address of something in a study that only a storage knows."""
    return "/".join(["/stored", str(number), *(quote(str(part)) for part in parts)])


def page(title: str, *inside: object, with_optuna: bool) -> str:
    """A whole page."""
    links = [element("a", "Studies", href="/", id="home")]
    if with_optuna:
        links.append(element("a", "Optuna's charts", href="/dashboard", id="optuna"))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} - edge-nas"),
        element("link", rel="stylesheet", href="/own/dashboard.css"),
        element("link", rel="icon", href="data:,"),
        Markup('<script src="/own/dashboard.js" defer></script>'),
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("nav", *links, aria_label="Pages")),
        element("main", *inside, id="content"),
        element("p", id="connection", role="status", class_="notice", hidden=True),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en")


@dataclass(frozen=True, slots=True)
class StoredList:
    """What a storage holds beside the studies of the folder, by Optuna's numbers; trouble where it cannot be read."""

    where: str
    overviews: Mapping[int, Overview]
    trouble: str | None = None


def list_page(overviews: Sequence[Overview], root: str, stored: StoredList | None, with_optuna: bool) -> str:
    """Every study of the folder, and those of the storage that are not in it; stored None where there is no storage."""
    if overviews:
        rows = [_list_row(each, study_url(each.name), f"study-{each.name}") for each in overviews]
        found = _study_list("list", f"Studies in {root}", rows)
    else:
        found = element("p", f"There is no study in {root} yet; nas search begins one.", id="list", data_live=True)
    parts = [found]
    if stored is not None and stored.trouble is not None:
        parts.append(element("p", stored.trouble, class_="bad", role="alert", id="stored", data_live=True))
    elif stored is not None:
        rows = [_list_row(each, stored_url(number), f"stored-{number}") for number, each in stored.overviews.items()]
        parts.append(
            _study_list("stored", f"Studies in {stored.where}, begun elsewhere", rows)
            if rows
            else element("p", f"There are no further studies in {stored.where}.", id="stored", data_live=True)
        )
    return page("Studies", element("h1", "Studies"), *parts, with_optuna=with_optuna)


def _study_list(name: str, caption: str, rows: Sequence[Sequence[object]]) -> Markup:
    titles = ("study", "state", "target", "budget", "trials", "best so far", "age")
    return element("div", table(titles, rows, caption=caption), class_="cards", id=name, data_live=True)


def _list_row(each: Overview, link: str, name_id: str) -> list[object]:
    name = element("a", each.name, href=link, id=name_id)
    if each.record is None:
        done = str(each.done) if each.done else "-"
        kind = "faint" if each.state == "elsewhere" else "bad"
        return [name, _state(each.state), "-", "-", done, element("span", each.trouble or "", class_=kind), "-"]
    return [
        name,
        _state(each.state),
        each.record.target,
        each.record.budget,
        f"{each.done} of {each.record.trials}",
        each.best,
        age(each.record.created),
    ]


def _state(state: str) -> Markup:
    return element("span", state, class_=f"state {state}")


@dataclass(frozen=True, slots=True)
class TakeHome:
    """What a study has to take home, and how the export of its front gets on; state None where there was no export."""

    downloads: Sequence[Download]
    state: ExportState | None
    is_exporting: bool


def study_page(live: Live, token: str, take_home: TakeHome, said: str, optuna_id: int | None, with_optuna: bool) -> str:
    """One study; what changes while it runs is marked to be fetched again."""
    overview = live.overview
    name = overview.name
    notice = element("p", SAID[said], class_="notice", role="status") if said in SAID else ""
    parts: list[object] = [element("h1", name), notice, _section("facts", None, _facts(overview))]
    parts.append(_section("actions", None, _last_words(live), _buttons(overview, token)))
    if overview.record is None:
        parts.append(element("p", overview.trouble or "", class_="bad", role="alert"))
    else:
        parts += _pictures(live, lambda number: study_url(name, "trials", number))
    if take_home.downloads:
        parts.append(_section("export", "To take home", *_export(overview, take_home, token)))
        parts.append(_section("files", None, download_list(name, take_home.downloads)))
    else:
        parts.append(
            _section(
                "files",
                "To take home",
                hint("Once the study has finished, its front can be downloaded here."),
            )
        )
    log = "\n".join(live.log) or "Nothing was logged yet."
    parts.append(
        _section("log", "Log", element("pre", log, tabindex=0, role="region", aria_label="The log's last lines"))
    )
    if with_optuna and optuna_id is not None:
        parts.append(_optuna_link(optuna_id))
    return page(name, *parts, with_optuna=with_optuna)


def _optuna_link(optuna_id: int) -> Markup:
    link = element("a", "Optuna's own pages about this study", href=f"/dashboard/studies/{optuna_id}")
    return element("p", link, ": history, importance of genes, parallel coordinates, every trial as a table.")


def stored_page(live: Live, number: int, where: str, with_optuna: bool) -> str:
    """A study that a storage holds and whose folder is not here."""
    overview = live.overview
    parts: list[object] = [
        element("h1", overview.name),
        _section("facts", None, _facts(overview)),
        hint(
            f"Its trials are in {where}. Its log, trained networks and report are in its folder, on the machine where "
            "it was begun; there it is resumed and stopped."
        ),
    ]
    if overview.record is None:
        parts.append(element("p", overview.trouble or "", role="status"))
    else:
        parts += _pictures(live, lambda trial: stored_url(number, "trials", trial))
    if with_optuna:
        parts.append(_optuna_link(number))
    return page(overview.name, *parts, with_optuna=with_optuna)


def hint(words: str) -> Markup:
    """A remark beside what matters."""
    return element("p", words, class_="faint")


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """What is known, each value under its name."""
    rows = (
        element("div", element("dt", key), element("dd", value), class_="long" if _is_sentence(value) else None)
        for key, value in pairs
    )
    return element("dl", *rows, class_="facts")


def _is_sentence(value: object) -> bool:
    return not isinstance(value, Markup) and len(str(value)) > 50


def _section(name: str, title: str | None, *inside: object) -> Markup:
    heading = element("h2", title) if title else ""
    return element("section", heading, *inside, id=name, data_live=True)


def _facts(overview: Overview) -> Markup:
    pairs: list[tuple[str, object]] = [("state", _state(overview.state))]
    record = overview.record
    if record is not None:
        pairs += [
            ("target", f"{record.target}, {record.threads} thread{'s' if record.threads > 1 else ''}"),
            ("budget", record.budget),
            ("data", record.data),
            (
                "trials",
                joined(
                    f"{overview.done} of {record.trials}" + (f", {overview.failed} failed" if overview.failed else ""),
                    _bar(overview.done, record.trials),
                ),
            ),
            ("best so far", overview.best),
        ]
        if overview.state == "running":
            pace = "measuring" if overview.per_minute is None else f"{rate(overview.per_minute)} a minute"
            left = "-" if overview.left_s is None else duration(overview.left_s)
            if overview.done >= record.trials:
                pace, left = "search done", "finalists are being trained"
            pairs += [("rate", pace), ("time left", left)]
        pairs.append(("begun", f"{record.created[:16].replace('T', ' ')} UTC"))
    return facts(pairs)


def _last_words(live: Live) -> Markup:
    """Why what was started here last came to nothing, until something else happens to the study."""
    last = live.log[-1] if live.log else ""
    if live.overview.state in ("running", "starting") or not last.startswith(COMMAND_SAYS):
        return Markup()
    return element("p", last.removeprefix(COMMAND_SAYS), class_="bad", role="alert", id="last-words")


def _bar(done: int, total: int) -> Markup:
    return element("progress", f"{done} of {total}", value=min(done, total), max=total, aria_label="trials done")


def _buttons(overview: Overview, token: str) -> Markup:
    name = overview.name
    if overview.state in ("running", "starting"):
        return _form(name, "stop", token, element("button", "Stop", id="stop", aria_label=f"Stop {name}"))
    forms = []
    record = overview.record
    if record is None or overview.state != "finished" or overview.done < record.trials:
        total = f" to its {record.trials} trials" if record else ""
        forms.append(
            _form(name, "resume", token, element("button", "Resume", id="resume", aria_label=f"Resume {name}{total}"))
        )
    if record is not None:
        forms.append(_extend_form(name, record, token))
    return element("div", *forms, class_="buttons")


def _extend_form(name: str, record: StudyFile, token: str) -> Markup:
    """More of a study; what is left as it is stays as it is."""
    more = _field("trials", "", "how many more trials", type="number", min=1, placeholder=0)
    finalists = _field("finalists", record.finalists, "how many finalists", type="number", min=1)
    budget = _field("budget", record.budget, "the most a network may take, such as 5ms", type="text", maxlength=40)
    fields = element(
        "fieldset",
        element("legend", "Extend the study"),
        element("label", "by ", more, " trials", for_="more-trials"),
        element("label", "to ", finalists, " finalists", for_="more-finalists"),
        element("label", "within ", budget, for_="more-budget"),
    )
    return _form(name, "extend", token, fields, element("button", "Extend", id="extend", aria_label=f"Extend {name}"))


def _field(name: str, value: str | int, label: str, **attributes: str | int) -> Markup:
    return element(
        "input", name=name, value=value, id=f"more-{name}", aria_label=label, autocomplete="off", **attributes
    )


def _export(overview: Overview, take_home: TakeHome, token: str) -> list[Markup]:
    """How an export gets on, and the form that begins one."""
    parts = []
    state = take_home.state
    if take_home.is_exporting:
        doing = f": {state.doing} for {_networks(state)}" if state is not None and state.doing else ""
        cancel = element("button", "Cancel", id="cancel", aria_label=f"Cancel the export of {overview.name}")
        return [
            element("p", f"The front is being exported{doing}.", role="status", class_="notice", id="exporting"),
            _form(overview.name, "cancel", token, cancel),
        ]
    if state is not None:
        parts += _export_outcome(state)
    if overview.state in ("running", "starting"):
        return [*parts, hint("While the study runs its front may change; it can be exported afterwards.")]
    boxes = [_box(each.name, f" {each.name}", _missing(each), checked=each.name == "onnx") for each in FORMATS.values()]
    boxes.append(_box("int8", " ONNX in 8 bits", None, checked=False))
    fields = element("fieldset", element("legend", "Export the front as"), *boxes)
    button = element("button", "Export", id="export-front", aria_label=f"Export the front of {overview.name}")
    return [*parts, _form(overview.name, "export", token, fields, button)]


def _networks(state: ExportState) -> str:
    return f"{state.members} network{'s' if state.members != 1 else ''}"


def _export_outcome(state: ExportState) -> list[Markup]:
    what = ", ".join([*state.formats, *(["int8"] if state.int8 else [])])
    if state.cancelled:
        return [hint(f"The export of {what} was cancelled; nothing of it was kept.")]
    if state.ended is None:
        return [element("p", f"The export of {what} was cut short; nothing of it was kept.", class_="bad")]
    if state.failure is not None:
        return [element("p", f"The export of {what} failed: {state.failure}", class_="bad")]
    when = state.ended[:16].replace("T", " ")
    parts = [hint(f"Exported {when} UTC: {what} of {_networks(state)}.")]
    return parts + [element("p", f"Left out: {problem}", class_="bad") for problem in state.problems]


def _box(name: str, title: str, missing: str | None, *, checked: bool) -> Markup:
    box = element(
        "input", type="checkbox", name=name, id=f"format-{name}", checked=checked, disabled=missing is not None
    )
    return element("label", box, title if missing is None else f"{title} ({missing})", for_=f"format-{name}")


def _missing(each: Format) -> str | None:
    """What has to be installed before a format can be written, None where all is there."""
    return None if importlib.util.find_spec(each.module) is not None else f"pip install {each.library}"


def _form(name: str, action: str, token: str, *inside: object) -> Markup:
    hidden = element("input", type="hidden", name="token", value=token)
    return element("form", hidden, *inside, method="post", action=study_url(name, action))


def _pictures(live: Live, link: Callable[[int], str]) -> list[Markup]:
    tiers = {each.tier for each in live.points if each.score is not None} | {each.tier for each in live.trained}
    parts = []
    if live.trained:
        inside = [trained_chart(live, link), _trained_table(live, link)]
        parts.append(_section("trained", "Trained networks", *inside))
    if not live.front:
        parts.append(_section("search", "Search", hint("No candidate has a score yet.")))
        return parts
    searched = [search_chart(live, link), legend(tiers), _search_words(live), _front_table(live, link)]
    parts.append(_section("search", "Search", *searched))
    if len(live.hypervolumes) > 1:
        words = "The share of the box between the lowest and the highest score, below the budget, that is covered."
        parts.append(_section("hypervolume", "Hypervolume", hypervolume_chart(live.hypervolumes), hint(words)))
    return parts


def _search_words(live: Live) -> Markup:
    infeasible = sum(not each.feasible for each in live.points)
    words = "Filled marks are the front, pale ones were beaten."
    if infeasible:
        words += f" {infeasible} hollow grey ones break the budget."
    return hint(words + " Proposals above the budget are turned down before they become candidates.")


def _trained_table(live: Live, link: Callable[[int], str]) -> Markup:
    rows = [
        [
            element("a", f"trial {each.number}", href=link(each.number), id=f"trained-{each.number}"),
            f"{100 * each.accuracy:.1f} %",
            f"{each.latency_ms:.3g} ms",
            each.tier,
            {True: "on the front", False: "beaten", None: "-"}[each.on_front],
        ]
        for each in sorted(live.trained, key=lambda each: each.latency_ms)
    ]
    titles = ("network", "val. accuracy", "latency", "tier", "front")
    return element("div", table(titles, rows, caption="Trained networks by latency"), class_="cards")


def _front_table(live: Live, link: Callable[[int], str]) -> Markup:
    assert live.overview.record is not None
    by_number = {each.number: each for each in live.points}
    shown = [by_number[number] for number in live.front]
    rows = [_front_row(each, link) for each in shown]
    titles = ("candidate", live.overview.record.leading, "expected", "at most", "tier")
    return element(
        "details",
        element("summary", f"The front of the search as a table ({len(live.front)})", id="front-table"),
        element("div", table(titles, rows, caption="Front of the search by latency"), class_="cards"),
    )


def _front_row(each: Point, link: Callable[[int], str]) -> list[object]:
    return [
        element("a", f"trial {each.number}", href=link(each.number), id=f"front-{each.number}"),
        f"{each.score:.4g}",
        f"{each.latency_ms:.3g} ms",
        f"{each.high_ms:.3g} ms",
        each.tier,
    ]


def download_list(name: str, downloads: Iterable[Download]) -> Markup:
    """Files as links."""
    return element("ul", *(element("li", _download(name, each)) for each in downloads), class_="files")


def _download(name: str, each: Download) -> Markup:
    link = element(
        "a", each.title, href=study_url(name, *each.path.split("/")), id=f"file-{each.path}", download=each.saved
    )
    return joined(link, element("span", f" {each.size}", class_="faint"))
