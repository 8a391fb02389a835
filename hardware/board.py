"""Measures the models of a job folder: `python3 board.py JOBFOLDER`, on this machine or on a board without our package.

Needs Python 3.7, its standard library and the runtime's wheel, nothing else: the file is copied to boards as it is.
The folder holds the models and jobs.json, whose form `hardware.job_folder` defines. What is found out is appended to
samples.jsonl in the folder, one JSON object a line, in the order in which it happened:

    {"machine": {...}, "settings": {...}, "at": "start"}    what measures; once more with "at": "end"
    {"sentinel": ID, "median_ms": 1.5, "clock_khz": ...}    how fast the sentinel ran between two batches
    {"begin": ID}                                           a job starts; the last line of a process that crashed
    {"interrupted": ID}                                     the job was stopped from outside and did not crash
    {"id": ID, "samples_ms": [...], "attempt": 1, ...}      every run of a job, in ms
    {"id": ID, "error": "..."}                              the runtime cannot run the job
    {"disturbed": [ID, ...], "why": "...", ...}             these were measured while something else went on
    {"accepted": {ID: ATTEMPT, ...}, "disturbed": false}    which attempt counts; true where every one was disturbed,
                                                            null where no sentinel is there to tell

Of more than 200 runs the 101 quantiles at 0, 1, ..., 100 % stand as "quantiles_ms" in the place of "samples_ms".
The command goes on where it was interrupted. Exit codes: 0 done or out of time, 2 refused, 3 the runtime crashes before
any job, 4 interrupted.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORMAT = 1
SAMPLES = "samples.jsonl"
JOBS = "jobs.json"
LOCK = "lock"

# More runs than this are kept as quantiles at every percent, which keeps a result at a few kilobytes.
MOST_SAMPLES = 200
PERCENTS = 100

# How fast the sentinel is undisturbed: its fastest quarter. Single readings are far faster where a processor clocks up
# for a moment, and would put everything else in doubt.
UNDISTURBED_SHARE = 0.25

# A job that took the runtime down so often is not tried again.
CRASHES = 2

INTERRUPTED = 4
CRASHED_EARLY = 3
REFUSED = 2


class Refused(Exception):
    """The folder cannot be measured here; the text says why and what to do."""


class JobFailed(Exception):
    """The runtime cannot run one of the models; the others are not touched by it."""


class Bench(NamedTuple):
    """What jobs are timed on: `machine` and `conditions` describe it, `time_job` runs a job and returns its timing."""

    machine: Callable[[], dict[str, Any]]
    conditions: Callable[[], dict[str, Any]]
    time_job: Callable[[dict[str, Any]], dict[str, Any]]


# Each opener of RUNTIMES returns the runtime's version and a function (path, job, threads) -> run() that opens a model
# and fills its inputs, so that run() is one inference and nothing else.


def _open_onnxruntime() -> tuple[str, Callable[..., Callable[[], object]]]:
    import numpy
    import onnxruntime

    def open_model(path: str, job: dict[str, Any], threads: int) -> Callable[[], object]:
        options = onnxruntime_options(threads)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = _noise(job, numpy)
        outputs = [job["output"]]
        return lambda: session.run(outputs, feed)

    return str(onnxruntime.__version__), open_model


def onnxruntime_options(threads: int) -> Any:
    """One operation after another on so many threads, which sleep between runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


# The hint WINOGRAD_MEMORY_LEVEL at 1. Left at 3, a 3x3 convolution runs on tiles so large that their rounding errors
# reach 3e-4 of the largest output; at 1 they stay at 1e-6, and networks take 0 to 8 % longer. An application has to set
# the same hint to get the same numbers: setSessionHint(Interpreter::WINOGRAD_MEMORY_LEVEL, 1).
MNN_SMALLER_TILES = (3, 1)


def _open_mnn() -> tuple[str, Callable[..., Callable[[], object]]]:
    import MNN

    def open_model(path: str, job: dict[str, Any], threads: int) -> Callable[[], object]:
        interpreter, session = _load_mnn(path, job, threads)

        def run() -> None:
            code = interpreter.runSession(session)
            if code != 0:
                raise JobFailed(f"MNN stops with code {code}")

        return run

    return str(MNN.version()), open_model


