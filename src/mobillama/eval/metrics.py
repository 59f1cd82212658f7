"""Units of metrics: in what a score is shown, how many digits it has, and which way is better.

The harness gives shares of right answers from 0 to 1; tables of models show them in per cent. Everything else keeps
the number that the harness gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PER_CENT = "per cent"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    unit: str = "as the harness gives it"
    higher_is_better: bool | None = None  # None: neither, or nobody says

    @property
    def scale(self) -> float:
        """What the harness's number is multiplied by."""
        return 100.0 if self.unit == PER_CENT else 1.0


SHARE = Metric(PER_CENT, higher_is_better=True)

METRICS: Mapping[str, Metric] = {  # all that are registered in lm_eval/api/metrics.py, and one of a task's own
    "acc": SHARE,
    "acc_all": SHARE,
    "acc_bytes": SHARE,
    "acc_mutual_info": SHARE,
    "acc_norm": SHARE,
    "bits_per_byte": Metric("bits per byte", higher_is_better=False),
    "bleu": Metric("BLEU, to 100", higher_is_better=True),
    "brier_score": Metric("Brier score, 0 to 2", higher_is_better=False),
    "bypass": Metric("no measure"),
    "byte_perplexity": Metric("perplexity per byte", higher_is_better=False),
    "chrf": Metric("chrF, to 100", higher_is_better=True),
    "chrf++": Metric("chrF++, to 100", higher_is_better=True),
    "exact_match": SHARE,
    "f1": Metric("F1, 0 to 1", higher_is_better=True),
    "likelihood": Metric("likelihood", higher_is_better=True),
    "mcc": Metric("correlation, -1 to 1", higher_is_better=True),
    "pct_stereotype": Metric(PER_CENT),
    "perplexity": Metric("perplexity", higher_is_better=False),
    "ter": Metric("edits per 100 words", higher_is_better=False),
    "word_perplexity": Metric("perplexity per word", higher_is_better=False),
}
OTHER = Metric()


def metric_of(name: str) -> Metric:
    """The metric of a name, or `name,filter`; one that is not known keeps the harness's number.

    >>> metric_of("acc,none").unit, metric_of("bits_per_byte").scale
    ('per cent', 1.0)
    """
    return METRICS.get(name.partition(",")[0], OTHER)


def in_unit(row: Mapping[str, Any]) -> str:
    """The unit of a benchmark's row, or of an average. Results made before units were written have per cent."""
    return str(row.get("unit", PER_CENT))


def show_value(value: float, unit: str) -> str:
    """A score as text: two digits of a per cent, four of what is no share.

    >>> show_value(34.5678, "per cent"), show_value(3.42859, "bits per byte")
    ('34.57', '3.4286')
    """
    return f"{value:.2f}" if unit == PER_CENT else f"{value:.4f}"
