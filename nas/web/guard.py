"""Who may ask for what: hosts, password, and where a change may come from.

A page in another tab can send requests to this machine too. It cannot read our pages, so it does not know the token; it
cannot hide where it comes from; and where it gives our address a name of its own, the name is not on the list.
"""

import base64
import binascii
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hardware.strict_yaml import ConfigError
from nas.web.attempts import Attempts

# What a person types again and again is not shorter than this where others can try it out.
SHORTEST_PASSWORD = 12

LOOK_ONLY = ("GET", "HEAD")

Environ = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Denied(Exception):
    """A request that is not answered: with which status, why, and after how many seconds it may come again."""

    status: int
    why: str
    retry_after_s: int | None = None


@dataclass(frozen=True)
class Guard:
    """The rules of one server; `password` None where only this machine can reach it. The token lives as long as it."""

    host: str
    password: str | None = field(default=None, repr=False)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    attempts: Attempts = field(default_factory=Attempts, repr=False)
    # Passwords are compared as digests under it, which are all of one length.
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), init=False, repr=False)

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.password is None:
            raise ConfigError(
                f"host: {self.host} can be reached from other machines, so a password is needed; "
                "put one into NAS_DASHBOARD_PASSWORD, or leave --host at 127.0.0.1 and tunnel with ssh -L"
            )
        if self.password is not None and len(self.password) < SHORTEST_PASSWORD:
            raise ConfigError(
                f"NAS_DASHBOARD_PASSWORD: at least {SHORTEST_PASSWORD} characters, got {len(self.password)}"
            )

    def check(self, environ: Environ) -> None:
        """Whether a request may be looked at at all.

        Raises:
            Denied: it goes to a host that this is not, its password is missing or wrong, or it comes from where too
                many were wrong.
        """
        asked = environ.get("HTTP_HOST", "")
        if not self._is_own_name(asked):
            raise Denied(421, f"this server does not answer for the host {asked[:100]!r}")
        if self.password is not None:
            self._check_password(environ.get("HTTP_AUTHORIZATION", ""), environ.get("REMOTE_ADDR", ""))

    def _check_password(self, authorization: str, address: str) -> None:
        if not authorization:
            # Every browser asks first without one.
            raise Denied(401, "a password is needed")
        wait_s = self.attempts.wait_s(address)
        if wait_s:
            raise Denied(429, f"too many wrong passwords; wait {wait_s} s", wait_s)
        if not self._password_is_right(authorization):
            self.attempts.was_wrong(address)
            raise Denied(401, "a password is needed")
        self.attempts.was_right(address)

    def check_change(self, environ: Environ, token: str) -> None:
        """Whether a request may change something, beside what `check` asks.

        Raises:
            Denied: it does not come from a page of ours.
        """
        self.check_origin(environ)
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise Denied(403, "the page is from an earlier run of the dashboard; load it again")

    def check_origin(self, environ: Environ) -> None:
        """Whether a request says that it comes from a page of ours; one that says nothing does not.

        Raises:
            Denied: it does not.
        """
        origin = environ.get("HTTP_ORIGIN", "")
        site = environ.get("HTTP_SEC_FETCH_SITE", "same-origin")
        parts = urlsplit(origin)
        if site != "same-origin" or parts.scheme not in ("http", "https") or parts.netloc != environ["HTTP_HOST"]:
            raise Denied(403, "changes are taken from the pages of this server only")

    def _is_own_name(self, asked: str) -> bool:
        # The port is whatever the reader's end of a tunnel has.
        try:
            name = urlsplit(f"//{asked}").hostname or ""
        except ValueError:
            return False
        if is_loopback(name) or name == self.host.lower():
            return True
        # A name can be made to point here by anyone who owns it, a number cannot.
        return not is_loopback(self.host) and (_is_address(name) or name == socket.gethostname().lower())

    def _password_is_right(self, authorization: str) -> bool:
        assert self.password is not None
        kind, _, encoded = authorization.partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            _, _, given = base64.b64decode(encoded, validate=True).partition(b":")
        except binascii.Error:
            return False
        return hmac.compare_digest(self._digest(given), self._digest(self.password.encode()))

    def _digest(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name or number."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
