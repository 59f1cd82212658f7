"""How much to share: FFN blocks from one to one per layer, adapters and gains, all at equal stored parameters.

Depth, width and attention stay; the weights of all FFNs together stay, cut into 1, 2, 4 ... blocks. One block is as
wide as all of them together and runs in every layer, so sharing more costs more operations at the same stored bytes.
"""

from __future__ import annotations

from typing import Any

from mobillama.experiment.design import MANY_ARMS, Arm, Comparison, Experiment, Sizes, Tuning, match_width, schedule
from mobillama.model.cost import cost

BLOCKS = "FFN blocks, equal stored parameters, equal tokens"
ADAPTERS = "a layer's own adapter or gain on the shared FFN, equal stored parameters"
RANK_SHARE = 16  # hidden_size over the rank of the adapters


def sharing(sizes: Sizes) -> Experiment:
    """The experiment at some sizes."""
    layers, steps = sizes.shallow_layers, max(2, round(MANY_ARMS * sizes.steps))
    dense = sizes.model("blocks-all", num_hidden_layers=layers, num_ffn_blocks=0)
    stored = cost(dense).stored_parameters
    counts = [1]
    while counts[-1] * 2 <= layers:
        counts.append(counts[-1] * 2)
    if counts[-1] != layers:
        counts.append(layers)
    models = {
        f"blocks-{count}": match_width(
            sizes.model(f"blocks-{count}", num_hidden_layers=layers, num_ffn_blocks=count), stored
        )
        for count in counts
    }
    tunings = [Tuning(name, model, sizes.tuning_steps) for name, model in models.items()]
    arms = [
        Arm(name, f"{count} FFN block{'s' * (count > 1)}", model, steps, (name,), schedule(steps))
        for count, (name, model) in zip(counts, models.items(), strict=True)
    ]
    rank = max(1, sizes.hidden_size // RANK_SHARE)
    extras: dict[str, tuple[str, dict[str, Any]]] = {
        "adapters": (f"1 FFN block, adapters of rank {rank}", {"ffn_adapter_rank": rank}),
        "gains": ("1 FFN block, gains", {"ffn_gain": True}),
    }
    for name, (title, shape) in extras.items():
        model = match_width(sizes.model(name, num_hidden_layers=layers, **shape), stored)
        arms.append(Arm(name, title, model, steps, ("blocks-1",), schedule(steps)))
    comparisons = [Comparison(name, f"blocks-{layers}", BLOCKS) for name in models if name != f"blocks-{layers}"]
    comparisons += [Comparison(name, "blocks-1", ADAPTERS) for name in extras]
    return Experiment(
        name="sharing",
        title="How many FFN blocks: from one for all layers to one per layer",
        question="With depth, attention and stored bytes fixed, into how many blocks should the FFN weights be cut, and"
        " does a little of each layer's own help the shared one?",
        arms=tuple(arms),
        tunings=tuple(tunings),
        comparisons=tuple(comparisons),
        notes=(
            "Fewer blocks are wider ones and run in more layers: the models store the same and read the same tokens,"
            " but execute different numbers of operations; the table of models says how many.",
            "Adapters and gains take the learning rate chosen for one block.",
        ),
    )
