"""The flags of every command."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What eight bits may cost, as a share of the images.
MAX_DROP = 0.01

SETTING_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
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


def search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study_yaml", nargs="?", type=Path, metavar="STUDY.yaml", help="settings; flags override them")
    _add_settings(parser)
    _add_common(parser)


def resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="name or folder of the study")
    parser.add_argument("--trials", type=int, metavar="N", help="so many more than it has")
    parser.add_argument("--finalists", type=int, metavar="K", help="so many in place of those it has")
    parser.add_argument("--budget", help="another budget: trials keep, and count where they keep it")
    parser.add_argument("--time", help="stop searching after so long, such as 10m")
    parser.add_argument("--training-time", help="train no more candidates than fit into so long, such as 10m")
    parser.add_argument("--evaluation-time", help="give up a candidate whose first look takes longer, such as 10m")
    parser.add_argument("--workers", type=int, metavar="N", help="processes or Ray tasks at a time")
    parser.add_argument("--backend", metavar="local|ray|inline", help="where candidates are evaluated")
    parser.add_argument("--ray-address", metavar="A", help="a Ray cluster that runs already: HOST:PORT or auto")
    parser.add_argument("--cpus-per-trial", type=float, metavar="N", help="cores, and threads, of an evaluation")
    parser.add_argument("--gpus-per-trial", type=float, metavar="N", help="GPUs that Ray sets aside for an evaluation")
    parser.add_argument(
        "--accept-changed-table",
        action="store_true",
        help="go on although the target's latency table has changed: latencies are taken from the new one",
    )
    _add_common(parser)


def trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="STUDY",
        help="a study that is there, or a study file; flags say the rest as for search",
    )
    _add_settings(parser)
    _add_common(parser)


def show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="name or folder of the study")
    parser.add_argument("--trial", type=int, metavar="N", help="one member")
    _add_common(parser)


def export(parser: argparse.ArgumentParser) -> None:
    _add_study(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--front", action="store_true", help="every member of the front, as without --trial")
    which.add_argument("--trial", type=int, nargs="+", metavar="N", help="these trained members")
    parser.add_argument("--format", default="onnx", metavar="F,F", help="of onnx, ncnn, mnn and torch; default: onnx")
    parser.add_argument("--batch", type=int, metavar="N", help="fix the batch of ONNX and torch, which is free without")
    parser.add_argument("--int8", action="store_true", help="beside model.onnx a model.int8.onnx in eight bits")
    parser.add_argument(
        "--max-drop",
        type=float,
        default=MAX_DROP,
        metavar="SHARE",
        help=f"leave eight bits out where they cost more validation accuracy than this; default: {MAX_DROP}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to; a new or empty folder")
    parser.add_argument("--force", action="store_true", help="replace members in a folder that is not empty")
    _add_voice(parser)


def train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="STUDY:TRIAL, a spec file or a published network")
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="how long; the learning rate follows it")
    parser.add_argument("--data", help="as for search; default: the study's, or digits")
    parser.add_argument("--data-limit", type=int, metavar="N", help="use at most so many training images")
    parser.add_argument("--seed", type=int, help="where all randomness comes from; default: the study's, or 0")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML with what to change of the data's recipe")
    parser.add_argument("--target", help="say what it takes on this device; default: the study's")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on the device")
    parser.add_argument("--runtime", metavar="R", help="the device's runtime")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="epochs between; default: about a minute")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to, and where the same command goes on from")
    parser.add_argument("--studies", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")
    _add_families(parser)
    _add_voice(parser)


def report(parser: argparse.ArgumentParser) -> None:
    _add_study(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to; default: report.html in the study's folder")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="the picture of the front by itself")
    parser.add_argument("--png", type=Path, metavar="FILE", help="the same as pixels")
    _add_voice(parser)


def predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a spec file, STUDY:TRIAL or a published network")
    _add_target(parser)
    _add_families(parser)
    _add_common(parser)


def measure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="a spec file, STUDY:TRIAL, a published network or MODEL.onnx")
    _add_target(parser)
    _add_families(parser)
    _add_common(parser)


def profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="host, or a name of your own for your board")
    parser.add_argument(
        "--anchors",
        action="store_true",
        help="measure a handful of networks on your own board of a calibrated target, and rescale its table by them",
    )
    parser.add_argument("--space", default="edge-small", help="whose kernels to measure")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads on the device")
    parser.add_argument("--runtime", metavar="R", help="onnxruntime, ncnn or mnn")
    parser.add_argument("--time", default="5m", help="how long to measure, such as 5m")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--ssh", metavar="USER@HOST", help="measure there, by ssh")
    way.add_argument("--adb", metavar="SERIAL", help="measure on this Android device, by adb")
    way.add_argument("--bundle", type=Path, metavar="FILE", help="write an archive to carry to the board by hand")
    way.add_argument("--import", type=Path, metavar="FILE", dest="brought", help="take in what came back of a bundle")
    parser.add_argument("--adb-python", default="python3", metavar="PATH", help="Python on the Android device")
    _add_common(parser)


def dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="other than this machine alone needs a password")
    parser.add_argument("--port", type=int, default=8080, help="where to listen")
    parser.add_argument("--out", type=Path, default=Path("studies"), metavar="DIR", help="where studies are kept")
    parser.add_argument("--storage", metavar="URL", help="list and show the studies of a database as well")
    parser.add_argument("--optuna-writes", action="store_true", help="let Optuna's own pages change that database")


def targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", help="one of them in full")
    _add_common(parser)


def models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one of them in full, block by block")
    _add_common(parser)


def layouts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a spec file, STUDY:TRIAL, a published network or MODULE:NAME of your own")
    parser.add_argument("--data", default="digits", help="digits, fashion-mnist[:FOLDER], cifar10:FOLDER or a folder")
    parser.add_argument("--data-limit", type=int, metavar="N", help="use at most so many training images")
    parser.add_argument("--resolution", type=int, metavar="N", help="pixels of a module's images; default: the data's")
    parser.add_argument("--candidates", type=int, default=10, metavar="N", help="how many to try; the paper has 10")
    parser.add_argument("--iterations", type=int, default=20, metavar="N", help="how long each trains")
    parser.add_argument("--scope", default="network", help="what shares a layout: network, stage or layer")
    parser.add_argument("--score", default="dispersion", help="what wins: dispersion, or its gain over the start")
    parser.add_argument("--epochs", type=int, default=100, metavar="N", help="training whose share the cost is told as")
    parser.add_argument("--seed", type=int, default=0, help="where all randomness comes from")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads to train with")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the spec with its layouts, or JSON for a module")
    _add_common(parser)


def calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", help="one board with every network; without, a line for each board")
    parser.add_argument("--write", action="store_true", help="replace the shipped tables")
    _add_common(parser)


def count(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--space", action="append", default=[], metavar="NAME", help="a space, 'references' or 'operations'; repeatable"
    )
    which.add_argument("--benchmark", action="store_true", help="the layers of ncnn's benchmark networks")
    which.add_argument("--check", type=int, metavar="N", help="N of the shipped counts once more, to compare")
    parser.add_argument("--time", default="10m", help="stop after so long, such as 10m; the same command goes on")
    parser.add_argument("--fetch", action="store_true", help="get from Debian and PyPI what is needed for it, 60 MB")
    parser.add_argument("--write", action="store_true", help="add what was counted to the shipped counts")
    _add_common(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for flag, kind, text in SETTING_FLAGS:
        parser.add_argument(f"--{flag}", type=kind, help=text, metavar=flag.upper().replace("-", "_"))


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
