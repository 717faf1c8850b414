"""A wall clock that a test can set. No tests here."""

import pathlib

FAKETIME = pathlib.Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class Clock:
    """The wall clock of a server, which a test can set. Its monotonic clock
    stays as it is."""

    def __init__(self, folder):
        self.file = folder / "clock"
        self.set(0)
        self.env = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                    "FAKETIME_TIMESTAMP_FILE": str(self.file)}

    def set(self, days):
        new = self.file.with_suffix(".new")
        new.write_text(f"{days * 86400:+.0f}\n")  # seconds
        new.rename(self.file)
