"""`nas profile`: a latency table of the machine at hand or of a board, and its certificate."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from hardware.adb import AdbPython
from hardware.profiled_table import Certificate, ProfiledTable
from hardware.strict_yaml import ConfigError
from hardware.transports import Local, Ssh, Transport
from nas.certificates import Connection, connection_path
from nas.console import observer, print_table
from nas.exit_codes import DONE
from nas.files import write_atomically
from nas.quantities import duration_s
from nas.tables import Wanted, bundle, make, take_in
from nas.view import View


@dataclass(frozen=True, slots=True)
class Way:
    """How the device is reached; all None for the machine at hand."""

    ssh: str | None
    adb: str | None
    adb_python: str
    bundle: Path | None
    brought: Path | None


def profile(target: str, space: str, runtime: str | None, threads: int, time: str, *, way: Way, view: View) -> int:
    """Measures what is left to measure, for so long, and prints what the table is worth."""
    if threads < 1:
        raise ConfigError(f"threads: at least 1, got {threads}")
    if target == "host" and any(each is not None for each in (way.ssh, way.adb, way.bundle, way.brought)):
        raise ConfigError("target: host is this machine; give a board that is measured elsewhere a name of its own")
    wanted = Wanted(target, space, runtime, threads, duration_s(time))
    if way.bundle is not None:
        models = bundle(wanted, way.bundle)
        if view.json:
            print(json.dumps({"bundle": str(way.bundle), "models": models}))
        else:
            print(
                f"{way.bundle} holds {models} models. Carry it to the board, unpack it, follow its README.txt, bring "
                f"the results back: nas profile --target {target} --space {space} --import FILE"
            )
        return DONE
    if way.brought is not None:
        table = take_in(wanted, way.brought)
    else:
        transport = transport_by(target, way)
        with observer(view.quiet) as watching:
            table = make(wanted, transport, watching.measuring)
        remember(target, way)
    if view.json:
        print(json.dumps(_as_json(table), indent=2, allow_nan=False))
    else:
        _print(table, space)
    return DONE


def transport_by(target: str, way: Way) -> Transport:
    """How the device is reached, as it was asked for.

    Raises:
        ConfigError: nothing was said of how to reach a board.
    """
    if way.ssh is not None:
        return Ssh(way.ssh)
    if way.adb is not None:
        return AdbPython(way.adb, way.adb_python)
    if target != "host":
        raise ConfigError(
            f"target: {target} is not this machine; say how to reach it with --ssh USER@HOST or --adb SERIAL, or write "
            "an archive to carry there with --bundle FILE"
        )
    return Local()


def remember(target: str, way: Way) -> None:
    """Keeps how the board was reached, so that finalists of a search can be measured there."""
    if way.ssh is None and way.adb is None:
        return
    known = Connection(ssh=way.ssh, adb=way.adb, adb_python=way.adb_python)
    write_atomically(connection_path(target), yaml.safe_dump(known.model_dump(), sort_keys=False))


def _as_json(table: ProfiledTable) -> dict[str, object]:
    return {
        "table": table.name,
        "identity": table.identity.model_dump(),
        "measured_on": table.measured_on,
        "networks": table.fit.networks,
        "kernels": len(table.fit.rows),
        "conditions": dict(table.conditions),
        "certificates": {space: each.model_dump() for space, each in table.certificates.items()},
        "cannot_run": dict(table.cannot_run),
    }


def _print(table: ProfiledTable, space: str) -> None:
    conditions = table.conditions
    others = conditions["networks_traced"] - table.fit.networks
    without = f", without {others} that were disturbed, check another space or are left out below" if others else ""
    print(f"table     {table.name}")
    print(f"device    {table.identity.cpu}, {table.identity.cores} cores; {table.identity.device}")
    print(
        f"learnt    {len(table.fit.rows)} kernels inside {table.fit.networks} networks{without}; further kernels are "
        "fitted to them"
    )
    print(
        f"quality   {conditions['models_timed']} timings, {conditions['disturbed_in_every_attempt']} disturbed each "
        f"time, median spread {conditions['median_spread_percent']:.1f} %"
    )
    for name, reason in table.cannot_run.items():
        print(f"left out  {name}: {reason}")
    certificate = table.certificates.get(space)
    if certificate is None:
        print("No network was timed to check the table with; give it more --time.")
        return
    _print_certificate(certificate, space)


def _print_certificate(certificate: Certificate, space: str) -> None:
    print(
        f"checked   {certificate.networks} networks of {space} that the table had not seen, "
        f"{certificate.fastest_ms:.3g} to {certificate.slowest_ms:.4g} ms"
    )
    print(
        f"error     {certificate.mape_percent:.1f} % on average; {certificate.within_5_percent:.0f} % within 5 %, "
        f"{certificate.within_10_percent:.0f} % within 10 %; rank correlation {certificate.spearman:.3f}"
    )
    print(
        f"noise     {certificate.noise_percent:.1f} % between two timings of one network, "
        f"{certificate.noise_within_5_percent:.0f} % within 5 %"
    )
    print(
        f"interval  95 of 100 timings take {certificate.low_ratio:.2f} to {certificate.high_ratio:.2f} of what is "
        "predicted; searches hold the upper end to the budget"
    )
    rows = (
        [
            miss.network,
            f"{miss.measured_ms:.4g}",
            f"{miss.predicted_ms:.4g}",
            _off(miss.predicted_ms, miss.measured_ms),
        ]
        for miss in certificate.worst
    )
    print_table("the worst", ("network", "measured ms", "predicted ms", "off"), rows)


def _off(predicted_ms: float, measured_ms: float) -> str:
    return f"{100 * (predicted_ms / measured_ms - 1):+.1f} %"
