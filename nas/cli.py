"""The command line: parse, one call, print. Heavy libraries are imported by the commands that need them."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from nas import __version__, flags
from nas.exit_codes import BROKE, DONE, INFEASIBLE, INTERRUPTED, WRONG_INPUT

Command = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest known word."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        unknown_flags = [word for word in unknown if word.startswith("-")]
        if unknown_flags and self._subparsers is None:
            known = [option for action in self._actions for option in action.option_strings if option != "-h"]
            near = get_close_matches(unknown_flags[0].partition("=")[0], known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            self.error(f"unknown flag {unknown_flags[0]}; {hint}known: {', '.join(sorted(known))}")
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
    command: Command = options.command
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
    from nas.files import is_of_the_disk
    from nas.long_training import TrainingFailed
    from nas.quantities import QuantityError
    from nas.storage import StorageLost
    from nas.study import EvaluationsBroken, InfeasibleBudget, TooManyFailures
    from nas.trust_members import TrustFailed
    from searchspace.spec import SpecError

    codes = {InfeasibleBudget: INFEASIBLE} | dict.fromkeys(
        (DataError, ConfigError, QuantityError, SpecError, UnmeasuredKernel), WRONG_INPUT
    )
    # Their messages say everything.
    told = (TransportError, StorageLost, TrainingFailed, EvaluationsBroken, TooManyFailures, TrustFailed)
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), BROKE)
    if is_of_the_disk(error):
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
    for name, command, add_flags, text in COMMANDS:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command)
        sub.add_argument("--debug", action="store_true", help="show the traceback when something breaks")
        add_flags(sub)
    return parser


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


def _search(options: argparse.Namespace) -> int:
    from nas.commands import search

    return search(options.study_yaml, _settings_given(options), _view(options))


def _trust(options: argparse.Namespace) -> int:
    from nas.trust_command import trust

    return trust(options.name, _settings_given(options), _view(options))


def _settings_given(options: argparse.Namespace) -> dict[str, Any]:
    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name, _, _ in flags.SETTING_FLAGS}
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


# Each with what carries it out, its flags, and what it is for.
COMMANDS: tuple[tuple[str, Command, Callable[[argparse.ArgumentParser], None], str], ...] = (
    ("search", _search, flags.search, "search, train the finalists, fuse, verify, export and certify them"),
    ("resume", _resume, flags.resume, "go on with a study to its total number of trials, or N more"),
    ("trust", _trust, flags.trust, "how far proxies rank the networks of a space on some data, against multiply-adds"),
    ("show", _show, flags.show, "the front of a study as a table, or one member in full"),
    ("export", _export, flags.export, "trained members as folders that stand alone: ONNX, ncnn, MNN, torch"),
    (
        "train",
        _train,
        flags.train,
        "train a member of a study, a published network or a spec to the end, and export it",
    ),
    ("report", _report, flags.report, "one HTML file about a study that needs nothing beside itself"),
    ("predict", _predict, flags.predict, "params, macs, memory, receptive field and latency, with a line per kernel"),
    ("measure", _measure, flags.measure, "measured latency on this machine: median, spread, runs"),
    ("profile", _profile, flags.profile, "make or extend the latency table of this machine, or of a board of your own"),
    ("dashboard", _dashboard, flags.dashboard, "a web page over the studies: watch, resume, stop, extend, take home"),
    ("targets", _targets, flags.targets, "the devices: runtime, threads, tier, error, where their figures come from"),
    ("models", _models, flags.models, "the published reference models, with published and own figures"),
    ("layouts", _layouts, flags.layouts, "choose PBConv layouts for a network by the dispersion of its kernels"),
    ("calibrate", _calibrate, flags.calibrate, "derive the calibrated tables from published figures and counts again"),
    ("count", _count, flags.count, "count the instructions that ncnn executes on 32-bit ARM, under QEMU"),
)


if __name__ == "__main__":
    sys.exit(main())
