"""What can be taken home from a study: a short list of files, and the exported front as one archive."""

import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nas.members import FRONT_CSV, FRONT_JSON
from nas.report import REPORT
from nas.settings import STUDY_FILE
from nas.study_log import LOG
from nas.web.export_job import EXPORTED

# Beside these only what lies in the folder of a model.
STUDY_FILES = (FRONT_JSON, FRONT_CSV, REPORT, STUDY_FILE, LOG)
MODEL_FILE = re.compile(r"models/[0-9]+/([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")

ARCHIVE = "exported.zip"


@dataclass(frozen=True, slots=True)
class Download:
    """A link: its words, its path below the study, the name to save under, its size in words."""

    title: str
    path: str
    saved: str
    size: str


def file_to_send(folder: Path, path: str) -> Path | None:
    """The file of that path below a study's folder, None where there is none that may leave it.

    Neither a path that climbs, nor a link that leads elsewhere, gets out of the folder.
    """
    if path not in STUDY_FILES and MODEL_FILE.fullmatch(path) is None:
        return None
    found = (folder / path).resolve()
    return found if found.is_relative_to(folder.resolve()) and found.is_file() else None


def study_downloads(folder: Path) -> list[Download]:
    """The files of a finished study; nothing before there is a front."""
    if not (folder / FRONT_JSON).exists():
        return []
    archive = []
    if (folder / EXPORTED).is_dir():
        count = sum(1 for path in (folder / EXPORTED).iterdir() if path.is_dir())
        size = sum(path.stat().st_size for path in (folder / EXPORTED).rglob("*") if path.is_file())
        title = f"The exported front (zip, {count} network{'s' if count != 1 else ''})"
        archive = [Download(title, ARCHIVE, f"{folder.name}-exported.zip", size_text(size))]
    named = (
        ("The front as JSON", FRONT_JSON),
        ("The front as a table (CSV)", FRONT_CSV),
        ("Report", REPORT),
        ("Settings and versions", STUDY_FILE),
        ("The whole log", LOG),
    )
    return [*archive, *(_download(folder, title, path) for title, path in named if (folder / path).is_file())]


def model_downloads(folder: Path, trial: int) -> list[Download]:
    """The files of a trained network."""
    models = folder / "models" / str(trial)
    paths = (path.relative_to(folder).as_posix() for path in sorted(models.rglob("*")) if path.is_file())
    return [_download(folder, path.split("/", 2)[2], path) for path in paths if file_to_send(folder, path) is not None]


def _download(folder: Path, title: str, path: str) -> Download:
    saved = f"{folder.name}-{path.removeprefix('models/').replace('/', '-')}"
    return Download(title, f"files/{path}", saved, size_text((folder / path).stat().st_size))


def size_text(size_bytes: int) -> str:
    """So many bytes in the unit that suits them."""
    for unit, size in (("MB", 1_000_000), ("kB", 1000)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes} bytes"


def export_archive(folder: Path) -> IO[bytes]:
    """What was exported last, as an open zip file that vanishes when closed.

    Raises:
        FileNotFoundError: nothing was.
    """
    exported = (folder / EXPORTED).resolve()
    if not exported.is_relative_to(folder.resolve()) or not exported.is_dir():
        raise FileNotFoundError(exported)
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it once it is sent
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for path in sorted(exported.rglob("*")):
            if path.is_file() and path.resolve().is_relative_to(exported):
                file.write(path, f"{folder.name}/{path.relative_to(exported).as_posix()}")
    archive.seek(0)
    return archive
