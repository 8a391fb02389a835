"""`nas dashboard`: the server behind the pages."""

import socket
import socketserver
import sys
from collections.abc import Callable
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import torch
from optuna.storages import BaseStorage

from hardware.strict_yaml import ConfigError
from nas.exit_codes import DONE
from nas.storage import open_storage
from nas.web.app import App
from nas.web.guard import Guard, is_loopback
from nas.web.optuna_pages import OptunaPages, is_installed
from nas.web.runs import Runs
from nas.web.stored import StoredStudies
from nas.web.studies import Studies, database

# A reader that sends nothing for so long is let go.
PATIENCE_S = 30


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    # The standard server is changed by overriding it; it has no other way.
    timeout = PATIENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a page asks every two seconds."""


def dashboard(guard: Guard, port: int, studies: Path, storage: str | None, optuna_writes: bool) -> int:
    """Serves the pages until Ctrl-C.

    Raises:
        ConfigError: the port is taken, or the storage cannot be opened.
    """
    server = make(guard, port, studies, storage, optuna_writes)
    address = f"[{guard.host}]" if ":" in guard.host else guard.host
    print(
        f"http://{address}:{server.server_port}/ shows the studies in {studies.resolve()}; Ctrl-C ends it", flush=True
    )
    if not is_installed():
        print("without Optuna's own charts: pip install 'edge-nas[dashboard]'", file=sys.stderr)
    if not is_loopback(guard.host):
        print(
            "the password travels unencrypted; `ssh -L` to 127.0.0.1 is the safer way",
            file=sys.stderr,
        )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return DONE


def make(guard: Guard, port: int, studies: Path, storage: str | None, optuna_writes: bool) -> WSGIServer:
    """A server that listens; port 0 takes any that is free.

    Raises:
        ConfigError: the port is taken, or the storage cannot be opened.
    """
    if optuna_writes and storage is None:
        raise ConfigError(
            "optuna-writes: only with --storage URL; a study's journal has one writer, which is its driver"
        )
    runs = Runs()
    found = Studies(studies, runs)
    shown = _shown_storage(found, storage, optuna_writes)
    # The pages compute next to studies that train.
    torch.set_num_threads(1)
    kind = _Server6 if ":" in guard.host else _Server
    try:
        server = make_server(guard.host, port, _not_ready, kind, _Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {guard.host}, port {port}: {reason}; give another --port") from error
    optuna = OptunaPages(shown) if is_installed() else None
    stored = StoredStudies(storage) if storage is not None else None
    server.set_app(App(found, runs, guard, optuna, stored, optuna_writes=optuna_writes))
    return server


def _shown_storage(found: Studies, url: str | None, writes: bool) -> Callable[[], BaseStorage]:
    if url is None:
        return lambda: found.storage
    storage = open_storage(found.root, url) if writes else database(url)
    return lambda: storage


def _not_ready(environ: object, start_response: object) -> list[bytes]:
    raise AssertionError("nobody is served before the application is there")
