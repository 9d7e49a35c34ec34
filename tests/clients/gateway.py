"""The gateway as its own process, for the tests that are written in Python."""

import ctypes
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
READY = re.compile(r"ready: http://[^ ]*:(\d+) .*admin http://[^ )]*:(\d+)")


def binary():
    """The binary under test: SHARDCAST_TEST_BINARY, or the release build of this checkout."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("SHARDCAST_TEST_BINARY", str(target / "release" / "shardcast"))


def _die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Gateway:
    """Starts on entry, ends with SIGTERM on exit. `limits` are keys of the `[limits]` table, `env` other settings in their twins of the environment."""

    def __init__(self, *args, listen=0, driver=None, limits=None, env=None):
        driver = driver or os.environ.get("SHARDCAST_TEST_DRIVER", "uring")
        self._command = [binary(), "serve", "--listen", f"127.0.0.1:{listen}", "--admin", "127.0.0.1:0", "--driver", driver, *args]
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("SHARDCAST_")}
        self._env.update({f"SHARDCAST_LIMITS_{k.upper()}": str(v) for k, v in (limits or {}).items()})
        self._env.update(env or {})
        self.log = ""

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        deadline = time.monotonic() + 20
        while not ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._reader.join(1)
                raise RuntimeError(f"no readiness line from {' '.join(self._command)}; it said:\n{self.log}")
        self.port, self.admin = (int(group) for group in READY.search(self.log).groups())
        return self

    def _read(self, ready):
        for line in self._process.stderr:
            self.log += line
            if READY.search(line):
                ready.set()

    def url(self, path):
        return f"ws://127.0.0.1:{self.port}{path}"

    def http(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def kill(self):
        """SIGKILL: its clients are told nothing."""
        self._process.kill()
        self._process.wait()

    def stop(self, seconds=20):
        """SIGTERM, then the exit code."""
        self._process.terminate()
        return self._process.wait(seconds)

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(1)
