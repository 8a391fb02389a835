"""The command line: parse, one call, print. Heavy libraries are imported by the commands that need them."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from nas import __version__

DONE, BROKE, WRONG_INPUT, INFEASIBLE, BROKEN_CERTIFICATE, INTERRUPTED = 0, 1, 2, 3, 4, 130


# A full disk, a used-up quota, a file that may not grow, a file system or folder that may not be written.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest known word."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        flags = [word for word in unknown if word.startswith("-")]
        if flags and self._subparsers is None:
            known = [option for action in self._actions for option in action.option_strings if option != "-h"]
            near = get_close_matches(flags[0].partition("=")[0], known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            self.error(f"unknown flag {flags[0]}; {hint}known: {', '.join(sorted(known))}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            near = get_close_matches(str(value), known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            self.error(f"unknown command {value!r}; {hint}known: {', '.join(known)}")

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {' '.join(message.split())}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Modules of the user's own are found where he works, behind everything that is installed.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return WRONG_INPUT
    command: Callable[[argparse.Namespace], int] = options.command
    if options.debug:
        return command(options)
    try:
        return command(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return DONE
    except Exception as error:
        return _report_error(error)


def _report_error(error: Exception) -> int:
    from evaluators.image_files import DataError
    from hardware.latency_table import UnmeasuredKernel
    from hardware.strict_yaml import ConfigError
    from hardware.transports import TransportError
    from nas.long_training import TrainingFailed
    from nas.quantities import QuantityError
    from nas.storage import StorageLost
    from nas.study import InfeasibleBudget, TooManyFailures
    from nas.trust_members import TrustFailed
    from searchspace.spec import SpecError

    codes = {InfeasibleBudget: INFEASIBLE} | dict.fromkeys(
        (DataError, ConfigError, QuantityError, SpecError, UnmeasuredKernel), WRONG_INPUT
    )
    # Their messages say everything.
    told = (TransportError, StorageLost, TrainingFailed, TooManyFailures, TrustFailed)
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), BROKE)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        print(f"nas: {error}; once that is mended, `nas resume` goes on with what was kept", file=sys.stderr)
    elif code == BROKE and not isinstance(error, told):
        print(f"nas: {type(error).__name__}: {error} (the traceback shows with --debug)", file=sys.stderr)
    else:
        print(f"nas: {error}", file=sys.stderr)
    return code


def build_parser() -> _Parser:
    """Every command with its flags."""
    parser = _Parser(prog="nas", description="Finds neural networks for small devices.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"nas {__version__}")
    parser.set_defaults(command=None, debug=False)
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        sub.set_defaults(command=command)
        sub.add_argument("--debug", action="store_true", help="show the traceback when something breaks")
        return sub

    search = add("search", _search, "search, train the finalists, fuse, verify, export and certify them")
    search.add_argument("study_yaml", nargs="?", type=Path, metavar="STUDY.yaml", help="settings; flags override them")
    for flag, kind, text in _SETTING_FLAGS:
        search.add_argument(f"--{flag}", type=kind, help=text, metavar=flag.upper().replace("-", "_"))
    _add_common(search)

    resume = add("resume", _resume, "go on with a study to its total number of trials, or N more")
    resume.add_argument("study", help="name or folder of the study")
    resume.add_argument("--trials", type=int, metavar="N", help="so many more than it has")
    resume.add_argument("--finalists", type=int, metavar="K", help="so many in place of those it has")
    resume.add_argument("--budget", help="another budget: trials keep, and count where they keep it")
    resume.add_argument("--time", help="stop searching after so long, such as 10m")
    resume.add_argument("--training-time", help="train no more candidates than fit into so long, such as 10m")
    resume.add_argument("--evaluation-time", help="give up a candidate whose first look takes longer, such as 10m")
    resume.add_argument("--workers", type=int, metavar="N", help="processes or Ray tasks at a time")
    resume.add_argument("--backend", metavar="local|ray|inline", help="where candidates are evaluated")
    resume.add_argument("--ray-address", metavar="A", help="a Ray cluster that runs already: HOST:PORT or auto")
    resume.add_argument("--cpus-per-trial", type=float, metavar="N", help="cores, and threads, of an evaluation")
    resume.add_argument("--gpus-per-trial", type=float, metavar="N", help="GPUs that Ray sets aside for an evaluation")
    resume.add_argument(
        "--accept-changed-table",
        action="store_true",
        help="go on although the target's latency table has changed: latencies are taken from the new one",
    )
    _add_common(resume)

    trust = add("trust", _trust, "how far proxies rank the networks of a space on some data, against multiply-adds")
    trust.add_argument(
        "name",
        nargs="?",
        metavar="STUDY",
        help="a study that is there, or a study file; flags say the rest as for search",
    )
    for flag, kind, text in _SETTING_FLAGS:
        trust.add_argument(f"--{flag}", type=kind, help=text, metavar=flag.upper().replace("-", "_"))
    _add_common(trust)

    show = add("show", _show, "the front of a study as a table, or one member in full")
    show.add_argument("study", help="name or folder of the study")
    show.add_argument("--trial", type=int, metavar="N", help="one member")
    _add_common(show)

    export = add("export", _export, "trained members as folders that stand alone: ONNX, ncnn, MNN, torch")
    _add_study(export)
    which = export.add_mutually_exclusive_group()
    which.add_argument("--front", action="store_true", help="every member of the front, as without --trial")
    which.add_argument("--trial", type=int, nargs="+", metavar="N", help="these trained members")
    export.add_argument("--format", default="onnx", metavar="F,F", help="of onnx, ncnn, mnn and torch; default: onnx")
    export.add_argument("--batch", type=int, metavar="N", help="fix the batch of ONNX and torch, which is free without")
    export.add_argument("--int8", action="store_true", help="beside model.onnx a model.int8.onnx in eight bits")
    export.add_argument(
        "--max-drop",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="leave eight bits out where they cost more validation accuracy than this; default: 0.01",
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; a new or empty folder")
    export.add_argument("--force", action="store_true", help="replace members in a folder that is not empty")
    _add_voice(export)

    train = add("train", _train, "train a member of a study, a published network or a spec to the end, and export it")
    train.add_argument("model", help="STUDY:TRIAL, a spec file or a published network")
    train.add_argument("--epochs", type=int, required=True, metavar="N", help="how long; the learning rate follows it")
    train.add_argument("--data", help="as for search; default: the study's, or digits")
    train.add_argument("--data-limit", type=int, metavar="N", help="use at most so many training images")
    train.add_argument("--seed", type=int, help="where all randomness comes from; default: the study's, or 0")
    train.add_argument("--recipe", type=Path, metavar="FILE", help="YAML with what to change of the data's recipe")
    train.add_argument("--target", help="say what it takes on this device; default: the study's")
    train.add_argument("--threads", type=int, metavar="N", help="threads on the device")
    train.add_argument("--runtime", metavar="R", help="the device's runtime")
    train.add_argument("--checkpoint-every", type=int, metavar="N", help="epochs between; default: about a minute")
    train.add_argument("--out", type=Path, metavar="DIR", help="where to, and where the same command goes on from")
    train.add_argument("--studies", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")
    _add_families(train)
    _add_voice(train)

    report = add("report", _report, "one HTML file about a study that needs nothing beside itself")
    _add_study(report)
    report.add_argument("--out", type=Path, metavar="FILE", help="where to; default: report.html in the study's folder")
    report.add_argument("--svg", type=Path, metavar="FILE", help="the picture of the front by itself")
    report.add_argument("--png", type=Path, metavar="FILE", help="the same as pixels")
    _add_voice(report)

    predict = add("predict", _predict, "params, macs, memory, receptive field and latency, with a line per kernel")
    predict.add_argument("spec", help="a spec file, STUDY:TRIAL or a published network")
    _add_target(predict)
    _add_families(predict)
    _add_common(predict)

    measure = add("measure", _measure, "measured latency on this machine: median, spread, runs")
    measure.add_argument("spec", help="a spec file, STUDY:TRIAL, a published network or MODEL.onnx")
    _add_target(measure)
    _add_families(measure)
    _add_common(measure)

    profile = add("profile", _profile, "make or extend the latency table of this machine, or of a board of your own")
    profile.add_argument("--target", required=True, help="host, or a name of your own for your board")
    profile.add_argument(
        "--anchors",
        action="store_true",
        help="measure a handful of networks on your own board of a calibrated target, and rescale its table by them",
    )
    profile.add_argument("--space", default="edge-small", help="whose kernels to measure")
    profile.add_argument("--threads", type=int, default=1, metavar="N", help="threads on the device")
    profile.add_argument("--runtime", metavar="R", help="onnxruntime, ncnn or mnn")
    profile.add_argument("--time", default="5m", help="how long to measure, such as 5m")
    way = profile.add_mutually_exclusive_group()
    way.add_argument("--ssh", metavar="USER@HOST", help="measure there, by ssh")
    way.add_argument("--adb", metavar="SERIAL", help="measure on this Android device, by adb")
    way.add_argument("--bundle", type=Path, metavar="FILE", help="write an archive to carry to the board by hand")
    way.add_argument("--import", type=Path, metavar="FILE", dest="brought", help="take in what came back of a bundle")
    profile.add_argument("--adb-python", default="python3", metavar="PATH", help="Python on the Android device")
    _add_common(profile)

    dashboard = add("dashboard", _dashboard, "a web page over the studies: watch, resume, stop, extend, take home")
    dashboard.add_argument("--host", default="127.0.0.1", help="other than this machine alone needs a password")
    dashboard.add_argument("--port", type=int, default=8080, help="where to listen")
    dashboard.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")
    dashboard.add_argument("--storage", metavar="URL", help="list and show the studies of a database as well")
    dashboard.add_argument("--optuna-writes", action="store_true", help="let Optuna's own pages change that database")

    targets = add("targets", _targets, "the devices: runtime, threads, tier, error, where their figures come from")
    targets.add_argument("target", nargs="?", help="one of them in full")
    _add_common(targets)

    models = add("models", _models, "the published reference models, with published and own figures")
    models.add_argument("name", nargs="?", help="one of them in full, block by block")
    _add_common(models)

    layouts = add("layouts", _layouts, "choose PBConv layouts for a network by the dispersion of its kernels")
    layouts.add_argument("model", help="a spec file, STUDY:TRIAL, a published network or MODULE:NAME of your own")
    layouts.add_argument("--data", default="digits", help="digits, fashion-mnist[:FOLDER], cifar10:FOLDER or a folder")
    layouts.add_argument("--data-limit", type=int, metavar="N", help="use at most so many training images")
    layouts.add_argument("--resolution", type=int, metavar="N", help="pixels of a module's images; default: the data's")
    layouts.add_argument("--candidates", type=int, default=10, metavar="N", help="how many to try; the paper has 10")
    layouts.add_argument("--iterations", type=int, default=20, metavar="N", help="how long each trains")
    layouts.add_argument("--scope", default="network", help="what shares a layout: network, stage or layer")
    layouts.add_argument("--score", default="dispersion", help="what wins: dispersion, or its gain over the start")
    layouts.add_argument(
        "--epochs", type=int, default=100, metavar="N", help="training whose share the cost is told as"
    )
    layouts.add_argument("--seed", type=int, default=0, help="where all randomness comes from")
    layouts.add_argument("--threads", type=int, default=1, metavar="N", help="threads to train with")
    layouts.add_argument("--write", type=Path, metavar="FILE", help="the spec with its layouts, or JSON for a module")
    _add_common(layouts)

    calibrate = add("calibrate", _calibrate, "derive the calibrated tables from published figures and counts again")
    calibrate.add_argument("target", nargs="?", help="one board with every network; without, a line for each board")
    calibrate.add_argument("--write", action="store_true", help="replace the shipped tables")
    _add_common(calibrate)

    count = add("count", _count, "count the instructions that ncnn executes on 32-bit ARM, under QEMU")
    which_counts = count.add_mutually_exclusive_group(required=True)
    which_counts.add_argument(
        "--space", action="append", default=[], metavar="NAME", help="a space, 'references' or 'operations'; repeatable"
    )
    which_counts.add_argument("--benchmark", action="store_true", help="the layers of ncnn's benchmark networks")
    which_counts.add_argument("--check", type=int, metavar="N", help="N of the shipped counts once more, to compare")
    count.add_argument("--time", default="10m", help="stop after so long, such as 10m; the same command goes on")
    count.add_argument("--fetch", action="store_true", help="get from Debian and PyPI what is needed for it, 60 MB")
    count.add_argument("--write", action="store_true", help="add what was counted to the shipped counts")
    _add_common(count)
    return parser


_SETTING_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("target", str, "the device, see `nas targets`"),
    ("budget", str, "the most a network may take, such as 5ms"),
    ("data", str, "digits, fashion-mnist[:FOLDER], cifar10:FOLDER or a folder of class folders of images"),
    ("data-limit", int, "use at most so many training images"),
    ("space", str, "which networks may be proposed: a space by name, or MODULE:NAME for one of your own"),
    ("sampler", str, "surrogate, evolution, nsga2, nsga3, tpe or random"),
    ("start", str, "what is proposed first: published networks, or the fastest member alone"),
    ("score", str, "what is maximised: dispersion, dispersion-gain, loss, macs or params"),
    ("trials", int, "candidates to evaluate"),
    ("time", str, "stop searching after so long, such as 10m"),
    (
        "trust",
        int,
        "members to train before the search, to be led by what ranks them; 0: none; default: as --time allows",
    ),
    ("trust-epochs", int, "epochs to train each of them"),
    ("evaluation-time", str, "give up a candidate whose first look takes longer, such as 10m"),
    ("iterations", int, "training iterations before a candidate is scored"),
    ("contenders", int, "candidates to train a little, the best of which become finalists; default: twice as many"),
    ("finalists", int, "candidates to train to the end"),
    ("layouts", int, "PBConv layouts to try for each finalist"),
    ("layout-scope", str, "what shares a layout: the network, a stage or a layer"),
    ("layout-score", str, "what wins: the largest dispersion, or its largest gain over the start"),
    ("epochs", int, "epochs to train each finalist"),
    ("training-time", str, "train no more candidates than fit into so long, such as 10m"),
    ("workers", int, "processes or Ray tasks at a time"),
    ("window", int, "candidates that may be out at once; twice the workers keeps them busy. Part of what a study is"),
    ("backend", str, "local for processes, ray, or inline for this process"),
    ("ray-address", str, "a Ray cluster that runs already: HOST:PORT, or auto for one on this machine"),
    ("cpus-per-trial", float, "cores of an evaluation, whose whole number is also its threads"),
    ("gpus-per-trial", float, "GPUs that Ray sets aside for an evaluation"),
    ("study", str, "name of the study"),
    ("storage", str, "an Optuna storage URL in place of a journal in the study's folder"),
    ("seed", int, "where all randomness comes from"),
    ("threads", int, "threads on the device"),
    ("runtime", str, "the device's runtime"),
)


_CHANGED_BY_RESUME = (
    "finalists",
    "budget",
    "time",
    "training_time",
    "evaluation_time",
    "workers",
    "backend",
    "ray_address",
    "cpus_per_trial",
    "gpus_per_trial",
)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="the device, see `nas targets`")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads on the device")
    parser.add_argument("--runtime", metavar="R", help="the device's runtime")


def _add_families(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--families", dest="module", metavar="MODULE", help="a module with block families of your own")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="name or folder of the study")
    parser.add_argument("--studies", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")
    _add_voice(parser)


def _add_voice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else there")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _search(options: argparse.Namespace) -> int:
    from nas.commands import search

    return search(options.study_yaml, _settings_given(options), _view(options))


def _trust(options: argparse.Namespace) -> int:
    from nas.trust_command import trust

    return trust(options.name, _settings_given(options), _view(options))


def _settings_given(options: argparse.Namespace) -> dict[str, Any]:
    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name, _, _ in _SETTING_FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def _resume(options: argparse.Namespace) -> int:
    from nas.commands import resume

    changes = {name: getattr(options, name) for name in _CHANGED_BY_RESUME}
    changed = {name: value for name, value in changes.items() if value is not None}
    return resume(
        options.study, options.trials, changed, accept_table=options.accept_changed_table, view=_view(options)
    )


def _show(options: argparse.Namespace) -> int:
    from nas.commands import show

    return show(options.study, options.trial, _view(options))


def _export(options: argparse.Namespace) -> int:
    from nas.export_command import ExportWords, export
    from nas.view import View

    words = ExportWords(
        study=options.study,
        trials=None if options.trial is None else tuple(options.trial),
        formats=options.format,
        batch=options.batch,
        int8=options.int8,
        max_drop=options.max_drop,
        out=options.out,
        force=options.force,
    )
    return export(words, View(options.studies, options.json, options.quiet))


def _report(options: argparse.Namespace) -> int:
    from nas.report_command import report
    from nas.view import View

    view = View(options.studies, options.json, options.quiet)
    return report(options.study, options.out, options.svg, options.png, view)


def _train(options: argparse.Namespace) -> int:
    from nas.train_command import TrainWords, train
    from nas.view import View

    _import_families(options.module)
    words = TrainWords(
        model=options.model,
        epochs=options.epochs,
        data=options.data,
        data_limit=options.data_limit,
        seed=options.seed,
        target=options.target,
        threads=options.threads,
        runtime=options.runtime,
        recipe=options.recipe,
        checkpoint_every=options.checkpoint_every,
        out=options.out,
    )
    return train(words, View(options.studies, options.json, options.quiet))


def _predict(options: argparse.Namespace) -> int:
    from nas.device_commands import predict

    _import_families(options.module)
    return predict(options.spec, options.target, options.threads, options.runtime, _view(options))


def _measure(options: argparse.Namespace) -> int:
    from nas.device_commands import measure

    _import_families(options.module)
    return measure(options.spec, options.target, options.threads, options.runtime, _view(options))


def _profile(options: argparse.Namespace) -> int:
    from nas.profile_command import Way, profile

    way = Way(options.ssh, options.adb, options.adb_python, options.bundle, options.brought)
    if options.anchors:
        from nas.anchors_command import profile_anchors

        return profile_anchors(options.target, options.threads, way=way, view=_view(options))
    return profile(
        options.target, options.space, options.runtime, options.threads, options.time, way=way, view=_view(options)
    )


def _import_families(module: str | None) -> None:
    from searchspace.registry import load_families
    from searchspace.spec import SpecError

    if module is not None:
        try:
            load_families(module)
        except ValueError as error:
            raise SpecError(f"import: {error}") from error


def _dashboard(options: argparse.Namespace) -> int:
    from nas.web.guard import Guard
    from nas.web.server import dashboard

    guard = Guard(options.host, os.environ.get("NAS_DASHBOARD_PASSWORD"))
    return dashboard(guard, options.port, options.out, options.storage, options.optuna_writes)


def _targets(options: argparse.Namespace) -> int:
    from nas.device_commands import targets

    return targets(options.target, _view(options))


def _models(options: argparse.Namespace) -> int:
    from nas.models import models

    return models(options.name, _view(options))


def _layouts(options: argparse.Namespace) -> int:
    from nas.layouts_command import LayoutWords, layouts

    words = LayoutWords(
        model=options.model,
        data=options.data,
        data_limit=options.data_limit,
        resolution=options.resolution,
        candidates=options.candidates,
        iterations=options.iterations,
        scope=options.scope,
        score=options.score,
        epochs=options.epochs,
        seed=options.seed,
        threads=options.threads,
        write=options.write,
    )
    return layouts(words, _view(options))


def _calibrate(options: argparse.Namespace) -> int:
    from nas.count_command import calibrate

    return calibrate(options.target, options.write, _view(options))


def _count(options: argparse.Namespace) -> int:
    from nas.count_command import CountWords, count_instructions

    words = CountWords(
        tuple(options.space), options.benchmark, options.check, options.time, options.fetch, options.write
    )
    return count_instructions(words, _view(options))


def _view(options: argparse.Namespace) -> Any:
    from nas.view import View

    return View(options.out, options.json, options.quiet)


if __name__ == "__main__":
    sys.exit(main())
