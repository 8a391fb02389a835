"""What happens to a call that goes wrong in a process of its own, and to those after it."""

import math
import os
import signal
import sys
import time
from pathlib import Path

from hardware.isolated import Failed, run_isolated


def test_calls_are_answered_in_order_by_one_process():
    assert list(run_isolated(math.hypot, [(3, 4), (5, 12)], timeout_s=30)) == [5, 13]
    processes = list(run_isolated(os.getpid, [(), ()], timeout_s=30))
    assert processes[0] == processes[1] != os.getpid()


def test_a_crash_is_an_answer_and_the_next_call_gets_another_process():
    # Signal 0 does nothing; 11 is what a wild pointer ends in.
    answers = list(run_isolated(signal.raise_signal, [(0,), (signal.SIGSEGV,), (0,)], timeout_s=30))
    assert answers == [None, Failed("crashed with SIGSEGV"), None]


def test_what_was_printed_before_the_end_is_part_of_the_reason():
    code = "import os; os.write(1, b'out of\\nluck'); os._exit(3)"
    (answer,) = run_isolated(exec, [(code,)], timeout_s=30)
    assert answer == Failed("ended its process with code 3 (out of luck)")


def test_a_call_that_hangs_is_ended():
    begin = time.perf_counter()
    hung, fine = run_isolated(time.sleep, [(60,), (0,)], timeout_s=2)
    assert hung == Failed("did not end within 2 s")
    assert fine is None
    assert time.perf_counter() - begin < 30


def test_an_error_is_a_reason_and_the_process_lives_on():
    first, second = run_isolated(math.sqrt, [(-1,), (4,)], timeout_s=30)
    assert isinstance(first, Failed)
    assert first.reason.startswith("ValueError: ")
    assert second == 2


def test_what_a_library_prints_is_not_taken_for_an_answer(capfd):
    assert list(run_isolated(os.write, [(1, b"noise"), (1, b"more")], timeout_s=30)) == [5, 4]
    assert capfd.readouterr() == ("", "")


def test_a_file_called_like_a_library_is_not_imported_for_it(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert list(run_isolated(math.sqrt, [(9,)], timeout_s=30)) == [3]


def test_stopping_early_leaves_no_process_behind():
    answers = run_isolated(os.getpid, [(), ()], timeout_s=30)
    process = next(answers)
    answers.close()
    assert not Path(f"/proc/{process}").exists() or sys.platform != "linux"