def _load_mnn(path: str, job: dict[str, Any], threads: int) -> tuple[Any, Any]:
    import MNN
    import numpy

    interpreter = MNN.Interpreter(path)
    interpreter.setSessionHint(*MNN_SMALLER_TILES)
    session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
    for name, values in _noise(job, numpy).items():
        tensor = interpreter.getSessionInput(session, name)
        if tuple(tensor.getShape()) != values.shape:
            raise JobFailed(f"input {name!r} has the shape {tuple(tensor.getShape())} in the model")
        kinds = (MNN.Halide_Type_Float, values, MNN.Tensor_DimensionType_Caffe)
        tensor.copyFrom(MNN.Tensor(values.shape, *kinds))
    interpreter.getSessionOutput(session, job["output"])
    return interpreter, session


# What ncnn would rather compute with where the processor can.
NCNN_NOT_FP32 = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_vulkan_compute",
)


def _noise(job: dict[str, Any], numpy: Any) -> dict[str, Any]:
    """The same noise for every input of that shape, on every machine."""
    noise = numpy.random.RandomState(0)
    return {each["name"]: noise.standard_normal(each["shape"]).astype(numpy.float32) for each in job["inputs"]}


def _open_ncnn() -> tuple[str, Callable[..., Callable[[], object]]]:
    import ncnn

    def open_model(path: str, job: dict[str, Any], threads: int) -> Callable[[], object]:
        net, mats = _load_ncnn(path, job, threads)
        output = job["output"]

        def run() -> None:
            extractor = net.create_extractor()
            for name, mat in mats:
                if extractor.input(name, mat) != 0:
                    raise JobFailed(f"the model has no input {name!r}")
            code, _ = extractor.extract(output)
            if code != 0:
                raise JobFailed(f"ncnn stops with code {code} at output {output!r}")

        return run

    return str(ncnn.__version__), open_model


def _load_ncnn(path: str, job: dict[str, Any], threads: int) -> tuple[Any, list[tuple[str, Any]]]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    for option in NCNN_NOT_FP32:
        setattr(net.opt, option, False)
    if net.load_param(path) != 0:
        raise JobFailed("ncnn cannot read the model")
    # Weights of zero take as long as others, and the board needs the text of the model only.
    if net.load_model(ncnn.DataReaderFromEmpty()) != 0:
        raise JobFailed("ncnn cannot make weights for the model")
    # Without numpy, which many boards lack, a Mat can be filled with one number only.
    mats = []
    for each in job["inputs"]:
        mat = ncnn.Mat(*reversed(each["shape"][1:]))
        mat.fill(0.01)
        mats.append((each["name"], mat))
    return net, mats


RUNTIMES: dict[str, Callable[[], tuple[str, Callable[..., Callable[[], object]]]]] = {
    "onnxruntime": _open_onnxruntime,
    "ncnn": _open_ncnn,
    "mnn": _open_mnn,
}


# --- What a runtime's own clock says of each operator. Each of TRACERS takes (path, job, threads, runs) and returns
# what was run, in the order of running, as [name, [ms of every run]].

# The first runs of a model are slower than the later ones.
UNTRACED_RUNS = 2


def _trace_onnxruntime(path: str, job: dict[str, Any], threads: int, runs: int) -> list[list[Any]]:
    import numpy
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "trace")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = _noise(job, numpy)
        for _ in range(UNTRACED_RUNS + runs):
            session.run([job["output"]], feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    suffix = "_kernel_time"
    # Names that the runtime gives may stand for several operators.
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            operator = event["name"][: -len(suffix)], str(event["args"].get("node_index"))
            # Whole microseconds, rounded down.
            found.setdefault(operator, []).append((event["dur"] + 0.5) / 1e3)
    return [[name, times[UNTRACED_RUNS:]] for (name, _), times in found.items()]


def _trace_ncnn(path: str, job: dict[str, Any], threads: int, runs: int) -> list[list[Any]]:
    net, mats = _load_ncnn(path, job, threads)
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()[2:]]
    made = [name for line in lines for name in line[4 + int(line[2]) : 4 + int(line[2]) + int(line[3])]]
    asked = set(job["trace"])
    names = [name for name in made if name in asked or name == job["output"]]
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(UNTRACED_RUNS + runs):
        extractor = net.create_extractor()
        for name, mat in mats:
            extractor.input(name, mat)
        for name in names:
            begin = time.perf_counter()
            # What was asked for before is there already, so this is the time from there. Type 1 leaves the value in the
            # layout in which the next layer takes it.
            extractor.extract(name, 1)
            took_ms = 1e3 * (time.perf_counter() - begin)
            if number >= UNTRACED_RUNS:
                found[name].append(took_ms)
    return [[name, times] for name, times in found.items()]


