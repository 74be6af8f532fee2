"""The process of a tracking service with services for tests: `toy_services.py tracker NAME`, as the job starts it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    # The folder of this file has modules with the names of libraries.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from engine.results.trackers import registry, service_process
from engine.results.trackers.registry import ServiceRow
from engine.results.trackers.service import SERVICE_PROCESS, Followed, Shown


class Recording:
    """Writes what it is told to `OUT/records`."""

    def __init__(self, followed: Followed) -> None:
        self._path = Path(followed.folder, "records")
        self._write("open", followed.run, followed.step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._write("log", step, dict(sorted(values.items())))

    def pictures(self, step: int, pictures: Sequence[Shown]) -> None:
        for picture in pictures:
            assert picture.png.startswith(b"\x89PNG")
            self._write("pictures", step, picture.name, picture.prompt)

    def close(self) -> None:
        self._write("close")

    def _write(self, *words: object) -> None:
        with self._path.open("a") as file:
            print(*words, file=file)


class Refused(Recording):
    def __init__(self, followed: Followed) -> None:
        raise RuntimeError("no API key")


class Failing(Recording):
    def __init__(self, followed: Followed) -> None:
        print("noise that is no message", flush=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("no route to the tracking server")


class Crashing(Failing):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Failing):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        time.sleep(600)


SERVICES = {
    "records": Recording,
    "fails at once": Refused,
    "fails later": Failing,
    "crashes": Crashing,
    "hangs": Hanging,
    "hangs too": Hanging,
}

if __name__ == "__main__":
    registry.SERVICES.update({name: ServiceRow("json", kind) for name, kind in SERVICES.items()})
    _, program, *arguments = sys.argv
    assert program == SERVICE_PROCESS
    sys.exit(service_process.main(arguments, os.environ))
