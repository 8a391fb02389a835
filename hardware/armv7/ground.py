"""What the counting stands on: QEMU, a C compiler, Debian's Python for armhf and ncnn's wheel for armv7l.

QEMU and the compiler are taken from the system where they are; everything else, and QEMU where it is not installed, is
fetched into the cache folder and unpacked there. Nothing is installed, and no right of the system's is needed.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware.strict_yaml import ConfigError

# The runtime that is counted, to the byte.
NCNN_VERSION = "1.0.20261020"
WHEEL = f"ncnn-{NCNN_VERSION}-cp311-cp311-manylinux_2_31_armv7l.whl"
WHEEL_SHA256 = "fa8e1d7442f7de63871c2a71ae610090cc8e18e508099edbf8327caec5a87b8d"

# Debian 12's; the wheel is for its Python.
GUEST_PACKAGES = (
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5"),
    *("libssl3", "libcrypt1", "libuuid1", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
)
# QEMU with the libraries that few systems have.
QEMU_PACKAGES = ("qemu-user", "libcapstone4", "liburing2", "libnuma1")

# NEON and VFPv4 as the Cortex-A17 of an RK3288 has them.
CPU = "cortex-a15"

# Those whose plugin interface `counter.c` is written for.
QEMU_VERSIONS = range(6, 9)

SOURCES = Path(__file__).parent
PYTHON = Path("usr/bin/python3.11")
_READY = "ready"

_STILL_WORKS = "the shipped counts, and every command that uses them, work without"


class GroundMissing(ConfigError):
    """Something that counting needs is not here; the text says what, and what still works."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"counting needs {what}: {why}; {remedy}; {_STILL_WORKS}")
        self.what = what


@dataclass(frozen=True, slots=True)
class Ground:
    """Where everything is; `libraries` has what QEMU needs and the system may lack."""

    qemu: Path
    libraries: Path | None
    plugin: Path
    root: Path
    site: Path

    def command(self, arguments: Sequence[str], counts: Path | None = None) -> list[str]:
        """What runs Python with these arguments inside the emulated machine, counting into a file if there is one."""
        plugin = [] if counts is None else ["-plugin", f"{self.plugin},out={counts}"]
        # Hashes that are drawn anew for every process would make Python's own share of the counts vary.
        guest = {"PYTHONPATH": str(self.site), "PYTHONHASHSEED": "0"}
        settings = [word for name, value in guest.items() for word in ("-E", f"{name}={value}")]
        return [
            *(str(self.qemu), "-cpu", CPU, "-L", str(self.root), "-U", "LD_LIBRARY_PATH", *settings, *plugin),
            *(str(self.root / PYTHON), *arguments),
        ]

    def environment(self) -> dict[str, str]:
        """What QEMU itself finds in its environment."""
        return _environment(self.libraries)


def ready_ground(folder: Path) -> Ground:
    """What was put together in the folder before, with the plugin compiled anew where its source has changed.

    Raises:
        GroundMissing: something is not there yet; `make_ground` fetches what can be fetched.
    """
    fetched = "`nas count --fetch` gets it from Debian and PyPI"
    for part, name in (("armhf", "Debian's armhf Python"), ("wheel", f"ncnn {NCNN_VERSION} for armv7l")):
        if not (folder / part / _READY).exists():
            raise GroundMissing(name, f"it is not in {folder}", fetched)
    qemu, libraries = _qemu(folder)
    return Ground(qemu, libraries, _plugin(folder), folder / "armhf" / "root", folder / "wheel" / "site")


