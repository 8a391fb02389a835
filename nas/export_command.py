"""`nas export`: trained members of a study as folders that stand alone."""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.strict_yaml import ConfigError
from nas.exit_codes import BROKEN_CERTIFICATE, DONE
from nas.export import Exported, ExportPlan, check_destination, chosen_trials, export_members, open_trained
from nas.export_formats import formats_named
from nas.view import View, study_folder


@dataclass(frozen=True, slots=True)
class ExportWords:
    """The command as it was typed; trials None means the front, batch None any number of images at a time."""

    study: str
    trials: tuple[int, ...] | None
    formats: str
    batch: int | None
    int8: bool
    max_drop: float
    out: Path
    force: bool


def export(words: ExportWords, view: View) -> int:
    """Writes the folders and says what is in them; 4 where a format had to be left out."""
    if words.batch is not None and words.batch < 1:
        raise ConfigError(f"batch: at least 1 image, got {words.batch}")
    if not 0 <= words.max_drop <= 1:
        raise ConfigError(f"max-drop: a share of the images from 0 to 1, got {words.max_drop:g}")
    formats = formats_named(words.formats)
    if words.int8 and all(each.name != "onnx" for each in formats):
        raise ConfigError(f"int8: made of the ONNX model; add onnx to --format, got {words.formats!r}")
    study = open_trained(study_folder(words.study, view))
    trials = chosen_trials(study, words.trials)
    check_destination(words.out, force=words.force)
    plan = ExportPlan(formats, words.batch, words.max_drop if words.int8 else None)

    def note(name: str) -> None:
        if not view.quiet:
            print(f"export: {name} for {len(trials)} member{'s' if len(trials) != 1 else ''}", file=sys.stderr)

    # Libraries print while they work.
    with redirect_stdout(sys.stderr):
        exported = export_members(study, trials, plan, words.out, note)
    if view.json:
        print(json.dumps({"out": str(words.out), "members": [each.manifest for each in exported]}, indent=2))
    else:
        _print(exported, words.out)
    problems = [problem for each in exported for problem in each.problems]
    for problem in problems:
        print(f"nas: {problem}", file=sys.stderr)
    return BROKEN_CERTIFICATE if problems else DONE


def _print(exported: Sequence[Exported], out: Path) -> None:
    from nas.console import print_table

    print_table(
        f"exported to {out}",
        ("trial", "format", "bytes", "differs by", "top-1 agrees", "accuracy"),
        (row for each in exported for row in _rows(each)),
    )
    print("Each folder has manifest.json, spec.yaml and an example for each format: python example_onnx.py IMAGE.")


def _rows(each: Exported) -> list[list[str]]:
    accuracy = f"{each.manifest['accuracy']['value']:.4f}"
    rows = []
    for name, entry in each.manifest["formats"].items():
        if "refused" in entry:
            rows.append([str(each.trial), name, "left out", "-", "-", "-"])
            continue
        worst = max(file["max_rel"] for file in entry["parity"].values())
        agreement = min(file["top1_agreement"] for file in entry["parity"].values())
        rows.append([str(each.trial), name, _bytes(each.manifest, entry), f"{worst:.1e}", f"{agreement:.1%}", accuracy])
    int8 = each.manifest.get("int8")
    if int8 is not None:
        size = "left out" if "refused" in int8 else _bytes(each.manifest, int8)
        after = f"{int8['accuracy_after']:.4f}" if "accuracy_after" in int8 else "-"
        rows.append([str(each.trial), "onnx int8", size, "-", "-", after])
    return rows


def _bytes(manifest: dict[str, Any], entry: dict[str, Any]) -> str:
    return f"{sum(manifest['files'][name]['bytes'] for name in entry['files']):,}"
