"""`nas report`: the page about a study, and its picture by itself."""

import json
from pathlib import Path

from hardware.strict_yaml import ConfigError
from nas.exit_codes import DONE
from nas.files import write_atomically
from nas.front_picture import front_picture, save_png, svg
from nas.members import read_front
from nas.report import REPORT, write_report
from nas.run_record import read_run_record
from nas.view import View, study_folder


def report(name: str, out: Path | None, svg_file: Path | None, png_file: Path | None, view: View) -> int:
    """Writes what was asked for and says where it is."""
    folder = study_folder(name, view)
    document, run = read_front(folder), read_run_record(folder)
    written = {"html": out or folder / REPORT}
    written |= {kind: path for kind, path in (("svg", svg_file), ("png", png_file)) if path is not None}
    for path in written.values():
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent}: no such folder; make it first")
    write_report(folder, out)
    picture = front_picture(run["finalists"], {each["trial"] for each in document["members"]}, document["budget_ms"])
    if svg_file is not None:
        write_atomically(svg_file, svg(picture, alone=True) + "\n")
    if png_file is not None:
        save_png(picture, png_file)
    if view.json:
        print(json.dumps({kind: str(path) for kind, path in written.items()}, indent=2))
    elif not view.quiet:
        for path in written.values():
            print(path)
    return DONE
