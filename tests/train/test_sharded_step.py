"""ShardedStep against TrainStep, step by step, and what it sends: counted by the profiler."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from torch import Tensor

LAYERS, ROWS, STEPS = 3, 8, 5
RANKS = {"fsdp": (2, 0), "hsdp-2x2": (4, 2)}
# Sums in float32 come in another order. The compute in bfloat16 is the same at every number of ranks, as long as the
# micro-batches are: gradients leave it before they are summed over uses, micro-batches and ranks. So its bound is the
# same, until a weight comes to lie so close between two bfloat16 values that the order of a sum decides.
CLOSE = 1e-4


def draw_rows(step: int) -> Tensor:
    return torch.randint(0, 61, (ROWS, 17), generator=torch.Generator().manual_seed(step))


def work(model: dict, how: dict, dtype: str, together: int) -> dict:
    """The figures of a few steps, on one rank of those that the environment names.

    The last step but one is computed `together` rows at a time, the last a quarter of that, the others row by row.
    """
    from torch.profiler import ProfilerActivity, profile

    from mobillama.config import ModelConfig, TrainConfig
    from mobillama.model.initialise import build_model
    from mobillama.train.batch import Batch
    from mobillama.train.loop import accumulate
    from mobillama.train.world import joined

    torch.set_num_threads(1)
    shape = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": 32, "initializer_range": 0.2, **model}
    config = TrainConfig(**{"rows_per_step": ROWS, "micro_batch_rows": 1, "compile": False, **how})
    found: dict = {"losses": [], "norms": [], "sent": {}}
    with joined("cpu") as world:
        built = build_model(ModelConfig(**shape), 0)
        step = make_step(built, config, torch.device("cpu"), getattr(torch, dtype), world)
        documents = torch.arange(16).expand(ROWS, 16) // 5 if config.document_mask else None
        counted = torch.arange(16).expand(ROWS, 16) % 5 != 4 if config.document_mask else None
        for number in range(STEPS):
            rows = draw_rows(number)
            batch = Batch(rows.numpy(), *(None if x is None else x.numpy() for x in (documents, counted)))
            micro = {STEPS - 2: together, STEPS - 1: max(1, together // 4)}.get(number, 1)
            counting = number >= STEPS - 2 and world.is_main
            with profile(activities=[ProfilerActivity.CPU]) if counting else contextlib.nullcontext() as seen:
                found["losses"].append(accumulate(step, batch, micro))
                norms = step.update(1e-2)
            found["norms"].append([float(norms.all), float(norms.ffn), float(norms.attention)])
            if seen:
                counts = {event.key: event.count for event in seen.key_averages()}
                names = ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_")
                found["sent"][number] = [counts.get(name, 0) for name in names]
        few = [None if x is None else x[:3] for x in (documents, counted)]
        found["held_out"] = float(step.evaluate(draw_rows(9)[:3], *few))  # fewer rows than four ranks
        step.accumulate(draw_rows(0)[:3], 1.0, *few)
        step.discard()
        left = [gradient.to_local() if world.size > 1 else gradient for gradient in step.optimizer.gradients]
        found["left"] = sum(float(gradient.abs().sum()) for gradient in left)
    return found


def make_step(built, config, device, dtype, world):
    from mobillama.train.sharded_step import ShardedStep
    from mobillama.train.step import TrainStep

    if world.size == 1:
        return TrainStep(built, config, device, dtype)
    return ShardedStep(built, config, device, dtype, world)


def figures(size: int, model: dict | None = None, dtype: str = "float32", together: int = 4, **how) -> dict:
    """What `work` finds on rank 0 of `size` ranks."""
    port, given = ranks.free_port(), json.dumps([model or {}, how, dtype, together])
    processes = []
    for rank in range(size):
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}
        environment = {**os.environ, **{key: str(value) for key, value in told.items()}, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen([sys.executable, __file__, given], env=environment, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=ranks.PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size
    found = [json.loads(text.splitlines()[-1]) for text in said]
    assert all(each["losses"] == found[0]["losses"] and each["norms"] == found[0]["norms"] for each in found)
    return found[0]


def compare(found: dict, expected: dict, close: float = CLOSE) -> None:
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=0.0, atol=close)
    torch.testing.assert_close(found["norms"], expected["norms"], rtol=close, atol=0.0)
    torch.testing.assert_close(found["held_out"], expected["held_out"], rtol=close, atol=0.0)
    assert found["left"] == expected["left"] == 0.0


def check_what_was_sent(found: dict) -> None:
    """Each block twice a micro-batch and the root once; each unit's gradients once a step."""
    assert found["sent"][str(STEPS - 2)] == [1 + 2 * LAYERS, LAYERS + 1]


def test_two_ranks_equal_one_and_the_shared_ffn_is_gathered_once_and_reduced_once() -> None:
    expected, found = figures(1), figures(2)
    compare(found, expected)
    check_what_was_sent(found)
    assert found["sent"][str(STEPS - 1)] == [4 * (1 + 2 * LAYERS), LAYERS + 1]
    assert expected["sent"][str(STEPS - 1)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "model", "how", "close"),
    [
        ("fsdp", {"tie_word_embeddings": True}, {"activation_checkpointing": True}, CLOSE),
        ("hsdp-2x2", {"num_ffn_blocks": 2, "ffn_gain": True, "ffn_adapter_rank": 2}, {"document_mask": True}, CLOSE),
        # Muon makes a matrix orthogonal in bfloat16: a last bit that differs in a momentum is made larger there.
        ("hsdp-2x2", {"num_key_value_heads": 2}, {"optimizer": "muon", "muon_learning_rate": 0.002}, 5e-3),
    ],
    ids=["tied-recomputed", "grouped-documents", "muon"],
)
def test_every_option_is_that_of_one_process(layout: str, model: dict, how: dict, close: float) -> None:
    size, over = RANKS[layout]
    found = figures(size, model, together=ROWS // size, shard_ranks=over, **how)
    compare(found, figures(1, model, together=ROWS // size, **how), close)
    check_what_was_sent(found)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_in_bfloat16_too(compiled: bool) -> None:
    expected = figures(1, dtype="bfloat16", compile=compiled)
    compare(figures(2, dtype="bfloat16", compile=compiled), expected)


def main() -> None:
    print(json.dumps(work(*json.loads(sys.argv[1]))))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
