"""How well projektor predicts and chooses mixtures of text corpora, against all other predictors.

    python examples/projektor_text.py --out results [--data FOLDER --sources NAME NAME NAME]

``--data`` is a folder of JSON lines with a field ``text``, one file a source; without it, text that every machine
with mixwright has: source of Python's library, docstrings and descriptions of the installed packages. Byte n-gram
models are trained on 66 mixtures of shares 0, 0.1 … 1, at pilot sizes N0 and N1 and at a larger size N. They are
judged on a held-out blend of the three sources, 50, 30 and 20 %. From K of the pilots every predictor predicts all
other mixtures.

The corpora are cut into passages of 1,500 characters; for each seed other ones are held out, for validation and
for test. The transport (and MixMin) see the validation passages; scores, of pilots and truth alike, are bits a
byte on the test passages. A truth is the mean of several trainings that no predictor sees.

OUT gets results.md, results.json and plots. Everything that is finished is kept there: the same command goes on
after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mixwright.errors import MixwrightError
from mixwright.fingerprint import file_sha256
from mixwright.schemas.defaults import DEFAULT_ENCODER

SIZES = (20_000, 80_000, 320_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        _run(options, f"python examples/projektor_text.py {shlex.join(arguments)}")
    except MixwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    from projektor_study.experiment import add_options

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of JSON lines; default: text that every machine has")
    parser.add_argument(
        "--sources", nargs=3, metavar="NAME", help="files of --data; default: all, if it has three"
    )
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help=f"default: {DEFAULT_ENCODER}")
    add_options(parser, SIZES, "characters")
    return parser


def _run(options: argparse.Namespace, command: str) -> None:
    from projektor_study import experiment
    from projektor_study.text import Text, find_sources, prepare, write_demo_texts

    experiment.check(options)
    folder = options.data
    if folder is None:
        folder = options.out / "texts"
        write_demo_texts(folder)
    files = find_sources(folder, options.sources)
    digests = {path.stem: file_sha256(path) for path in files}
    experiment.remember(options, encoder=options.encoder, corpora=digests)
    prepare(files, options.encoder, options.out / "passages")
    low, high, size = options.sizes
    names = tuple(digests)
    study = experiment.Study(
        worlds={"text": partial(Text, options.out / "passages", names)},
        scale=1.0,
        unit="bits a byte",
        title="projektor on text",
        about=f"Byte n-gram models of N0 = {low:,}, N1 = {high:,} and N = {size:,} characters of "
        f"{', '.join(names)}, judged on a held-out blend of the three at 50, 30 and 20 %, "
        "whose passages are disjoint from the validation passages of the transport.",
    )
    experiment.run(study, options, command)


if __name__ == "__main__":
    sys.exit(main())
