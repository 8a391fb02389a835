"""Which proxies can be trusted on the user's own space and data: some members trained a little, and compared.

A proxy that ranks one space well may mislead on another, and multiply-adds alone often do better than either. So a
search that has the time for it asks first, and is led by what won: a mix of proxies, if it ranks members that it was
not chosen on better than multiply-adds beyond the interval, or else multiply-adds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluators.first_look import PREFIX
from evaluators.proxies import RankMix, choose_mix, rank_mix
from evaluators.scores import SCORES, Score
from hardware.rank_correlation import drawn_cases, interval, kendall, kendall_drawn, spearman, spearman_drawn
from nas.settings import LEAST_TRUSTED

MIX, FALLBACK = "mix", "macs"

BASELINES = ("macs", "params")
Column = npt.NDArray[np.float64]


def judged(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How every proxy ranks the members, the mix among them, and what should lead a search.

    Each member has `accuracy` and `proxies`, in which a proxy that failed is missing. Proxies that failed anywhere are
    told apart and left out of the mix. The mix is judged by leave-one-out: each member is placed by the mix that is
    chosen on all others.

    Raises:
        ValueError: there are fewer members than an interval needs.
    """
    if len(members) < LEAST_TRUSTED:
        raise ValueError(f"trust needs at least {LEAST_TRUSTED} trained members, got {len(members)}")
    truth = np.array([each["accuracy"] for each in members])
    names = list(dict.fromkeys(name for each in members for name in each["proxies"]))
    whole = [name for name in names if all(name in each["proxies"] for each in members)]
    values = {name: np.array([each["proxies"][name] for each in members]) for name in whole}
    chosen = choose_mix({name: list(column) for name, column in values.items()}, list(truth))
    left_out = _left_out(values, truth)
    better = np.argsort(-truth, kind="stable")[: -(-len(truth) // 2)]
    columns = values | {MIX: left_out}
    proxies = {
        name: {
            "all": _agreement(column, truth),
            "better_half": _agreement(column[better], truth[better]),
            "over": {each: _gain(column, values[each], truth) for each in BASELINES if each != name},
        }
        for name, column in columns.items()
    }
    gain = proxies[MIX]["over"][FALLBACK]
    earned = gain["low"] is not None and gain["low"] > 0
    reference = rank_mix(chosen, [each["proxies"] for each in members])
    return {
        "members": len(members),
        "proxies": proxies,
        "incomplete": sorted(set(names) - set(whole)),
        "mix": {
            "proxies": list(chosen),
            "places": {name: list(map(list, each)) for name, each in reference.places.items()},
        },
        "leads": MIX if earned else FALLBACK,
        "why": _why(chosen, gain, earned=earned),
    }


def _left_out(values: Mapping[str, Column], truth: Column) -> Column:
    """The place of each member by the mix of which it was no part."""
    found = []
    for index in range(len(truth)):
        others = np.delete(np.arange(len(truth)), index)
        columns = {name: list(column[others]) for name, column in values.items()}
        chosen = choose_mix(columns, list(truth[others]))
        networks = [{name: float(values[name][other]) for name in chosen} for other in others]
        found.append(rank_mix(chosen, networks).score({name: float(values[name][index]) for name in chosen}))
    return np.array(found)


def _agreement(column: Column, truth: Column) -> dict[str, Any]:
    draws = drawn_cases(len(truth))
    found: dict[str, Any] = {}
    for name, whole, drawn in (("spearman", spearman, spearman_drawn), ("kendall", kendall, kendall_drawn)):
        found[name] = whole(list(column), list(truth))
        found[f"{name}_low"], found[f"{name}_high"] = interval(drawn(column, truth, draws)) or (None, None)
    return found


def _gain(column: Column, baseline: Column, truth: Column) -> dict[str, float | None]:
    """By how much Spearman's correlation is above the baseline's, both on the same members."""
    own, other = (spearman(list(each), list(truth)) for each in (column, baseline))
    draws = drawn_cases(len(truth))
    gains = spearman_drawn(column, truth, draws) - spearman_drawn(baseline, truth, draws)
    low, high = interval(gains) or (None, None)
    return {"value": None if own is None or other is None else own - other, "low": low, "high": high}


def _why(chosen: Sequence[str], gain: Mapping[str, float | None], *, earned: bool) -> str:
    mix = " + ".join(chosen)
    if gain["value"] is None:
        return "accuracies of the members do not differ, so multiply-adds lead"
    by = f"by {gain['value']:+.2f} of rank correlation ({gain['low']:+.2f} to {gain['high']:+.2f})"
    if earned:
        return f"the mix {mix} ranks members that it was not chosen on better than multiply-adds do, {by}"
    return f"the mix {mix} differs from multiply-adds {by}, which is not beyond the interval, so multiply-adds lead"


def leading_score(trust: Mapping[str, Any]) -> tuple[Score, tuple[str, ...]]:
    """What leads a search by a trust report, and the proxies that have to be asked for it."""
    if trust["leads"] != MIX:
        return SCORES[FALLBACK], ()
    mix = RankMix({name: tuple((p, q) for p, q in places) for name, places in trust["mix"]["places"].items()})
    names = tuple(trust["mix"]["proxies"])

    def value(known: Mapping[str, float]) -> float:
        return mix.score({name: known[PREFIX + name] for name in names})

    return Score(value, f"mean place by {', '.join(names)} among {trust['members']} trained members"), names
