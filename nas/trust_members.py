"""Trains members of a study's space for the trust report, spread over what they cost; nothing is trained twice."""

import json
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.early import EarlySettings
from evaluators.evaluator import Failure, failure_from
from evaluators.layout_search import LayoutSettings
from evaluators.proxies import PROXIES, ProxySettings, Subject, proxy_scores
from evaluators.recipe import recipe_for
from hardware.strict_yaml import ConfigError
from nas.contenders import BROKEN_TRAINING, TrainingPlan, climb
from nas.executors.executor import Executor, Job
from nas.files import write_atomically
from nas.ground import Genes, Ground, Place
from nas.problem import Problem, dataset
from nas.results import Key, ResultStore
from nas.settings import LEAST_TRUSTED
from nas.trust import judged
from searchspace.network import build_network
from searchspace.spec import spec_id

logger = logging.getLogger(__name__)

TRUST = "trust.json"

# How many members are trained where nobody says how many, and what share of a search's time that may take.
MEMBERS, TIME_SHARE = 24, 0.2

# Random members for each that is chosen.
DRAWS_EACH = 15


class TrustFailed(Exception):
    """Too few members could be trained to say anything."""


class Listener(Protocol):
    """Hears how it gets on."""

    def note(self, text: str) -> None: ...
    def trusting(self, done: int, total: int) -> None: ...


def trust_job(plan: TrainingPlan, proxy_seed: int) -> dict[str, Any] | Failure:
    """What every proxy says of a member, and what it reaches in a short training of its own."""
    try:
        splits = dataset(plan.data).at(plan.spec.input_shape[1])
        started = time.perf_counter()
        subject = Subject(
            build_network(plan.spec, proxy_seed), splits, ProxySettings(early=plan.layouts.early), proxy_seed
        )
        said = proxy_scores(PROXIES, subject)
        proxy_seconds = time.perf_counter() - started
        climbed, _ = climb(plan, None, plan.epochs)
    except BROKEN_TRAINING as error:
        return failure_from(error)
    return {
        "proxies": {name: value for name, value in said.items() if not isinstance(value, Failure)},
        "silent": {name: value.reason for name, value in said.items() if isinstance(value, Failure)},
        "accuracy": climbed.reached.value,
        "loss": climbed.reached.loss,
        "images": climbed.reached.images,
        "proxy_seconds": proxy_seconds,
        "seconds": climbed.seconds,
    }


