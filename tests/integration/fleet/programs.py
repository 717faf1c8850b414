"""Programs of others that a fleet is made of: SeaweedFS, Envoy. None outlives
the test. No tests here."""

import pathlib
import signal
import socket
import subprocess
import sys

import harness

VENV = pathlib.Path(sys.prefix) / "bin"


def free_ports(count):
    """Ports that nobody has: all are held while others are looked for."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Program:
    """A process of words[0], of this virtual environment. What it says goes to
    a file."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log_file = self.folder / "log"
        self.process = None

    def run(self, words):
        program = VENV / words[0]
        assert program.exists(), f"expected {program}: see requirements.txt"
        # It ends with the thread that starts it: that is pytest's own.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", program, *words[1:]],
            stdin=subprocess.DEVNULL, stdout=open(self.log_file, "ab"),
            stderr=subprocess.STDOUT, cwd=self.folder)

    def signal(self, number):
        self.process.send_signal(number)

    def wait_for(self, condition, seconds, what):
        """Until it is true, or the program has ended."""

        def either():
            assert self.process.poll() is None, self.log()
            return condition()

        harness.wait_until(either, seconds, what)

    def log(self):
        return self.log_file.read_text(errors="replace")[-8000:]

    def kill(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
