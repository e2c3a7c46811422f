"""A training by a program of the user's own: what it is told, how it is run, and how its score is read.

The command line is split as a shell would split it, and run without one. Placeholders in it are replaced:
``{mixture}``, ``{rows}``, ``{validation}`` and ``{score}`` by paths of files, ``{size}`` and ``{seed}`` by
numbers.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixwright.config import Settings
from mixwright.errors import ConfigError, MixwrightError
from mixwright.jobs import train_command_guard

PLACEHOLDERS = ("mixture", "rows", "validation", "size", "seed", "score")

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class TrainCommand:
    """A command line with placeholders.

    ``folder`` is where it runs; ``threads`` is OMP_NUM_THREADS as the user has set it: Ray sets 1 for its workers.
    ``job`` is the process of the job, on the machine ``host``: with it the program ends.
    """

    arguments: tuple[str, ...]
    folder: Path
    threads: str | None
    host: str
    job: int
    timeout_seconds: float | None

    @classmethod
    def parse(cls, text: str, timeout_seconds: float | None) -> TrainCommand:
        """Raises ConfigError for a command line that cannot be split and for an unknown placeholder."""
        try:
            arguments = tuple(shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"train command {text!r} cannot be split ({error}): close its quotes") from error
        if not arguments:
            raise ConfigError("the train command is empty: give the program that trains and scores")
        for name in _PLACEHOLDER.findall(" ".join(arguments)):
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
                raise ConfigError(f"train command: unknown placeholder {{{name}}}: use one of {known}")
        threads = os.environ.get("OMP_NUM_THREADS")
        return cls(arguments, Path.cwd(), threads, socket.gethostname(), os.getpid(), timeout_seconds)

    def mentions(self, name: str) -> bool:
        """Whether a placeholder occurs."""
        return any(f"{{{name}}}" in argument for argument in self.arguments)

    def filled(self, values: Mapping[str, object]) -> list[str]:
        """The arguments with the placeholders replaced."""
        return [_PLACEHOLDER.sub(lambda match: str(values[match[1]]), each) for each in self.arguments]

    def run(self, name: str, values: Mapping[str, object], log: Path) -> float:
        """Run the program; returns the score that it writes to the file ``score`` of ``values``, or prints last.

        Its output is kept in ``log.stdout`` and ``log.stderr``. Raises MixwrightError naming the run for an
        exit status other than 0, a score that is no finite number, and a timeout.
        """
        output, errors = log.with_suffix(".stdout"), log.with_suffix(".stderr")
        # Isolated: else the folder of the file would be on its path, whose select.py hides Python's own.
        me = os.getpid()
        job = self.job if self.host == socket.gethostname() else me
        guard = [sys.executable, "-I", "-S", train_command_guard.__file__, str(me), str(job)]
        with output.open("wb") as out, errors.open("wb") as err:
            process = subprocess.Popen(
                [*guard, *self.filled(values)],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                status = process.wait(self.timeout_seconds)
            except subprocess.TimeoutExpired as error:
                raise MixwrightError(
                    f"{name}: the train command ran longer than {self.timeout_seconds:g} seconds and was ended: "
                    f"raise the timeout or lower the size (its output: {log}.*)"
                ) from error
            finally:
                _end_group(process)
        if status:
            last = _last_line(errors) or "nothing on standard error"
            raise MixwrightError(
                f"{name}: the train command ended with exit status {status} ({last}): correct it and run the job "
                f"again; finished runs are kept (its output: {log}.*)"
            )
        return _score(name, Path(str(values["score"])), output, log)

    def _environment(self) -> dict[str, str]:
        """This process's environment without what Ray has put into it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        kept.pop("OMP_NUM_THREADS", None)
        return kept if self.threads is None else kept | {"OMP_NUM_THREADS": self.threads}


def refuse_train_command(evaluator: str, settings: Settings) -> None:
    """Raise ConfigError for a command that came over REST, unless the service's settings allow it.

    Whoever reaches the port could run any program as the service's user.
    """
    if evaluator == "command" and not settings.allow_train_commands:
        raise ConfigError(
            "the evaluator command runs a program on the service's machine, which is not allowed: run  mixwright "
            "pilot run  there, or start the service with MIXWRIGHT_ALLOW_TRAIN_COMMANDS=true"
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the guard, the program and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _score(name: str, path: Path, output: Path, log: Path) -> float:
    written = path.read_text("utf-8", errors="replace").strip() if path.exists() else ""
    text = written or _last_line(output)
    where = "wrote" if written else "printed last"
    try:
        value = json.loads(text)
        number = value.get("score") if isinstance(value, dict) else value
        if not isinstance(number, int | float | str) or isinstance(number, bool):
            raise TypeError("no number")
        score = float(number)
    except (ValueError, TypeError, OverflowError):
        score = math.nan
    if math.isfinite(score):
        return score
    shown = f"{where} {text[:200]!r}" if text else "wrote no score"
    raise MixwrightError(
        f'{name}: the train command {shown}: write one finite number, or JSON with "score", to the file {{score}} '
        f"or as the last line of standard output (its output: {log}.*)"
    )


def _last_line(path: Path) -> str:
    """The last line of a file that is not blank; "" if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
