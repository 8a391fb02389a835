"""A job folder as one archive to carry to a board by hand, and what comes back from there."""

import gzip
import io
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from hardware import board
from hardware.job_folder import JobList, load_jobs
from hardware.job_results import JobResults, parse_results
from hardware.strict_yaml import ConfigError
from hardware.transports import files_to_measure

FOLDER = "edge-nas-bundle"

# Thousands of jobs stay far below; nobody's disk or memory is filled by less.
LARGEST_ARCHIVE_BYTES = 2 * 1024**3
LARGEST_SAMPLES_BYTES = 256 * 1024**2
MOST_FILES = 100_000
_BLOCK_BYTES = 2**20

_README = """\
This folder measures how long {jobs} models take on this board with {runtime}.

1. It needs Linux with Python 3.7 or newer, and {runtime}:

       python3 -m pip install {wheel}

2. Leave the board alone otherwise, let it cool, and run in this folder:

       python3 board.py jobs

   Allow {minutes} min or more. It may be interrupted by Ctrl-C; the same command goes on from there.

3. Send back the file jobs/samples.jsonl, or all of it:

       tar czf results.tar.gz jobs

The file board.py is all that runs. It opens the models, and reads of the machine what processor, system and clocks
it has, how warm it is and how busy; all of it is written to jobs/samples.jsonl, as text.
"""


def write_bundle(folder: Path, file: Path) -> None:
    """Puts the runner, the job folder and a short README.txt into one .tar.gz.

    Raises:
        ConfigError: the folder breaks a rule.
    """
    jobs = load_jobs(folder)
    partial = file.with_name(f".{file.name}.partial")
    with tarfile.open(partial, "w:gz") as archive:
        for name, path in files_to_measure(folder, jobs).items():
            member = archive.gettarinfo(path, f"{FOLDER}/{name}")
            # Who made it is nobody's business.
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            with path.open("rb") as content:
                archive.addfile(member, content)
        readme = _readme(jobs).encode()
        member = tarfile.TarInfo(f"{FOLDER}/README.txt")
        member.size = len(readme)
        archive.addfile(member, io.BytesIO(readme))
    partial.replace(file)


def _readme(jobs: JobList) -> str:
    protocol = jobs.protocol
    seconds = len(jobs.jobs) * (protocol.warmup_s + protocol.min_s)
    return _README.format(
        jobs=len(jobs.jobs), runtime=jobs.runtime, wheel=board.WHEELS[jobs.runtime], minutes=round(1 + seconds / 60)
    )


def import_results(file: Path, folder: Path) -> JobResults:
    """What a board measured of the jobs in `folder`, which is kept there: samples.jsonl itself, or an archive with it.

    Nothing is unpacked to the disk under a name from the archive.

    Raises:
        ConfigError: the file cannot be read, is too large or unsafe, or its records break a rule.
    """
    name, text = _brought(file)
    results = parse_results(text, folder, name=name)
    partial = folder / f".{board.SAMPLES}.partial"
    partial.write_bytes(text)
    partial.replace(folder / board.SAMPLES)
    return results


def _brought(file: Path) -> tuple[str, bytes]:
    """The text of samples.jsonl, and what messages call it."""
    try:
        with file.open("rb") as content:
            is_packed = content.read(2) == b"\x1f\x8b"
        if not (is_packed or tarfile.is_tarfile(file)):
            return str(file), _samples_text(file)
        with tempfile.TemporaryFile() as plain:
            with file.open("rb") as packed:
                _copy(gzip.GzipFile(fileobj=packed) if is_packed else packed, plain, file)
            plain.seek(0)
            with tarfile.open(fileobj=plain, mode="r:") as archive:
                name, text = _samples_in(archive, file)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ConfigError(f"{file}: a samples.jsonl or an archive with it is needed, got {error}") from error
    return f"{file}:{name}", text


def _samples_text(file: Path) -> bytes:
    size = file.stat().st_size
    if size > LARGEST_SAMPLES_BYTES:
        raise ConfigError(f"{file}: must have at most {LARGEST_SAMPLES_BYTES} bytes, got {size}")
    return file.read_bytes()


def _copy(source: gzip.GzipFile | IO[bytes], plain: IO[bytes], file: Path) -> None:
    """Unpacks only as much as is allowed, whatever the archive says of itself."""
    left = LARGEST_ARCHIVE_BYTES
    while block := source.read(min(left + 1, _BLOCK_BYTES)):
        left -= len(block)
        if left < 0:
            raise ConfigError(f"{file}: must have at most {LARGEST_ARCHIVE_BYTES} bytes unpacked, got more")
        plain.write(block)


def _samples_in(archive: tarfile.TarFile, file: Path) -> tuple[str, bytes]:
    found = []
    for number, member in enumerate(archive):
        if number >= MOST_FILES:
            raise ConfigError(f"{file}: must have at most {MOST_FILES} files, got more")
        # Refuses what points out of the archive; the destination only has to be some folder.
        tarfile.data_filter(member, "/nowhere")
        if member.isreg() and Path(member.name).name == board.SAMPLES:
            found.append(member)
    if len(found) != 1:
        raise ConfigError(f"{file}: must have one {board.SAMPLES}, got {len(found)}; send back the jobs folder only")
    (member,) = found
    if member.size > LARGEST_SAMPLES_BYTES:
        raise ConfigError(f"{file}:{member.name}: must have at most {LARGEST_SAMPLES_BYTES} bytes, got {member.size}")
    content = archive.extractfile(member)
    assert content is not None
    return member.name, content.read()
