"""Statistics of verdicts: intervals, tests and the number of questions or repeats they need, in plain Python."""

from release.validators.statistics.integrity import MOST_REPEATS, counts_behind, repeats_that_fit
from release.validators.statistics.normal import ALPHA, NORMAL, POWER, quantile, student_quantile, student_tail
from release.validators.statistics.paired import (
    PairedMeans,
    mcnemar_exact,
    mcnemar_loss,
    means_interval,
    means_loss,
    paired_means,
    sign_flips,
    tango_interval,
    tango_score,
)
from release.validators.statistics.planning import (
    LOOKS,
    PLANNING,
    alpha_for,
    holm,
    planning,
    questions_needed,
    repeats_needed,
    two_look_error,
)
from release.validators.statistics.proportions import (
    farrington_manning,
    newcombe_interval,
    newcombe_loss,
    two_proportions,
    wilson_interval,
)

__all__ = [
    "ALPHA", "LOOKS", "MOST_REPEATS", "NORMAL", "PLANNING", "POWER", "PairedMeans", "alpha_for", "counts_behind", "farrington_manning",
    "holm", "mcnemar_exact", "mcnemar_loss", "means_interval", "means_loss", "newcombe_interval", "newcombe_loss", "paired_means",
    "planning", "quantile", "questions_needed", "repeats_needed", "repeats_that_fit", "sign_flips", "student_quantile", "student_tail",
    "tango_interval", "tango_score", "two_look_error", "two_proportions", "wilson_interval",
]  # fmt: skip
