"""How well projektor predicts and chooses mixtures of handwritten digits, against all other predictors.

    python examples/projektor_digits.py --out results

Two problems with three sources each, of scikit-learn's digits: ``skew`` (each source has most of some classes) and
``quality`` (a tenth to more than half of the labels are random). Logistic regression is trained on 66 mixtures of
shares 0, 0.1 … 1, at pilot sizes N0 and N1 and at a larger size N; rows are drawn with replacement from the
sources' fixed pools. From K of the pilots every predictor predicts all other mixtures.

300 validation rows and 300 test rows are held out for each seed. The transport (and MixMin) see the validation
rows; scores, of pilots and truth alike, are accuracy on the test rows. A truth is the mean of several trainings
that no predictor sees.

OUT gets results.md, results.json and plots. Everything that is finished is kept there: the same command goes on
after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from mixwright.errors import MixwrightError

SIZES = (100, 400, 4000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    from projektor_study import experiment
    from projektor_study.digits import Digits

    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    experiment.add_options(parser, SIZES, "rows")
    options = parser.parse_args(arguments)
    low, high, size = options.sizes
    study = experiment.Study(
        worlds={kind: partial(Digits, kind) for kind in ("skew", "quality")},
        scale=100.0,
        unit="points",
        title="projektor on handwritten digits",
        about=f"Accuracy of a logistic regression of N0 = {low:,}, N1 = {high:,} and N = {size:,} rows, on test "
        "rows that are disjoint from the validation rows of the transport.",
    )
    try:
        experiment.check(options)
        experiment.remember(options)
        experiment.run(study, options, f"python examples/projektor_digits.py {shlex.join(arguments)}")
    except MixwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