def make_ground(folder: Path) -> Ground:
    """Fetches what is missing, and returns what is there then.

    Raises:
        GroundMissing: there is no apt-get, no compiler or no network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "armhf" / _READY).exists():
        _fetch_packages(folder / "armhf", "armhf", GUEST_PACKAGES, "Debian's armhf Python")
    if shutil.which("qemu-arm") is None and not (folder / "qemu" / _READY).exists():
        _fetch_packages(folder / "qemu", _host_architecture(), QEMU_PACKAGES, "qemu-arm")
    if not (folder / "wheel" / _READY).exists():
        _fetch_wheel(folder / "wheel")
    return ready_ground(folder)


def _qemu(folder: Path) -> tuple[Path, Path | None]:
    installed = shutil.which("qemu-arm")
    unpacked = folder / "qemu" / "root" / "usr"
    qemu = unpacked / "bin" / "qemu-arm" if installed is None else Path(installed)
    libraries = next((unpacked / "lib").glob("*-linux-gnu"), None) if installed is None else None
    remedy = "run `apt install qemu-user`, or `nas count --fetch`"
    if not qemu.exists():
        raise GroundMissing("qemu-arm", f"it is neither on the PATH nor in {folder}", remedy)
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, env=_environment(libraries))
    found = re.search(r"version (\d+)\.", done.stdout)
    if found is None:
        raise GroundMissing("qemu-arm", f"{qemu} does not start ({done.stderr.strip()[:200]})", remedy)
    if int(found[1]) not in QEMU_VERSIONS:
        versions = f"{QEMU_VERSIONS[0]} to {QEMU_VERSIONS[-1]}"
        raise GroundMissing(
            f"qemu-arm {versions}", f"{qemu} is {done.stdout.splitlines()[0]}", "put another on the PATH"
        )
    return qemu, libraries


def _plugin(folder: Path) -> Path:
    source = SOURCES / "counter.c"
    plugin = folder / f"counter-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not plugin.exists():
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise GroundMissing("a C compiler", "none of cc, gcc and clang is on the PATH", "run `apt install gcc`")
        # Under another name first, so that no other process meets half a file.
        fresh = plugin.with_suffix(f".{os.getpid()}")
        _run([compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(fresh)], "a C compiler that works")
        fresh.replace(plugin)
    return plugin


def _fetch_packages(folder: Path, architecture: str, packages: Sequence[str], what: str) -> None:
    """Unpacks Debian packages under `root`, with an apt of its own state beside the system's."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise GroundMissing(what, f"{program} is not on the PATH", "use a Debian 12 system to count")
    state = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial", "debs"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state / "state",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
    }
    flags = [f"-o{name}={value}" for name, value in settings.items()]
    # Some list of a mirror may be out of date; what counts is that the packages come.
    subprocess.run(["apt-get", *flags, "-qq", "update"], capture_output=True)
    _run(["apt-get", *flags, "-qq", "download", *packages], what, cwd=state / "debs")
    for package in sorted((state / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder / "root")], what)
    names = [package.stem for package in sorted((state / "debs").glob("*.deb"))]
    shutil.rmtree(state)
    (folder / _READY).write_text("\n".join(names) + "\n", encoding="utf-8")


def _fetch_wheel(folder: Path) -> None:
    what = f"ncnn {NCNN_VERSION} for armv7l"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--platform=manylinux_2_31_armv7l", "--python-version=311", "-d"]
    _run([sys.executable, "-m", "pip", "download", "-q", *options, str(folder), f"ncnn=={NCNN_VERSION}"], what)
    content = (folder / WHEEL).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != WHEEL_SHA256:
        raise GroundMissing(what, f"the file that came has sha256 {sha256}, not {WHEEL_SHA256}", "use PyPI itself")
    with zipfile.ZipFile(folder / WHEEL) as wheel:
        wheel.extractall(folder / "site")
    (folder / _READY).write_text(WHEEL + "\n", encoding="utf-8")


def _run(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=cwd)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise GroundMissing(what, f"{command[0]} fails ({said[-1][:200] if said else done.returncode})", "mend that")


def _host_architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _environment(libraries: Path | None) -> dict[str, str]:
    own: Mapping[str, str] = {} if libraries is None else {"LD_LIBRARY_PATH": str(libraries)}
    return {**os.environ, **own}