def spread_members(ground: Ground, count: int, seed: int) -> list[Place]:
    """Members within the budget, about as many in each band of multiply-adds, those of medium cost first.

    Fewer than `count` where the space has no more.
    """
    rng = random.Random(f"trust/{seed}")
    drawn = {place.spec: place for place in (ground.random_place(rng) for _ in range(DRAWS_EACH * count))}
    pool = sorted(drawn.values(), key=lambda place: (place.cost.macs, spec_id(place.spec)))
    low, high = math.log(pool[0].cost.macs), math.log(pool[-1].cost.macs)
    bands: list[list[Place]] = [[] for _ in range(count)]
    for place in pool:
        share = (math.log(place.cost.macs) - low) / (high - low) if high > low else 0.0
        bands[min(count - 1, int(share * count))].append(place)
    for band in bands:
        rng.shuffle(band)
    chosen: list[Place] = []
    while len(chosen) < min(count, len(pool)):
        for band in bands:
            if band and len(chosen) < count:
                chosen.append(band.pop())
    middle = math.log(chosen[0].cost.macs) if len(chosen) == 1 else (low + high) / 2
    return sorted(chosen, key=lambda place: abs(math.log(place.cost.macs) - middle))


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many members to train, and how long that may take, None for as long as it likes."""

    members: int
    seconds: float | None


class TrustRun:
    """The trust report of one study; goes on from whatever its folder holds."""

    def __init__(self, problem: Problem, folder: Path, executor: Executor, results: ResultStore) -> None:
        self._problem = problem
        self._folder = folder
        self._executor = executor
        self._results = results

    def run(self, fastest: Genes, allowance: Allowance, listener: Listener) -> dict[str, Any] | None:
        """The report, written into the folder; None where the time does not allow enough members to say anything.

        Raises:
            TrustFailed: too few members could be trained.
        """
        settings = self._problem.settings
        started = time.monotonic()
        places = spread_members(Ground(self._problem, fastest), allowance.members, settings.seed)
        first = places[: max(2, settings.workers)]
        self._train(first, lambda done: listener.trusting(done, len(places)))
        if allowance.seconds is not None:
            each_s = (time.monotonic() - started) / len(first)
            count = min(len(places), int(allowance.seconds / max(each_s, 1e-9)))
            if count < LEAST_TRUSTED:
                listener.note(
                    f"no trust report: {LEAST_TRUSTED} members take about {LEAST_TRUSTED * each_s:.0f} s, and "
                    f"{allowance.seconds:.0f} s of the search's time are for it"
                )
                return None
            places = places[:count]
        self._train(places, lambda done: listener.trusting(done, len(places)))
        found = [self._results.get(self._key(place)) for place in places]
        members = [
            {"spec_id": spec_id(place.spec), "macs": place.cost.macs, "params": place.cost.params, **each}
            for place, each in zip(places, found, strict=True)
            if isinstance(each, Mapping)
        ]
        failures = [each.reason for each in found if isinstance(each, Failure)]
        if len(members) < LEAST_TRUSTED:
            why = f"; the first failure: {failures[0]}" if failures else ""
            raise TrustFailed(
                f"trust: {len(members)} of {len(places)} members could be trained, at least {LEAST_TRUSTED} are "
                f"needed{why}"
            )
        report = judged(members) | {
            "epochs": settings.trust_epochs,
            "images": members[0]["images"],
            "trained": members,
            "failures": failures,
        }
        write_atomically(self._folder / TRUST, json.dumps(report, indent=1, allow_nan=False) + "\n")
        return report

    def _train(self, places: Sequence[Place], on_done: Callable[[int], object]) -> None:
        out: dict[int, Place] = {}
        for place in places:
            if self._results.get(self._key(place)) is None:
                arguments = (self._plan(place), self._problem.settings.seed)
                # No limit, as for finalists: those that take long must not be missing.
                job = Job(f"trust {spec_id(place.spec)}", trust_job, arguments)
                out[self._executor.submit(job)] = place
        on_done(len(places) - len(out))
        while out:
            finished = self._executor.wait()
            place = out.pop(finished.handle)
            if isinstance(finished.result, Failure) and not finished.result.lasting:
                raise TrustFailed(f"trust: members cannot be trained: {finished.result.reason}")
            self._results.add(self._key(place), finished.result, place.spec)
            on_done(len(places) - len(out))

    def _key(self, place: Place) -> Key:
        return Key(spec_id(place.spec), f"trust-{self._problem.settings.trust_epochs}-epochs")

    def _plan(self, place: Place) -> TrainingPlan:
        settings = self._problem.settings
        # Another seed than the proxies': what they say must hold for the network and not for one draw of its weights.
        early = EarlySettings(iterations=settings.iterations)
        layouts = LayoutSettings(candidates=0, early=early)
        recipe = recipe_for(settings.data)
        return TrainingPlan(place.spec, self._problem.data, recipe, settings.trust_epochs, settings.seed + 1, layouts)


def read_trust(folder: Path) -> dict[str, Any] | None:
    """The trust report of a study, None where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / TRUST
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{path}: not valid JSON ({error}); remove it, `nas trust {folder}` makes it again"
        ) from error
    if not isinstance(found, dict) or not {"members", "proxies", "mix", "leads", "why", "trained"} <= found.keys():
        raise ConfigError(f"{path}: no trust report of this program; remove it, `nas trust {folder}` makes it again")
    return found
