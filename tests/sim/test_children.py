"""Child processes: started so many at a time, tried twice, ended on request, and never left behind. Every child here is a real process."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fedsec.errors import FedsecError
from fedsec.sim.children import Child, Stop, run_children


def child(name, code, again=None):
    return Child(
        name=name, command=(sys.executable, "-S", "-c", code), again=(sys.executable, "-S", "-c", again if again is not None else code)
    )


def outcomes(children, jobs=2, read=lambda _child, printed: printed.strip(), stop=None, **more):
    return list(run_children(children, jobs=jobs, read=read, stop=stop or Stop(), **more))


def alive(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


def wait_for(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_each_child_gives_what_it_printed():
    found = outcomes([child(str(n), f"print({n} * {n})") for n in range(5)])
    assert {outcome.child.name: outcome.value for outcome in found} == {str(n): str(n * n) for n in range(5)}
    assert all(outcome.fault == "" and outcome.tries == 1 and outcome.seconds > 0 for outcome in found)


def test_no_more_than_jobs_run_at_a_time(tmp_path):
    code = f"import os,time; p={str(tmp_path)!r}+'/'+str(os.getpid()); open(p,'w').close(); print(len(os.listdir({str(tmp_path)!r}))); time.sleep(.2); os.remove(p)"
    found = outcomes([child(str(n), code) for n in range(6)], jobs=2)
    counts = [int(outcome.value) for outcome in found]
    assert max(counts) == 2, counts
    assert min(counts) >= 1


def test_a_failure_is_tried_once_more_after_the_others_and_then_reported_without_losing_the_rest():
    bad = child(
        "bad", "import sys; print('first', file=sys.stderr); sys.exit(3)", "import sys; print('no such luck', file=sys.stderr); sys.exit(4)"
    )
    mended = child("mended", "raise SystemExit(1)", "print('second try')")
    found = {outcome.child.name: outcome for outcome in outcomes([bad, mended, child("good", "print('x')")], jobs=1)}
    assert (found["bad"].value, found["bad"].tries, found["bad"].fault) == (None, 2, "exit code 4: no such luck")
    assert (found["mended"].value, found["mended"].tries) == ("second try", 2)
    assert (found["good"].value, found["good"].tries) == ("x", 1)
    assert list(found) == ["good", "bad", "mended"]


def test_output_that_is_no_result_is_a_failure():
    def read(_child, printed):
        raise FedsecError(f"nothing in {printed!r}")

    (outcome,) = outcomes([child("a", "print(1)")], read=read)
    assert outcome.tries == 2
    assert outcome.fault == "its output is no result: nothing in '1\\n'"


def test_a_child_that_is_killed_says_so():
    (outcome,) = outcomes([child("a", "import os; os.kill(os.getpid(), 9)")])
    assert outcome.fault == "killed by signal 9"


def test_only_the_end_of_a_long_complaint_is_kept():
    (outcome,) = outcomes([child("a", "import sys; sys.stderr.write('x' * 100000 + 'the end'); sys.exit(1)")])
    assert outcome.fault.endswith("the end")
    assert len(outcome.fault) < 5000


def test_what_a_child_leaves_behind_is_ended_and_holds_nothing_up(tmp_path):
    note = tmp_path / "pid"
    code = f"import subprocess,sys; p=subprocess.Popen([sys.executable,'-S','-c','import time; time.sleep(60)']); open({str(note)!r},'w').write(str(p.pid))"
    started = time.monotonic()
    outcomes([child("a", code)])
    assert time.monotonic() - started < 20
    wait_for(lambda: not alive(int(note.read_text())))


def test_the_environment_is_the_given_one():
    (outcome,) = outcomes([child("a", "import os; print(os.environ['FEDSEC_PROBE'])")], environment={**os.environ, "FEDSEC_PROBE": "17"})
    assert outcome.value == "17"


def test_a_stop_asks_each_child_to_end_and_starts_no_other(tmp_path):
    """A child that ends in good order with a result counts; one that does not is no failure."""
    polite = f"import time,signal\nopen({str(tmp_path / 'ready')!r},'w').close()\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('in good order')"
    stop = Stop()

    def tick(_running):
        stop.level = int((tmp_path / "ready").exists())

    found = outcomes([child("polite", polite), child("never", "print('started')")], jobs=1, stop=stop, on_tick=tick)
    assert [(outcome.child.name, outcome.value) for outcome in found] == [("polite", "in good order")]
    (tmp_path / "ready").unlink()
    stop.level = 0
    rude = f"import time\nopen({str(tmp_path / 'ready')!r},'w').close()\ntime.sleep(60)"
    assert outcomes([child("rude", rude)], stop=stop, on_tick=tick) == []


@pytest.mark.parametrize(("level", "grace_s"), [(1, 0.5), (2, 60.0)])
def test_a_child_that_does_not_end_is_killed_after_its_grace_or_when_asked_twice(tmp_path, level, grace_s):
    deaf = f"import time,signal,os\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen({str(tmp_path / 'ready')!r},'w').write(str(os.getpid()))\ntime.sleep(60)"
    stop = Stop()

    def tick(_running):
        stop.level = level if (tmp_path / "ready").exists() else 0

    started = time.monotonic()
    assert outcomes([child("deaf", deaf)], stop=stop, on_tick=tick, grace_s=grace_s) == []
    assert time.monotonic() - started < 20
    assert not alive(int((tmp_path / "ready").read_text()))


def test_a_caller_that_gives_up_leaves_nothing_running(tmp_path):
    slow = f"import time,os\nopen({str(tmp_path / 'pid')!r},'w').write(str(os.getpid()))\ntime.sleep(60)"
    ends = run_children([child("quick", "print(1)"), child("slow", slow)], jobs=2, read=lambda _child, printed: printed, stop=Stop())
    next(ends)
    wait_for((tmp_path / "pid").exists)
    wait_for(lambda: (tmp_path / "pid").read_text())
    ends.close()
    assert not alive(int((tmp_path / "pid").read_text()))


def test_the_sudden_death_of_the_parent_ends_its_children(tmp_path):
    note = tmp_path / "pid"
    parent = textwrap.dedent(f"""
        import sys
        from fedsec.sim.children import Child, Stop, run_children
        code = "import os,time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        command = (sys.executable, "-S", "-c", code)
        list(run_children([Child(name="a", command=command, again=command)], jobs=1, read=lambda c, p: p, stop=Stop()))
    """)
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        wait_for(note.exists)
        wait_for(note.read_text)
        pid = int(note.read_text())
        assert alive(pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not alive(pid))


def test_signals_count_up_and_are_given_back():
    stop, before = Stop(), signal.getsignal(signal.SIGINT)
    with stop.on_signals():
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.asked, stop.level) == (True, 1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.level == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="one job"):
        outcomes([], jobs=0)
    with pytest.raises(ValueError, match="no name twice"):
        outcomes([child("a", ""), child("a", "")])