def _trace_mnn(path: str, job: dict[str, Any], threads: int, runs: int) -> list[list[Any]]:
    interpreter, session = _load_mnn(path, job, threads)
    found: dict[str, list[float]] = {}
    count, start = 0, 0.0

    def begin(tensors: object, operator: object) -> bool:
        nonlocal start
        start = time.perf_counter()
        return True

    def end(tensors: object, operator: Any) -> bool:
        took_ms = 1e3 * (time.perf_counter() - start)
        if count >= UNTRACED_RUNS:
            found.setdefault(operator.getName(), []).append(took_ms)
        return True

    for count in range(UNTRACED_RUNS + runs):  # noqa: B007 -- read by end()
        interpreter.runSessionWithCallBackInfo(session, begin, end)
    return [[name, times] for name, times in found.items()]


TRACERS: dict[str, Callable[[str, dict[str, Any], int, int], list[list[Any]]]] = {
    "onnxruntime": _trace_onnxruntime,
    "ncnn": _trace_ncnn,
    "mnn": _trace_mnn,
}

# Of an operator's runs the fastest two thirds count: the mean of them, since a clock may show whole microseconds only.
COUNTED_SHARE = 2 / 3


def trace_summary(operators: list[list[Any]]) -> list[list[Any]]:
    """Each operator with one time in ms."""
    found = []
    for name, times in operators:
        kept = sorted(times)[: max(1, round(COUNTED_SHARE * len(times)))]
        found.append([name, round(sum(kept) / len(kept), 7)])
    return found


# What import calls them, and what pip is told. ncnn's wheel asks for libraries that measuring does not need, of which
# numpy has no wheel for 32-bit boards.
MODULES = {"onnxruntime": "onnxruntime", "ncnn": "ncnn", "mnn": "MNN"}
WHEELS = {"onnxruntime": "onnxruntime", "ncnn": "--no-deps ncnn", "mnn": "MNN"}


def time_runs(run: Callable[[], object], protocol: dict[str, Any]) -> tuple[list[float], int]:
    """The wall time of single runs in ms, one at a time after a warm-up, and how many runs warmed up.

    It goes on for `min_runs` and for `min_s`, whichever lasts longer, and stops at `max_s` with at least one run.
    """
    begin = time.perf_counter()
    warmup_runs = 0
    while warmup_runs == 0 or time.perf_counter() - begin < protocol["warmup_s"]:
        run()
        warmup_runs += 1
    samples_ms: list[float] = []
    start = time.perf_counter()
    passed = 0.0
    while not samples_ms or (
        passed < protocol["max_s"] and (len(samples_ms) < protocol["min_runs"] or passed < protocol["min_s"])
    ):
        begin = time.perf_counter()
        run()
        end = time.perf_counter()
        samples_ms.append(round(1e3 * (end - begin), 6))
        passed = end - start
    return samples_ms, warmup_runs


def quantile(ordered: list[float], share: float) -> float:
    """The quantile of values in ascending order, on the straight line between the two values next to it."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summary(samples_ms: list[float], warmup_runs: int) -> dict[str, Any]:
    """The part of a result that says how long the runs took."""
    counts = {"runs": len(samples_ms), "warmup_runs": warmup_runs}
    if len(samples_ms) <= MOST_SAMPLES:
        return dict(counts, samples_ms=samples_ms)
    ordered = sorted(samples_ms)
    quantiles_ms = [round(quantile(ordered, percent / PERCENTS), 6) for percent in range(PERCENTS + 1)]
    return dict(counts, quantiles_ms=quantiles_ms)


def _typical_ms(timing: dict[str, Any]) -> float:
    """One number for how fast the sentinel ran: the median, or the mean where a benchmark program tells no more."""
    if "samples_ms" in timing:
        return float(statistics.median(timing["samples_ms"]))
    if "quantiles_ms" in timing:
        return float(timing["quantiles_ms"][PERCENTS // 2])
    return float(timing["summary_ms"]["avg"])


def describe_hardware(root: Path = Path("/")) -> dict[str, Any]:
    """What /proc and /sys below `root` say of processor, clocks, temperatures and load; None where nothing."""
    numbers = _core_numbers(root)
    return {
        "board": _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name"),
        "cpu": _processor(root),
        "cores": len(numbers) or None,
        "clocks": [_clock(root, number) for number in numbers],
        "temperatures_c": _temperatures(root),
        "load": _load(root),
    }


def describe_system() -> dict[str, Any]:
    """Which system and Python this is, which cores the process may use, and the time in UTC."""
    return {
        "core_set": sorted(os.sched_getaffinity(0)),
        "os": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": utc_date(),
    }


def utc_date() -> str:
    """The time in UTC to the second, year first."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_conditions(cores: Iterable[int], root: Path = Path("/")) -> dict[str, Any]:
    """The highest clock of `cores`, the highest temperature and the load; None where it cannot be read."""
    clocks = [khz for khz in (_clock(root, core)["current_khz"] for core in cores) if khz]
    return {
        "clock_khz": max(clocks) if clocks else None,
        "temperature_c": max(_temperatures(root).values(), default=None),
        "load1": next(iter(_load(root) or ()), None),
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        # Every system and board shows other files; what is missing is recorded as unknown.
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _core_numbers(root: Path) -> list[int]:
    lines = (_read(root / "proc/cpuinfo") or "").splitlines()
    found = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == "processor")
    return [int(number) for number in found if number.isdigit()]


