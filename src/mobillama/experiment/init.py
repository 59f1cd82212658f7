"""How to begin and how to train a shared FFN: scales, weights taken from a dense model, optimizers and schedules.

The gradient of a shared FFN sums over all of its uses, so its initial weights and its learning rate may want a smaller
scale. Or it starts from the FFNs of a trained dense model: one layer's, their mean, or a least-squares fit. A readable
few of the combinations, each against the plain one.
"""

from __future__ import annotations

from typing import Any

from mobillama.experiment.design import MANY_ARMS, Arm, Comparison, Experiment, Sizes, Tuning, schedule

SCALES = "scale of the shared FFN's initial weights and learning rate, new weights"
DENSE = "weights from a trained dense model against new ones"
METHODS = "optimizer and schedule"
SOURCE_SEEDS = 1000  # added to the seed for the dense source: it reads other rows first


def init(sizes: Sizes) -> Experiment:
    """The experiment at some sizes."""
    layers, steps = sizes.shallow_layers, max(2, round(MANY_ARMS * sizes.steps))
    shared = sizes.model("shared", num_hidden_layers=layers)
    dense = sizes.model("dense", num_hidden_layers=layers, num_ffn_blocks=0)
    muon: dict[str, Any] = {"optimizer": "muon"}
    tunings = (
        Tuning("shared", shared, sizes.tuning_steps),
        Tuning("dense", dense, sizes.tuning_steps),
        Tuning("muon", shared, sizes.tuning_steps, "muon_learning_rate", 0.02, muon, ("shared",)),
    )

    def arm(name: str, title: str, takes: tuple[str, ...] = ("shared",), start: str = "", **train: Any) -> Arm:
        ffn: Any = name.removeprefix("from-") if start else "mean"
        return Arm(name, title, shared, steps, takes, schedule(steps, **train), start, ffn)

    root, one = "1/sqrt(uses)", "1/uses"
    scales = (
        arm("init-root", f"initial weights x {root}", ffn_init_scale=root),
        arm("lr-root", f"learning rate x {root}", ffn_lr_scale=root),
        arm("both-root", f"both x {root}", ffn_init_scale=root, ffn_lr_scale=root),
        arm("both-uses", f"both x {one}", ffn_init_scale=one, ffn_lr_scale=one),
    )
    starts = (
        arm("from-layer", "from dense: the first layer's FFN", start="dense"),
        arm("from-mean", "from dense: the mean of its FFNs", start="dense"),
        arm("from-least_squares", "from dense: least squares on activations", start="dense"),
    )
    longer = Arm("longer", "new weights, twice the steps", shared, 2 * steps, ("shared",), schedule(2 * steps))
    methods = (
        arm("wsd", "AdamW, wsd", schedule="wsd"),
        arm("muon", "Muon, cosine", ("shared", "muon"), **muon),
        arm("muon-wsd", "Muon, wsd", ("shared", "muon"), **muon, schedule="wsd"),
    )
    source = Arm("dense", "the dense source", dense, steps, ("dense",), schedule(steps), seed_offset=SOURCE_SEEDS)
    plain = arm("plain", "new weights, scales 1, AdamW, cosine")
    comparisons = [
        *(Comparison(found.name, "plain", SCALES) for found in scales),
        *(Comparison(found.name, "plain", DENSE) for found in starts),
        *(Comparison(found.name, "longer", f"{DENSE}, at equal tokens in all") for found in starts),
        *(Comparison(found.name, "plain", METHODS) for found in methods),
    ]
    return Experiment(
        name="init",
        title="How a shared FFN begins: scales, weights of a dense model, optimizers",
        question="Does a shared FFN gain from smaller initial weights or a smaller learning rate, from the weights of a"
        " trained dense model, or from another optimizer or schedule?",
        arms=(plain, *scales, source, *starts, longer, *methods),
        tunings=tunings,
        comparisons=tuple(comparisons),
        notes=(
            "The dense source is a training of its own, as long as the others: a model that starts from it has cost its"
            " operations too, so that it is compared with new weights at the same steps and at twice the steps.",
            "All arms of AdamW take the learning rate chosen for new weights with cosine; Muon's is chosen beside it.",
        ),
    )
