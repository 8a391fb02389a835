"""Who is let in, and what a page of somebody else's cannot do."""

import base64

import pytest

from hardware.strict_yaml import ConfigError
from nas.web.attempts import MOST_CLIENTS, Attempts, client_of
from nas.web.guard import Denied, Guard, is_loopback
from tests.nas.web.conftest import HOST

PASSWORD = "correct horse battery"


def basic(text):
    return {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(text.encode()).decode()}


def status(guard, **environ):
    try:
        guard.check({"HTTP_HOST": HOST} | environ)
    except Denied as denied:
        return denied.status
    return 200


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("LOCALHOST:8080", 200),
        ("evil.example:8080", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("localhost.evil.example:8080", 421),
        ("192.168.1.5:8080", 421),
        ("127.0.0.1:9999", 200),  # the near end of a tunnel
        ("127.0.0.1", 200),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered_for(host, answer):
    # A name of somebody else's that points here is how a page elsewhere would read this one (DNS rebinding).
    assert status(Guard("127.0.0.1"), HTTP_HOST=host) == answer


@pytest.mark.parametrize(
    ("host", "answer"), [("192.168.1.5:8080", 200), ("evil.example:8080", 421), ("127.0.0.1:8080", 200)]
)
def test_a_server_for_all_networks_answers_for_numbers_and_not_for_names_of_others(host, answer):
    assert status(Guard("0.0.0.0", PASSWORD), HTTP_HOST=host, **basic(f"me:{PASSWORD}")) == answer


def test_a_named_host_answers_for_its_name():
    guard = Guard("board.lan", PASSWORD)
    assert status(guard, HTTP_HOST="board.lan:8080", **basic(f":{PASSWORD}")) == 200
    assert status(guard, HTTP_HOST="other.lan:8080", **basic(f":{PASSWORD}")) == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "board.lan"])
def test_other_hosts_than_this_machine_need_a_password(host):
    with pytest.raises(ConfigError, match="a password is needed; put one into NAS_DASHBOARD_PASSWORD"):
        Guard(host)


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback_is_this_machine_alone(host, own):
    assert is_loopback(host) is own


def test_a_short_password_is_refused():
    with pytest.raises(ConfigError, match="at least 12 characters, got 5"):
        Guard("0.0.0.0", "short")


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (basic(f"me:{PASSWORD}"), 200),
        (basic(f":{PASSWORD}"), 200),
        (basic("me:wrong"), 401),
        (basic("me:"), 401),
        (basic(PASSWORD), 401),
        ({"HTTP_AUTHORIZATION": f"Bearer {PASSWORD}"}, 401),
        ({"HTTP_AUTHORIZATION": "Basic %%%"}, 401),
        ({}, 401),
    ],
)
def test_nothing_is_shown_without_the_password(given, answer):
    assert status(Guard("127.0.0.1", PASSWORD), **given) == answer


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, 200),
        ({"HTTP_SEC_FETCH_SITE": None}, 200),
        ({"HTTP_ORIGIN": None}, 403),
        ({"HTTP_ORIGIN": "null"}, 403),
        ({"HTTP_ORIGIN": "http://evil.example"}, 403),
        ({"HTTP_ORIGIN": "http://127.0.0.1:9999"}, 403),
        ({"HTTP_ORIGIN": "http://localhost:8080"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-site"}, 403),
    ],
)
def test_changes_come_from_pages_of_this_server_only(changes, answer):
    given = {"HTTP_HOST": HOST, "HTTP_ORIGIN": f"http://{HOST}", "HTTP_SEC_FETCH_SITE": "same-origin"} | changes
    guard = Guard("127.0.0.1")
    environ = {name: value for name, value in given.items() if value is not None}
    if answer == 200:
        guard.check_change(environ, guard.token)
    else:
        with pytest.raises(Denied, match="from the pages of this server only"):
            guard.check_change(environ, guard.token)


@pytest.mark.parametrize("token", ["", "wrong", "\N{SNOWMAN}"])
def test_changes_need_the_token_of_the_page(token):
    with pytest.raises(Denied, match="earlier run"):
        Guard("127.0.0.1").check_change({"HTTP_HOST": HOST, "HTTP_ORIGIN": f"http://{HOST}"}, token)


def test_each_run_has_a_token_of_its_own_that_no_message_shows():
    first, second = Guard("127.0.0.1", PASSWORD), Guard("127.0.0.1", PASSWORD)
    assert first.token != second.token
    assert len(first.token) >= 43
    assert first.token not in repr(first)
    assert PASSWORD not in repr(first)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guarded(clock):
    return Guard("0.0.0.0", PASSWORD, attempts=Attempts(clock))


WRONG, RIGHT = basic("me:not this one at all"), basic(f"me:{PASSWORD}")


def test_guessing_gets_slower_with_every_wrong_password_up_to_a_minute(guarded, clock):
    guesser = {"REMOTE_ADDR": "10.0.0.9"} | WRONG
    assert [status(guarded, **guesser) for _ in range(6)] == [401] * 4 + [429] * 2
    waits = []
    for _ in range(9):
        with pytest.raises(Denied) as denied:
            guarded.check({"HTTP_HOST": HOST} | guesser)
        waits.append(denied.value.retry_after_s)
        clock.now_s += waits[-1] - 0.5
        assert status(guarded, **guesser) == 429, "half a second too early"
        clock.now_s += 0.5
        assert status(guarded, **guesser) == 401
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_right_password_is_not_looked_at_while_its_sender_waits(guarded, clock):
    own = {"REMOTE_ADDR": "10.0.0.9"}
    for _ in range(4):
        status(guarded, **own, **WRONG)
    assert status(guarded, **own, **RIGHT) == 429
    clock.now_s += 1
    assert status(guarded, **own, **RIGHT) == 200
    # and all is forgiven
    assert [status(guarded, **own, **WRONG) for _ in range(4)] == [401] * 4


def test_others_do_not_wait_for_a_guesser(guarded):
    for _ in range(9):
        status(guarded, REMOTE_ADDR="10.0.0.9", **WRONG)
    assert status(guarded, REMOTE_ADDR="10.0.0.8", **RIGHT) == 200
    assert status(guarded, REMOTE_ADDR="10.0.0.9", **RIGHT) == 429


def test_asking_without_a_password_is_no_guess(guarded):
    assert [status(guarded, REMOTE_ADDR="10.0.0.9") for _ in range(20)] == [401] * 20
    assert status(guarded, REMOTE_ADDR="10.0.0.9", **RIGHT) == 200


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::5", "2001:db8:1:2:ffff::9", True),  # one home has 2^64 of these
        ("2001:db8:1:2::5", "2001:db8:1:3::5", False),
        ("::ffff:10.0.0.9", "10.0.0.9", True),
        ("::ffff:10.0.0.9", "::ffff:10.0.0.8", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("10.0.0.9", "10.0.0.8", False),
    ],
)
def test_who_counts_as_one_client(first, second, same):
    assert (client_of(first) == client_of(second)) is same


def test_guessing_from_everywhere_fills_no_memory(clock):
    attempts = Attempts(clock)
    for number in range(MOST_CLIENTS + 50):
        attempts.was_wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts._clients) == MOST_CLIENTS
    clock.now_s += 3601
    attempts.was_wrong("10.0.0.1")
    assert len(attempts._clients) == 1
