"""Android devices over adb: with Python on the device, or with ncnn's own benchmark program.

Both are a `hardware.transports.Transport`.
"""

import hashlib
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware import board
from hardware.job_folder import JobList, load_jobs
from hardware.strict_yaml import ConfigError
from hardware.transports import OnProgress, TransportError, Watcher, measure_by_shell, run_program

DIRECTORY = "/data/local/tmp/edge-nas"


@dataclass(frozen=True, slots=True)
class AdbPython:
    """An Android device that has Python with the runtime's wheel where the user of `adb shell` may run it."""

    serial: str
    python: str

    def __post_init__(self) -> None:
        _check_serial(self.serial)

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        """See `hardware.transports.Transport`."""
        _check_state(self.serial)
        measure_by_shell(self, folder, on_progress)

    @property
    def name(self) -> str:
        return self.serial

    @property
    def directory(self) -> str:
        return DIRECTORY

    def command(self, script: str) -> list[str]:
        """What runs a script for /bin/sh on the device."""
        return _shell(self.serial, script)

    def is_lost(self, code: int, errors: str) -> bool:
        """Whether it was adb that failed, and not what it ran."""
        return _is_lost(self.serial, code, errors)


@dataclass(frozen=True, slots=True)
class AdbBench:
    """An Android device and ncnn's program benchncnn, built for it, which is copied there.

    benchncnn prints minimum, maximum and mean of min_runs runs in hundredths of a millisecond, after 8 runs to warm up;
    the results say so, and what takes less is an error. It computes in half precision wherever the processor can.
    version is the release of ncnn that it was built from, None to know it by the hash of the program.
    """

    serial: str
    program: Path
    version: str | None = None

    def __post_init__(self) -> None:
        _check_serial(self.serial)
        if not self.program.is_file():
            raise ConfigError(f"{self.program}: the program benchncnn is needed, and is not there; check the path")

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        """See `hardware.transports.Transport`."""
        jobs = load_jobs(folder)
        if jobs.runtime != "ncnn":
            raise ConfigError(f"benchncnn runs models for ncnn, got jobs for {jobs.runtime}; use Python on the device")
        watcher = Watcher(folder, jobs, on_progress)
        if watcher.is_done:
            return
        _check_state(self.serial)
        own = f"{self.serial}\n{folder.resolve()}".encode() + (folder / board.JOBS).read_bytes()
        device = _BenchDevice(self, folder, jobs, f"{DIRECTORY}/{hashlib.sha256(own).hexdigest()[:16]}")
        device.push()
        journal = board.Journal.resume(folder / board.SAMPLES, watcher.hear)
        bench = board.Bench(device.machine, device.conditions, device.time_job)
        try:
            board.measure(jobs.model_dump(mode="json"), bench, journal, jobs.time_limit_s)
        except board.Refused as error:
            raise ConfigError(f"{self.serial}: {error}") from error
        except TransportError as error:
            raise TransportError(f"{error}, {watcher.tally}") from error
        finally:
            journal.close()
        device.remove()


# What benchncnn prints of a model, such as `k00001.param  min =    1.23  max =    1.31  avg =    1.25`.
_PRINTED = re.compile(r"^\s*(\S+)\s+min =\s*([0-9.]+)\s+max =\s*([0-9.]+)\s+avg =\s*([0-9.]+)\s*$", re.MULTILINE)
_WARMUP_RUNS = 8

# Files and properties that describe an Android device; each is printed behind a line with its name.
_DESCRIBE = """
for file in /proc/cpuinfo /proc/loadavg /sys/devices/system/cpu/cpu*/cpufreq/scaling_* \
    /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp; do
  echo "== $file"; cat "$file" 2>/dev/null; echo
done
echo "== model"; getprop ro.product.model
echo "== release"; getprop ro.build.version.release
echo "== kernel"; uname -r
"""


