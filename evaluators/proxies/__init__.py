"""Signs of how good a network will be, for less than training it."""

from evaluators.proxies.mix import RankMix, choose_mix, mean_ranks, rank_mix
from evaluators.proxies.proxy import Proxy
from evaluators.proxies.registry import PROXIES, proxy_score, proxy_scores
from evaluators.proxies.subject import NotDefined, ProxySettings, Subject

__all__ = [
    "PROXIES",
    "NotDefined",
    "Proxy",
    "ProxySettings",
    "RankMix",
    "Subject",
    "choose_mix",
    "mean_ranks",
    "proxy_score",
    "proxy_scores",
    "rank_mix",
]
