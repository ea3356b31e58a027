"""``fedsec`` in a process of its own, forked from one that has imported torch, opacus and the rest: the same program without its five seconds of imports.

What a new interpreter does is ``test_simulation``'s business; the others start the command often, and would mostly measure imports.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

PRELOAD = ["tests.e2e.preloaded"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(PRELOAD)


def _run(arguments, environment, out, err):
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["fedsec", *arguments]
    from fedsec.cli.main import run

    run()


class Command:
    """One command that runs; the part of ``subprocess.Popen`` that the tests need.

    Args:
        arguments: behind ``fedsec``.
        folder: for what it prints.
    """

    def __init__(self, arguments, folder):
        self.arguments = [str(argument) for argument in arguments]
        self._out, self._err = Path(folder) / "stdout", Path(folder) / "stderr"
        self._process = _CONTEXT.Process(target=_run, args=(self.arguments, dict(os.environ), str(self._out), str(self._err)))
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout=200):
        """Until it ends; killed, and an error, if that takes too long."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return self.returncode

    def communicate(self, timeout=200):
        """Its end; what it printed on stdout and stderr."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()