def _processor(root: Path) -> str | None:
    """The model name, or the codes of maker and part, which is all that ARM cores give away."""
    values: dict[str, list[str]] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), []).append(value.strip())
    if "CPU part" in values:
        maker = values.get("CPU implementer", ["?"])[0]
        return f"ARM implementer {maker} part {', '.join(sorted(set(values['CPU part'])))}"
    names = values.get("model name") or values.get("Hardware") or values.get("uarch")
    return names[0] if names else None


def _clock(root: Path, core: int) -> dict[str, Any]:
    folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
    return {
        "core": core,
        "governor": _read(folder / "scaling_governor"),
        "min_khz": _number(folder / "scaling_min_freq"),
        "max_khz": _number(folder / "scaling_max_freq"),
        "current_khz": _number(folder / "scaling_cur_freq"),
    }


def _temperatures(root: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        millidegrees = _number(zone / "temp")
        if millidegrees is not None:
            found[f"{zone.name} {_read(zone / 'type') or ''}".strip()] = millidegrees / 1000
    return found


def _load(root: Path) -> list[float] | None:
    text = _read(root / "proc/loadavg")
    return [float(number) for number in text.split()[:3]] if text else None


def _tell_nobody(line: str) -> None:
    """Where records go once the listener is gone."""


class Journal:
    """What samples.jsonl says so far. Once resumed, `write` appends to it, and `tell` hears each record as a line."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] | None = None
        self.machine: dict[str, Any] | None = None
        self.errors: dict[str, str] = {}
        # By job: the results, by attempt counted from 1.
        self.results: dict[str, dict[int, dict[str, Any]]] = {}
        # By job and attempt: how slow the sentinel was around it. Lower is better.
        self.marks: dict[str, dict[int, float]] = {}
        # By job: the attempt that counts, and whether it was disturbed, None without a sentinel.
        self.accepted: dict[str, tuple[int, bool | None]] = {}
        # Measured and not judged yet, and what the sentinel showed since the last judgement.
        self.open: list[str] = []
        self.readings: list[dict[str, Any]] = []
        self.best_khz = 0
        # Every reading of the sentinel, in ascending order.
        self._sentinel_ms: list[float] = []
        self.crashes: dict[str, int] = {}
        self.running: str | None = None
        self._file: Any = None
        self._tell: Callable[[str], None] = _tell_nobody

    @classmethod
    def read(cls, path: Path) -> Journal:
        """What stands in `path`, which is made if need be; a last line that was torn off in the middle is removed.

        Raises:
            Refused: a line is not a record.
        """
        journal = cls()
        # "a+" never empties the file, and makes it where it is missing.
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                journal.note(json.loads(line.decode("utf-8")))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                rule = "the line must be a record of a measurement"
                what_to_do = "remove the file to begin anew"
                raise Refused(f"{path}:{number}: {rule}, got {line[:60]!r} ({error!r}); {what_to_do}") from error
        return journal

    @classmethod
    def resume(cls, path: Path, tell: Callable[[str], None]) -> Journal:
        """What stands in `path`, ready for more until it is closed.

        Raises:
            Refused: a line is not a record.
        """
        journal = cls.read(path)
        journal._file = path.open("a", encoding="utf-8")
        journal._tell = tell
        return journal

    def write(self, record: dict[str, Any]) -> None:
        """Appends the record, before anything else happens, and tells it.

        Raises:
            KeyboardInterrupt: nobody listens any more; the record stands in the file all the same.
        """
        line = json.dumps(record, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        self.note(record)
        try:
            self._tell(line)
        except BrokenPipeError as error:
            self._tell = _tell_nobody
            raise KeyboardInterrupt from error

    def close(self) -> None:
        self._file.close()

    def note(self, record: dict[str, Any]) -> None:
        """Takes in what a record says."""
        for key, take in self._TAKES.items():
            if key in record:
                take(self, record)
                return
        raise ValueError("a record of no known kind")

    def is_done(self, job: str) -> bool:
        return job in self.errors or job in self.accepted

    def verdict(self, job: str) -> tuple[dict[str, Any], bool | None]:
        """The result that counts, and whether it was disturbed: None where no sentinel was timed after it."""
        if job in self.accepted:
            attempt, disturbed = self.accepted[job]
            return self.results[job][attempt], disturbed
        marks = self.marks.get(job, {})
        attempts = self.results[job]
        if max(attempts) not in marks:
            return attempts[max(attempts)], None
        return attempts[self.best_attempt(job)], True

    @property
    def undisturbed_ms(self) -> float:
        """How long the sentinel takes at most in the fastest quarter of its readings."""
        return quantile(self._sentinel_ms, UNDISTURBED_SHARE)

    def best_attempt(self, job: str) -> int:
        """The attempt around which the sentinel was fastest, the latest of equals."""
        marks = self.marks[job]
        return min(marks, key=lambda attempt: (marks[attempt], -attempt))

    def _take_machine(self, record: dict[str, Any]) -> None:
        if record["at"] == "start":
            if self.settings is None:
                self.settings, self.machine = record["settings"], record["machine"]
            self._close_running()

    def _take_begin(self, record: dict[str, Any]) -> None:
        self._close_running()
        self.running = record["begin"]

    def _take_interrupted(self, record: dict[str, Any]) -> None:
        self.running = None

    def _take_sentinel(self, record: dict[str, Any]) -> None:
        self.running = None
        if not self.open:
            # How it ran before a pause says nothing of what comes next.
            self.readings = []
        self.readings.append(record)
        bisect.insort(self._sentinel_ms, record["median_ms"])
        self.best_khz = max(self.best_khz, record["clock_khz"] or 0)

    def _take_error(self, record: dict[str, Any]) -> None:
        self.running = None
        self.errors[record["id"]] = record["error"]

    def _take_result(self, record: dict[str, Any]) -> None:
        self.running = None
        self.results.setdefault(record["id"], {})[record["attempt"]] = record
        self.open.append(record["id"])

    def _take_disturbed(self, record: dict[str, Any]) -> None:
        self._mark(record["disturbed"], record["sentinel_ms"])
        for job in record["disturbed"]:
            self.accepted.pop(job, None)

    def _take_accepted(self, record: dict[str, Any]) -> None:
        self._mark(record["accepted"], record["sentinel_ms"])
        for job, attempt in record["accepted"].items():
            self.accepted[job] = (attempt, record["disturbed"])

    def _mark(self, jobs: Iterable[str], sentinel_ms: float | None) -> None:
        for job in jobs:
            if sentinel_ms is not None:
                self.marks.setdefault(job, {}).setdefault(max(self.results[job]), sentinel_ms)
            if job in self.open:
                self.open.remove(job)
        if not self.open:
            # The last reading behind these jobs is the first before the next ones.
            self.readings = self.readings[-1:]

    def _close_running(self) -> None:
        """A job that began and never ended took its process with it."""
        if self.running is not None:
            self.crashes[self.running] = self.crashes.get(self.running, 0) + 1
            self.running = None

    # The first key that a record has says what it is.
    _TAKES = {  # noqa: RUF012 -- ClassVar would change nothing
        "machine": _take_machine,
        "begin": _take_begin,
        "interrupted": _take_interrupted,
        "sentinel": _take_sentinel,
        "error": _take_error,
        "id": _take_result,
        "accepted": _take_accepted,
        "disturbed": _take_disturbed,
    }


def load_jobs(folder: Path) -> dict[str, Any]:
    """What jobs.json says, checked only as far as this file has to rely on it.

    Raises:
        Refused: the folder has no jobs.json of this format.
    """
    path = folder / JOBS
    try:
        jobs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: a readable file is needed, got {error}; check the path") from error
    if jobs.get("format") != FORMAT:
        what_to_do = "use the board.py that came with the folder"
        raise Refused(f"{path}: format must be {FORMAT}, got {jobs.get('format')!r}; {what_to_do}")
    if jobs["runtime"] not in RUNTIMES:
        raise Refused(f"{path}: runtime must be one of {', '.join(RUNTIMES)}, got {jobs['runtime']!r}")
    return jobs


def settings_of(jobs: dict[str, Any]) -> dict[str, Any]:
    """What every result of a folder has in common."""
    return {name: jobs[name] for name in ("runtime", "threads", "cpus", "protocol")}


def runtime_bench(folder: Path, jobs: dict[str, Any]) -> Bench:
    """A bench of this machine with the runtime's wheel, the process kept on the cores that the jobs ask for.

    Raises:
        Refused: the runtime is not installed, or the machine has no such cores.
    """
    if jobs["cpus"] is not None:
        try:
            os.sched_setaffinity(0, jobs["cpus"])
        except (OSError, ValueError) as error:
            present = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise Refused(f"cpus must be cores of this machine, {present}, got {jobs['cpus']} ({error})") from error
    name = jobs["runtime"]
    try:
        version, open_model = RUNTIMES[name]()
    except ImportError as error:
        what_to_do = f"run `{sys.executable} -m pip install {WHEELS[name]}`"
        raise Refused(f"{name} is needed and cannot be imported ({error}); {what_to_do}") from error
    cores = sorted(os.sched_getaffinity(0))
    opened: dict[str, Callable[[], object]] = {}

    def time_job(job: dict[str, Any]) -> dict[str, Any]:
        path = folder / job["file"]
        try:
            run = opened.get(job["id"]) or open_model(str(path), job, jobs["threads"])
            if job["id"] == jobs["sentinel"]:
                opened[job["id"]] = run
            samples_ms, warmup_runs = time_runs(run, jobs["protocol"])
            extra = {}
            if job.get("trace"):
                operators = TRACERS[name](str(path), job, jobs["threads"], jobs["protocol"]["trace_runs"])
                extra["traced_ms"] = trace_summary(operators)
        except JobFailed:
            raise
        except Exception as error:
            # The runtimes' errors share no class of their own; all of them mean that this model does not run.
            raise JobFailed(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error
        return dict(summary(samples_ms, warmup_runs), **extra, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    def machine() -> dict[str, Any]:
        return dict(describe_hardware(), runtime=name, runtime_version=version, **describe_system())

    return Bench(machine, lambda: read_conditions(cores), time_job)


def measure(jobs: dict[str, Any], bench: Bench, journal: Journal, time_limit_s: float | None) -> None:
    """Runs every job that is not done yet, the first first, until all are or the time is up.

    Raises:
        Refused: the journal is from another machine or of other settings, or the sentinel does not run.
    """
    if all(journal.is_done(job["id"]) for job in jobs["jobs"]):
        return
    machine = bench.machine()
    _check_same(journal, machine, settings_of(jobs))
    journal.write({"machine": machine, "settings": settings_of(jobs), "at": "start", "format": FORMAT, "unit": "ms"})
    deadline = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    _Measuring(jobs, bench, journal, deadline).run()
    journal.write({"machine": bench.machine(), "at": "end"})


# What may not change between the starts that fill one journal.
SAME = ("cpu", "cores", "core_set", "runtime", "runtime_version")


def _check_same(journal: Journal, machine: dict[str, Any], settings: dict[str, Any]) -> None:
    if journal.machine is None:
        return
    before = dict(journal.machine, settings=journal.settings)
    now = dict(machine, settings=settings)
    for name in (*SAME, "settings"):
        if before.get(name) != now.get(name):
            rule = f"{name} must stay what the folder was begun with"
            raise Refused(f"{rule}, {before.get(name)!r}, got {now.get(name)!r}; begin with a fresh folder")


class _Measuring:
    """One pass over the jobs that are left."""

    def __init__(self, jobs: dict[str, Any], bench: Bench, journal: Journal, deadline: float) -> None:
        self._jobs = {job["id"]: job for job in jobs["jobs"]}
        self._protocol = jobs["protocol"]
        self._sentinel = jobs["sentinel"]
        self._bench = bench
        self._journal = journal
        self._deadline = deadline

    def run(self) -> None:
        journal = self._journal
        for job, count in journal.crashes.items():
            if count >= CRASHES and job not in journal.errors:
                journal.write({"id": job, "error": "crashed the runtime"})
        self._time_sentinel()
        if journal.open:
            self._judge(list(journal.open))
        while True:
            left = [job for job in self._jobs if not journal.is_done(job)]
            if not left or self._is_late():
                left = self._found_disturbed_later()
                if not left or self._is_late():
                    return
            self._measure_batch(left[: self._protocol["sentinel_every"]])

    def _measure_batch(self, batch: list[str]) -> None:
        for job in batch:
            if self._is_late():
                break
            self._measure_job(job)
        self._time_sentinel()
        done = [job for job in batch if job in self._journal.open]
        if done and not self._judge(done) and not self._is_late():
            # What slows a machine down, heat above all, passes only if it is left alone.
            time.sleep(min(self._protocol["cooldown_s"], max(0.0, self._deadline - time.monotonic())))
            self._time_sentinel()

    def _measure_job(self, name: str) -> None:
        attempt = len(self._journal.results.get(name, {})) + 1
        before = self._bench.conditions()
        timing = self._time(name)
        if timing is not None:
            after = self._bench.conditions()
            self._journal.write(dict({"id": name}, **timing, before=before, after=after, attempt=attempt))

    def _time(self, name: str) -> dict[str, Any] | None:
        journal = self._journal
        try:
            journal.write({"begin": name})
            return self._bench.time_job(self._jobs[name])
        except JobFailed as error:
            journal.write({"id": name, "error": str(error)})
            return None
        except BaseException:
            # Whatever it is, it can be told, and so it was no crash of the runtime.
            journal.write({"interrupted": name})
            raise

    def _time_sentinel(self) -> None:
        name = self._sentinel
        if name is None:
            return
        timing = None if name in self._journal.errors else self._time(name)
        if timing is None:
            raise Refused(f"the sentinel {name} must run, got: {self._journal.errors[name]}; choose another")
        conditions = self._bench.conditions()
        self._journal.write(dict({"sentinel": name, "median_ms": _typical_ms(timing)}, **conditions))

    def _judge(self, batch: list[str]) -> bool:
        """Says whether the jobs that were just measured count; False where some are to be measured again."""
        readings = self._journal.readings
        worst_ms = max((each["median_ms"] for each in readings), default=None)
        return self._say(batch, worst_ms, self._why_disturbed(readings))

    def _say(self, batch: list[str], worst_ms: float | None, why: str | None) -> bool:
        journal = self._journal
        if why is None:
            latest = {job: max(journal.results[job]) for job in batch}
            checked = None if worst_ms is None else False
            journal.write({"accepted": latest, "disturbed": checked, "sentinel_ms": worst_ms})
            return True
        journal.write({"disturbed": batch, "why": why, "sentinel_ms": worst_ms})
        spent = [job for job in batch if len(journal.results[job]) > self._protocol["retries"]]
        if spent:
            best = {job: journal.best_attempt(job) for job in spent}
            journal.write({"accepted": best, "disturbed": True, "why": why, "sentinel_ms": None})
        return len(spent) == len(batch)

    def _why_disturbed(self, readings: list[dict[str, Any]]) -> str | None:
        tolerated = 1 + self._protocol["sentinel_tolerance"]
        best_khz = self._journal.best_khz
        for each in readings:
            undisturbed_ms = self._journal.undisturbed_ms
            if each["median_ms"] > tolerated * undisturbed_ms:
                return f"the sentinel took {each['median_ms']:.4g} ms, {undisturbed_ms:.4g} ms undisturbed"
            if each["clock_khz"] and tolerated * each["clock_khz"] < best_khz:
                return f"the clock was {each['clock_khz']} kHz, {best_khz} kHz at best"
        return None

    def _found_disturbed_later(self) -> list[str]:
        """Jobs that were accepted while the sentinel had not yet shown how fast it is."""
        journal = self._journal
        if self._sentinel is None:
            return []
        limit_ms = (1 + self._protocol["sentinel_tolerance"]) * journal.undisturbed_ms
        late = {
            job: journal.marks[job][attempt]
            for job, (attempt, disturbed) in journal.accepted.items()
            if disturbed is False and journal.marks.get(job, {}).get(attempt, 0.0) > limit_ms
        }
        for mark_ms in sorted(set(late.values())):
            why = f"the sentinel took {mark_ms:.4g} ms, {journal.undisturbed_ms:.4g} ms undisturbed later on"
            self._say([job for job in late if late[job] == mark_ms], mark_ms, why)
        return [job for job in late if not journal.is_done(job)]

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline


def _lock(folder: Path, take_over: bool) -> Any:
    """Holds the folder for as long as the process runs; a second one would spoil both measurements."""
    file = (folder / LOCK).open("a+")
    patience_s = 10.0 if take_over else 0.0
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            file.seek(0)
            owner = file.read().strip()
            if patience_s <= 0:
                raise Refused(f"{folder}: another process ({owner}) measures here; wait for it or end it") from error
            # Left behind by a connection that was lost, and not aware of it yet.
            if owner.isdigit():
                _end(int(owner))
            time.sleep(0.1)
            patience_s -= 0.1
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _end(process: int) -> None:
    # It may just have ended by itself.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


def _stop(number: int, frame: object) -> None:
    # A terminal and a parent may both send one; the second must not disturb what is written because of the first.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _work(options: argparse.Namespace) -> int:
    """Measures until the jobs are done, in a process of its own that a runtime may crash."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
    # Runtimes print what they like; records go to what was standard output, everything else to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    try:
        jobs = load_jobs(options.folder)
        progress = _Progress(len(jobs["jobs"]))

        def tell(line: str) -> None:
            text = line if options.stream else progress.text(json.loads(line))
            if text:
                out.write(text + "\n")
                out.flush()

        with contextlib.ExitStack() as stack:
            stack.enter_context(_lock(options.folder, options.take_over))
            journal = Journal.resume(options.folder / SAMPLES, tell)
            stack.callback(journal.close)
            progress.seen.update(job["id"] for job in jobs["jobs"] if journal.is_done(job["id"]))
            measure(jobs, runtime_bench(options.folder, jobs), journal, options.worker.time_limit_s)
    except (Refused, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    except KeyboardInterrupt:
        # Without the usual end: nobody may read what is still in the buffer, and Python would complain.
        os._exit(INTERRUPTED)
    return 0


class _Progress:
    """What a person who started the command by hand gets to see."""

    def __init__(self, total: int) -> None:
        self.seen: set[str] = set()
        self._total = total

    def text(self, record: dict[str, Any]) -> str:
        """A line for the record, or '' where it tells nothing new."""
        if "id" not in record:
            return f"to be measured again, {record['why']}" if "why" in record and "accepted" not in record else ""
        self.seen.add(record["id"])
        found = record["error"] if "error" in record else f"{_typical_ms(record):.4g} ms"
        return f"{len(self.seen)}/{self._total} {record['id']}: {found}"


def _supervise(options: argparse.Namespace, time_limit_s: float | None) -> int:
    """Starts the measuring process, again after every crash of the runtime in a job."""
    begin = time.monotonic()
    flags = ["--stream"] * options.stream + ["--take-over"] * options.take_over
    while True:
        left = "none" if time_limit_s is None else repr(max(0.0, time_limit_s - (time.monotonic() - begin)))
        command = [sys.executable, "-u", str(Path(__file__).resolve()), "--worker", left, *flags, str(options.folder)]
        worker = subprocess.Popen(command)

        def forward(number: int, frame: object, worker: Any = worker) -> None:
            worker.send_signal(number)

        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, forward)
        code = worker.wait()
        if code in (0, 1, REFUSED, INTERRUPTED):
            return code
        if not _ended_in_a_job(options.folder / SAMPLES):
            sys.stderr.write(f"error: the runtime crashes before it runs a model (exit code {code})\n")
            return CRASHED_EARLY


def _ended_in_a_job(samples: Path) -> bool:
    try:
        lines = samples.read_bytes().splitlines()
    except OSError:
        return False
    return bool(lines) and lines[-1].startswith(b'{"begin"')


class _Worker(NamedTuple):
    time_limit_s: float | None


def _worker(text: str) -> _Worker:
    return _Worker(None if text == "none" else float(text))


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description="Measures the models of a job folder; see the head of this file.")
    parser.add_argument("folder", type=Path, help="the folder with jobs.json")
    parser.add_argument("--stream", action="store_true", help="write the records to standard output as they come")
    parser.add_argument("--take-over", action="store_true", help="end a process that still measures in the folder")
    parser.add_argument("--worker", type=_worker, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        return _work(options)
    try:
        jobs = load_jobs(options.folder)
    except Refused as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    return _supervise(options, jobs["time_limit_s"])


if __name__ == "__main__":
    # The folder of this file stands first in the path, and a neighbour must not be taken for a library.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    sys.exit(main(sys.argv[1:]))
