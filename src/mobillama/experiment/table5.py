"""The paper's Table 5 at a size the machine carries: MobiLlama against two dense models that store as much.

baseline1 keeps the depth and halves the width, baseline2 keeps the width and has 8 of 22 layers. Tokens are equal, as
in the paper; operations are not, so MobiLlama is also trained for as many as each baseline uses, in fewer steps.
"""

from __future__ import annotations

from mobillama.experiment.design import (
    Arm,
    Comparison,
    Experiment,
    Sizes,
    Tuning,
    match_width,
    schedule,
    training_flops,
)
from mobillama.model.cost import cost

EQUAL_TOKENS = "equal stored parameters, equal tokens"
EQUAL_FLOPS = "equal stored parameters, equal executed operations"


def table5(sizes: Sizes) -> Experiment:
    """The experiment at some sizes."""
    shared = sizes.model("mobillama")
    stored = cost(shared).stored_parameters
    dense = {
        "baseline1": sizes.model("baseline1", hidden_size=sizes.hidden_size // 2, num_ffn_blocks=0),
        "baseline2": sizes.model("baseline2", num_hidden_layers=sizes.shallow_layers, num_ffn_blocks=0),
    }
    models = {"mobillama": shared} | {name: match_width(model, stored) for name, model in dense.items()}
    titles = {
        "mobillama": "MobiLlama",
        "baseline1": "baseline1 (half as wide)",
        "baseline2": f"baseline2 ({sizes.shallow_layers} layers)",
    }
    tunings = [Tuning(name, model, sizes.tuning_steps) for name, model in models.items()]
    arms = [
        Arm(name, titles[name], model, sizes.steps, (name,), schedule(sizes.steps)) for name, model in models.items()
    ]
    comparisons = [Comparison("mobillama", name, EQUAL_TOKENS) for name in dense]
    for name in dense:
        steps = max(10, round(sizes.steps * training_flops(models[name]) / training_flops(shared)))
        arm = f"mobillama-at-{name}"
        title = f"MobiLlama, {steps} steps: operations of {name}"
        arms.append(Arm(arm, title, shared, steps, ("mobillama",), schedule(steps)))
        comparisons.append(Comparison(arm, name, EQUAL_FLOPS))
    return Experiment(
        name="table5",
        title="Table 5: one FFN for all layers against dense models of the same size",
        question="At equal stored parameters and equal tokens, is a model whose layers share one FFN better than a"
        " dense one? And at equal executed operations?",
        arms=tuple(arms),
        tunings=tuple(tunings),
        comparisons=tuple(comparisons),
        notes=(
            "At equal operations MobiLlama reads fewer tokens, with the learning rate chosen for it and a schedule of"
            " its own length.",
        ),
    )
