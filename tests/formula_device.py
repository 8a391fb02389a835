"""A device that takes as long as a formula says, so that what is made of its times can be checked."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from hardware import board
from hardware.cost import node_macs
from hardware.graph import DeployGraph
from hardware.isolated import Failed
from hardware.kernels import FusionRule, fused_chains
from hardware.transports import OnProgress, Progress, TransportError

START_MS, WATCHING_MS = 0.03, 0.002
# A model that is none of `write_timed`, such as a network as it was trained, takes so long.
OTHER_MS = 9.0

MACHINE = {
    "board": "Formula 1",
    "cpu": "as fast as told",
    "cores": 4,
    "core_set": [0, 1],
    "clocks": [],
    "temperatures_c": {},
    "load": [0.0, 0.0, 0.0],
    "os": "Linux formula",
    "kernel": "6",
    "python": "3.12",
}


def kernel_ms(graph: DeployGraph, chain: tuple[int, ...]) -> float:
    """Arithmetic, and values that are written."""
    macs = sum(node_macs(graph, graph.nodes[index]) for index in chain)
    return 0.002 + 4e-7 * macs + 2e-6 * prod(graph.nodes[chain[-1]].shape)


def network_ms(graph: DeployGraph, rules: Sequence[FusionRule]) -> float:
    return START_MS + sum(kernel_ms(graph, chain) for chain in fused_chains(graph, rules))


def write_timed(
    rules: Sequence[FusionRule], refuse: Callable[[DeployGraph], bool] = lambda graph: False
) -> Callable[[Sequence[tuple[DeployGraph, Path]]], Iterator[Path | Failed]]:
    """What writes models for the device: what it will hear of each operator, in JSON."""

    def write(models: Sequence[tuple[DeployGraph, Path]]) -> Iterator[Path | Failed]:
        for graph, path in models:
            if refuse(graph):
                yield Failed("the device does not know it")
                continue
            chains = fused_chains(graph, rules)
            path.write_text(json.dumps([[graph.nodes[chain[-1]].name, kernel_ms(graph, chain)] for chain in chains]))
            yield path

    return write


class FormulaDevice:
    """A transport to that device; it is lost after `stop_after` jobs, and each time is `slower` than the formula's."""

    def __init__(
        self,
        runtime: str = "onnxruntime",
        version: str = "1.0",
        *,
        stop_after: int | None = None,
        slower: Callable[[str, int], float] = lambda job, count: 1.0,
    ) -> None:
        self.machine = MACHINE | {"runtime": runtime, "runtime_version": version}
        self.timed: list[str] = []
        self.stop_after = stop_after
        self._slower = slower

    def measure(self, folder: Path, on_progress: OnProgress) -> None:
        jobs = board.load_jobs(folder)
        journal = board.Journal.resume(folder / board.SAMPLES, lambda line: self._tell(line, jobs, on_progress))

        def time_job(job: dict[str, Any]) -> dict[str, Any]:
            if self.stop_after is not None and len(self.timed) >= self.stop_after:
                raise TransportError("the connection was lost")
            self.timed.append(job["id"])
            content = (folder / job["file"]).read_bytes()
            timing: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest()}
            try:
                operators = json.loads(content)
            except ValueError:
                return timing | board.summary([OTHER_MS] * 3, 1)
            factor = self._slower(job["id"], len(self.timed))
            if job.get("trace"):
                timing["traced_ms"] = [[f"{name}_x", factor * ms + WATCHING_MS] for name, ms in operators]
            return timing | board.summary([factor * (START_MS + sum(ms for _, ms in operators))] * 3, 1)

        bench = board.Bench(
            lambda: self.machine | {"date": "2026-01-02T03:04:05Z"},
            lambda: {"clock_khz": None, "temperature_c": None, "load1": 0.0},
            time_job,
        )
        try:
            board.measure(jobs, bench, journal, jobs["time_limit_s"])
        finally:
            journal.close()

    def _tell(self, line: str, jobs: dict[str, Any], on_progress: OnProgress) -> None:
        record = json.loads(line)
        if "id" in record:
            on_progress(Progress(1, len(jobs["jobs"]), record["id"]))
