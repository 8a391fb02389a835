"""The server itself: ports, passwords and hosts as `nas dashboard` takes them, and answers over a real socket."""

import socket
import threading
import urllib.error
import urllib.request

import pytest

from hardware.strict_yaml import ConfigError
from nas.cli import main
from nas.exit_codes import WRONG_INPUT
from nas.web.guard import Guard
from nas.web.server import make


def test_pages_come_over_a_socket(serve, finished):
    base = serve(finished)
    with urllib.request.urlopen(f"{base}/studies/mine", timeout=30) as answer:
        assert answer.status == 200
        assert b"mine" in answer.read()
    with urllib.request.urlopen(f"{base}/studies/mine/files/front.json", timeout=30) as answer:
        assert len(answer.read()) == int(answer.headers["Content-Length"])


def test_a_password_is_asked_for(serve, finished):
    base = serve(finished, password="correct horse battery")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(base, timeout=30)
    refused.value.close()
    assert refused.value.code == 401
    assert refused.value.headers["WWW-Authenticate"].startswith("Basic ")


def test_many_readers_at_a_time_are_served(serve, finished):
    base = serve(finished)
    answers = []

    def read():
        with urllib.request.urlopen(f"{base}/studies/mine", timeout=30) as answer:
            answers.append(answer.read())

    readers = [threading.Thread(target=read) for _ in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(answers) == 12
    assert len(set(answers)) == 1


def test_a_port_in_use_is_one_clear_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["dashboard", "--port", str(port), "--out", str(tmp_path)]) == WRONG_INPUT
    assert f"cannot listen on 127.0.0.1, port {port}: " in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_impossible_port_is_one_clear_line(tmp_path, port):
    with pytest.raises(ConfigError, match="cannot listen on"):
        make(Guard("127.0.0.1"), port, tmp_path, None, False)


def test_another_host_without_a_password_is_wrong_input(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NAS_DASHBOARD_PASSWORD", raising=False)
    assert main(["dashboard", "--host", "0.0.0.0", "--out", str(tmp_path)]) == WRONG_INPUT
    assert "a password is needed" in capsys.readouterr().err


def test_optunas_writes_are_for_databases_alone(tmp_path):
    with pytest.raises(ConfigError, match="a study's journal has one writer"):
        make(Guard("127.0.0.1"), 0, tmp_path, None, True)
