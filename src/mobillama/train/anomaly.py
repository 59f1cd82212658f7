"""When a step's gradient is not to be trusted, and what follows: the rule for NaN and spikes. Pure; imports no torch.

A loss or gradient norm that is no finite number is an anomaly, and so is a norm above `train.spike_factor` times the
median of the last `WINDOW` norms, once there are as many. With `train.anomaly = "stop"` the run ends before the update.
With "skip" the update is left out, the step counts as taken and its line in the ledger says so; `SKIPS` of them in a
row end the run. Norms of skipped steps are not counted in the median. All of it follows from the ledger's lines, so a
run that goes on after a kill decides as it would have done.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Self

from mobillama.config import TrainConfig
from mobillama.train.ledger import Line

WINDOW = 100  # norms that the median is of
SKIPS = 10  # skipped steps in a row that end a run


class Watch:
    """What the steps so far say about the next.

    norms: of the steps before, oldest first. skips: steps skipped in a row just now.

    >>> watch = Watch(TrainConfig(spike_factor=3.0), [1.0] * WINDOW)
    >>> watch.limit, watch.judge(7, 2.5, 2.9), watch.judge(7, 2.5, 3.5)[:40]
    (3.0, '', 'the gradient norm of step 7 is 3.5, 3.5 ')
    """

    def __init__(self, config: TrainConfig, norms: Iterable[float] = (), skips: int = 0) -> None:
        self.factor, self.skipping = config.spike_factor, config.anomaly == "skip"
        self.norms = deque(norms, maxlen=WINDOW)
        self.skips = skips

    @classmethod
    def after(cls, config: TrainConfig, lines: Sequence[Line], step: int) -> Self:
        """The watch of a run that stands after `step`, from its ledger; of a repeated step the last line counts."""
        taken = {line.step: line.result for line in lines if line.kind == "step" and line.step <= step}
        results = [taken[number] for number in sorted(taken)]
        skips = 0
        for result in reversed(results):
            if not result.get("skipped"):
                break
            skips += 1
        return cls(config, (result["grad_norm"] for result in results if not result.get("skipped")), skips)

    @property
    def limit(self) -> float:
        """The largest gradient norm that is no spike; infinity while there is none."""
        if not self.factor or len(self.norms) < WINDOW:
            return math.inf
        return self.factor * statistics.median(self.norms)

    def judge(self, step: int, loss: float, norm: float) -> str:
        """What is wrong with a step, in words; empty if nothing is."""
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                return f"the {what} of step {step} is {value}; expected a finite number"
        if norm <= self.limit:
            return ""
        median = self.limit / self.factor
        return (
            f"the gradient norm of step {step} is {norm:.4g}, {norm / median:.3g} times the median {median:.4g} of the "
            f"{WINDOW} steps before; expected at most train.spike_factor={self.factor:g} times"
        )

    def note(self, norm: float, *, skipped: bool) -> None:
        """Take the step into account."""
        self.skips = self.skips + 1 if skipped else 0
        if not skipped:
            self.norms.append(norm)