@dataclass(frozen=True, slots=True)
class _BenchDevice:
    settings: AdbBench
    folder: Path
    jobs: JobList
    there: str

    def push(self) -> None:
        self._run(f"mkdir -p {shlex.quote(self.there)}")
        models = [str(self.folder / job.file) for job in self.jobs.jobs]
        self._adb("push", str(self.settings.program), f"{self.there}/benchncnn")
        self._adb("push", *models, f"{self.there}/")
        self._run(f"chmod 755 {shlex.quote(self.there)}/benchncnn")

    def remove(self) -> None:
        self._run(f"rm -rf {shlex.quote(self.there)}")

    def time_job(self, job: dict[str, Any]) -> dict[str, Any]:
        runs = self.jobs.protocol.min_runs
        shapes = ",".join(str(list(reversed(each["shape"][1:]))).replace(" ", "") for each in job["inputs"])
        # All cores, no GPU, no pause; the cores that it may use are set outside.
        numbers = (runs, self.jobs.threads, 0, -1, 0)
        command = ["./benchncnn", *map(str, numbers), f"param={job['file']}", f"shape={shapes}"]
        if self.jobs.cpus is not None:
            command = ["taskset", f"{sum(1 << core for core in self.jobs.cpus):x}", *command]
        printed = self._run(f"cd {shlex.quote(self.there)} && {shlex.join(command)} 2>&1", fails=board.JobFailed)
        found = {line[1]: line.groups()[1:] for line in _PRINTED.finditer(printed)}
        if job["file"] not in found:
            raise board.JobFailed(f"benchncnn prints no time ({_shorten(printed)})")
        least, most, mean = map(float, found[job["file"]])
        if least <= 0:
            raise board.JobFailed("benchncnn prints 0.00 ms: too fast for it to be measured")
        # Rounding to hundredths may put the mean just outside.
        summary = {"min": least, "max": most, "avg": min(max(mean, least), most)}
        digest = hashlib.sha256((self.folder / job["file"]).read_bytes()).hexdigest()
        return {"summary_ms": summary, "runs": runs, "warmup_runs": _WARMUP_RUNS, "sha256": digest}

    def machine(self) -> dict[str, Any]:
        texts = self._describe()
        program = hashlib.sha256(self.settings.program.read_bytes()).hexdigest()
        return {
            **self._hardware(texts),
            "board": texts.get("model") or None,
            "core_set": None if self.jobs.cpus is None else sorted(self.jobs.cpus),
            "os": f"Android {texts.get('release', '')}".strip(),
            "kernel": texts.get("kernel", ""),
            "python": None,
            "date": board.utc_date(),
            "runtime": "ncnn",
            "runtime_version": self.settings.version or f"benchncnn {program[:12]}",
        }

    def conditions(self) -> dict[str, Any]:
        found = self._hardware(self._describe())
        allowed = self.jobs.cpus or range(found["cores"] or 0)
        clocks = [each["current_khz"] for each in found["clocks"] if each["core"] in allowed and each["current_khz"]]
        return {
            "clock_khz": max(clocks, default=None),
            "temperature_c": max(found["temperatures_c"].values(), default=None),
            "load1": next(iter(found["load"] or ()), None),
        }

    def _describe(self) -> dict[str, str]:
        parts = re.split(r"^== (.*)$", self._run(_DESCRIBE).replace("\r", ""), flags=re.MULTILINE)[1:]
        return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}

    def _hardware(self, texts: dict[str, str]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as root:
            for name, text in texts.items():
                # The device names the files, and is not to choose where they go.
                if re.fullmatch(r"/(proc|sys)(/[A-Za-z0-9_]+)+", name):
                    path = Path(root + name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text, encoding="utf-8")
            return board.describe_hardware(Path(root))

    def _run(self, script: str, fails: type[Exception] = TransportError) -> str:
        """What a script prints; where the script fails, and not the way to it, the error is of the class `fails`."""
        done = run_program(_shell(self.settings.serial, script))
        if done.returncode == 0:
            return done.stdout
        said = _shorten(done.stderr.strip() or done.stdout.strip())
        if _is_lost(self.settings.serial, done.returncode, done.stderr):
            raise TransportError(f"{self.settings.serial}: the device was lost ({said})")
        raise fails(f"the device ends with code {done.returncode} ({said})")

    def _adb(self, *arguments: str) -> None:
        done = run_program(["adb", "-s", self.settings.serial, *arguments])
        if done.returncode != 0:
            said = _shorten(done.stderr.strip() or done.stdout.strip())
            raise TransportError(f"{self.settings.serial}: adb {arguments[0]} failed ({said})")


def _check_serial(serial: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]*", serial):
        raise ConfigError(f"a serial must be one that `adb devices` lists and not begin with '-', got {serial!r}")


def _check_state(serial: str) -> None:
    done = run_program(["adb", "-s", serial, "get-state"])
    if done.returncode != 0 or done.stdout.strip() != "device":
        said = _shorten(done.stderr.strip() or done.stdout.strip())
        raise TransportError(
            f"{serial}: the device must be ready ({said}); look at `adb devices`, allow the connection"
        )


def _shell(serial: str, script: str) -> list[str]:
    return ["adb", "-s", serial, "shell", "-T", script]


def _is_lost(serial: str, code: int, errors: str) -> bool:
    """Whether it was adb that failed; it hands on the exit codes of what it runs, and has no code of its own."""
    if code == 0:
        return False
    if re.search(r"^(adb: |error: )(device|closed|no devices|protocol)", errors, re.MULTILINE):
        return True
    return run_program(["adb", "-s", serial, "get-state"]).stdout.strip() != "device"


def _shorten(text: str) -> str:
    return " ".join(text.split())[-300:] or "it says nothing more"
