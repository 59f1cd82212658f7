"""Attention inside documents, targets left out: a document in a row is trained on as if it stood alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_step import build, gradients
from torch import Tensor

from mobillama import manifest
from mobillama.data.chunk import Arrays, write_chunk
from mobillama.data.header import VALIDATION, Header, Packing, chunk_name
from mobillama.data.segments import counted_targets, number_segments
from mobillama.data.shards import read_shards
from mobillama.errors import InputError
from mobillama.train.batch import Batch, read_batch
from mobillama.train.document_mask import DocumentAttention
from mobillama.train.ledger import read_ledger
from mobillama.train.loop import accumulate, train
from mobillama.train.loss import linear_cross_entropy, summed_nats
from mobillama.train.parallel import replace_attention
from mobillama.train.step import TrainStep
from mobillama.train.validate import validate

SIZES = ((5, 9, 3), (1, 16), (17,), (2, 2, 6))  # tokens of the documents of each row of 17; the last row is padded
LENGTH = 17
TOLERANCE = 2e-5  # float32: rotations by other angles round differently


def draw_batch(seed: int = 0) -> tuple[Tensor, np.ndarray, list[list[Tensor]]]:
    """Rows, segments, and the documents of each row; padding is `</s>`, id 2."""
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    documents = [[torch.randint(3, 61, (size,), generator=generator) for size in row] for row in SIZES]
    rows = torch.full((len(SIZES), LENGTH), 2)
    for number, row in enumerate(documents):
        text = torch.cat(row)
        rows[number, : len(text)] = text
    counts = np.array([len(row) for row in SIZES])
    tokens = np.array([size for row in SIZES for size in row])
    first = np.array([sum(row[:place]) for row in SIZES for place in range(len(row))])
    return rows, number_segments(counts, first, tokens, LENGTH), documents


def inputs(segments: np.ndarray, *, document_mask: bool) -> tuple[Tensor | None, Tensor]:
    batch = Batch(segments, segments[:, :-1] if document_mask else None)
    return batch.tensors()[1], torch.from_numpy(counted_targets(segments, document_mask=document_mask))


MODELS = {"heads": {}, "grouped-query": {"num_key_value_heads": 2}}


@pytest.mark.parametrize("own_kernel", [False, True], ids=["pytorch", "own-kernel"])
@pytest.mark.parametrize("shape", MODELS)
def test_logits_of_a_document_are_those_of_the_document_alone(shape: str, own_kernel: bool) -> None:
    model = build(model=MODELS[shape]).model
    rows, segments, documents = draw_batch()
    alone = [[model(document[None])[0] for document in row] for row in documents]
    attention = DocumentAttention(own_kernel=own_kernel)
    replace_attention(model, attention)
    attention.show(torch.from_numpy(segments))
    together = model(rows)
    for number, row in enumerate(alone):
        found = together[number, : sum(map(len, row))]
        torch.testing.assert_close(found, torch.cat(row), rtol=TOLERANCE, atol=TOLERANCE)
    plain = build(model=MODELS[shape]).model(rows)
    assert not torch.allclose(plain[0, 6:], together[0, 6:], atol=1e-2)  # the mask does something
    torch.testing.assert_close(plain[2], together[2], rtol=TOLERANCE, atol=TOLERANCE)  # one document: the same


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_mean_over_the_documents_tokens(checkpointing: bool) -> None:
    step = build(document_mask=True, activation_checkpointing=checkpointing)
    rows, segments, documents = draw_batch()
    every = [document for row in documents for document in row if len(document) > 1]
    total = sum(
        F.cross_entropy(step.model(document[None, :-1])[0], document[1:], reduction="sum") for document in every
    )
    tokens = sum(len(document) - 1 for document in every)
    weights = dict(step.model.named_parameters())
    expected = dict(zip(weights, torch.autograd.grad(total / tokens, list(weights.values())), strict=True))

    batch = Batch(rows.numpy(), segments[:, :-1], counted_targets(segments, document_mask=True))
    assert batch.tokens == tokens
    loss = accumulate(step, batch, 2)
    assert loss == pytest.approx(float(total.detach() / tokens), rel=TOLERANCE)
    torch.testing.assert_close(gradients(step.model), expected, rtol=1e-4, atol=1e-6)
    nats = step.evaluate(*batch.tensors())
    assert float(nats) == pytest.approx(float(total), rel=TOLERANCE)


def test_padding_is_never_trained_on_without_a_mask_either() -> None:
    rows, segments, _ = draw_batch()
    _, counted = inputs(segments, document_mask=False)
    assert counted[:3].all()
    assert counted[3].sum() == 9
    losses, found = [], []
    for padding in (2, 33):
        step, changed = build(), rows.clone()
        changed[3, 10:] = padding
        losses.append(float(step.accumulate(changed, 1.0, None, counted)))
        found.append(gradients(step.model))
    assert losses[0] == losses[1]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    logits = build().model(rows[:, :-1])
    expected = F.cross_entropy(logits[counted], rows[:, 1:][counted])
    assert losses[0] == pytest.approx(float(expected), rel=TOLERANCE)


def test_all_targets_counted_are_the_same_as_none_left_out() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(23, 8, generator=generator), torch.randn(31, 8, generator=generator)
    targets = torch.randint(0, 31, (23,), generator=generator)
    results = []
    for counted in (None, torch.ones(23, dtype=torch.bool)):
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = linear_cross_entropy(*leaves, targets, 5, counted=counted)
        results.append([loss, *torch.autograd.grad(loss, leaves), summed_nats(hidden, weight, targets, 5, counted)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


def test_documents_without_a_mask_and_a_mask_without_documents_are_refused() -> None:
    rows, segments, _ = draw_batch()
    documents, counted = inputs(segments, document_mask=True)
    with pytest.raises(ValueError, match="document_mask"):
        build().accumulate(rows, 1.0, documents, counted)
    with pytest.raises(ValueError, match="document_mask"):
        build(document_mask=True).accumulate(rows, 1.0)


@pytest.mark.slow
def test_the_compiled_step_masks_as_the_eager_one_and_compiles_once() -> None:
    from torch._dynamo.utils import counters

    model = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
    rows, segments, _ = draw_batch()
    exact = build(model=model, document_mask=True)
    eager = build(torch.bfloat16, model=model, document_mask=True)
    compiled = build(torch.bfloat16, model=model, document_mask=True, compile=True)
    documents, counted = inputs(segments, document_mask=True)
    losses = [float(step.accumulate(rows, 1.0, documents, counted)) for step in (exact, eager, compiled)]
    assert losses == pytest.approx([losses[0]] * 3, abs=0.02)
    true, *found = (gradients(step.model) for step in (exact, eager, compiled))
    for name, gradient in true.items():
        errors = [float((each[name] - gradient).norm() / gradient.norm()) for each in found]
        assert errors[1] < max(1.5 * errors[0], 0.01), (name, errors)
    graphs = counters["stats"]["unique_graphs"]
    for seed in range(1, 4):
        compiled.accumulate(draw_batch(seed)[0], 1.0, documents.flip(0), counted.flip(0))
    assert counters["stats"]["unique_graphs"] == graphs


def make_document_shards(folder: Path, packing: Packing) -> Path:
    """Shards whose rows hold documents of drawn sizes, with spans; each token covers `id % 4` bytes."""
    random = np.random.default_rng(5)
    header = Header(tiny.VOCABULARY, tiny.SEQ_LEN, "", ("prose", "code"), packing)
    with manifest.building(folder) as partial:
        for name, rows in (*((chunk_name(number, 2), 24) for number in range(2)), (VALIDATION, 6)):
            sizes = []
            for _ in range(rows):
                left = tiny.SEQ_LEN + 1
                if packing == "best_fit":
                    left -= int(random.integers(0, 5))
                cuts = np.sort(random.choice(np.arange(1, left), int(random.integers(0, 4)), replace=False))
                sizes.append(np.diff([0, *cuts, left]))

            def fill(arrays: Arrays, sizes: list[np.ndarray] = sizes) -> None:
                arrays["row_source"][:] = np.arange(len(sizes)) % 2
                arrays["span_offsets"][:] = np.cumsum([0, *map(len, sizes)])
                for row, each in enumerate(sizes):
                    ids = random.integers(3, tiny.VOCABULARY, tiny.SEQ_LEN + 1)
                    ids[each.sum() :] = 2
                    arrays["ids"][row] = ids
                    arrays["row_bytes"][row] = (ids[1 : each.sum()] % 4).sum()
                    spans = slice(*arrays["span_offsets"][row : row + 2].astype(int).tolist())
                    arrays["span_token"][spans] = first = np.cumsum(each) - each
                    arrays["span_tokens"][spans] = each
                    arrays["span_first_bytes"][spans] = ids[first] % 4

            write_chunk(partial / name, header, rows, sum(map(len, sizes)), fill)
        counts = {"train_rows": 48, "validation_rows": 6, "documents": 0}
        manifest.seal(partial, folder, "shards", counts=counts)
    return folder


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_tokens_and_bytes_are_those_of_the_targets_that_count(tmp_path, packing: Packing, document_mask: bool) -> None:
    shards = read_shards(make_document_shards(tmp_path / "shards", packing))
    for split, count in (("train", 48), ("validation", 6)):
        order = np.arange(count)[::-1].copy()
        batch = read_batch(shards, order, split, document_mask=document_mask)
        sizes = shards.row_bytes(order, split, document_mask=document_mask)
        if batch.counted is None:
            assert (packing, document_mask) == ("concatenate", False)
            assert (sizes == (batch.rows[:, 1:] % 4).sum(1)).all()
        else:
            assert (sizes == (batch.rows[:, 1:] % 4 * batch.counted).sum(1)).all()
            assert 0 < batch.tokens < batch.rows[:, 1:].size
        assert (batch.documents is not None) == document_mask


class Uniform:
    """Gives every token the same probability."""

    def evaluate(self, rows: Tensor, documents: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        tokens = rows[:, 1:].numel() if counted is None else int(counted.sum())
        return torch.tensor(tokens * math.log(tiny.VOCABULARY), dtype=torch.float64)


@pytest.mark.parametrize("document_mask", [False, True])
def test_bits_per_byte_count_the_same_targets_in_nats_and_bytes(tmp_path, document_mask: bool) -> None:
    shards = read_shards(make_document_shards(tmp_path / "shards", "best_fit"))
    found = validate(Uniform(), shards, rows=0, batch_rows=4, document_mask=document_mask)
    segments = shards.segments(range(6), "validation")
    counted = counted_targets(segments, document_mask=document_mask)
    size = (shards.validation_rows(range(6))[:, 1:] % 4 * counted).sum()
    assert (found["tokens"], found["bytes"]) == (counted.sum(), size)
    assert found["loss"] == pytest.approx(math.log(64))
    assert found["bits_per_byte"] == pytest.approx(6 * counted.sum() / size)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_run_with_a_mask_counts_its_tokens_and_goes_on_bit_for_bit(tmp_path, packing: Packing) -> None:
    shards = make_document_shards(tmp_path / "shards", packing)
    done = train(tiny.recipe(document_mask=True), shards, tmp_path / "run")
    lines = read_ledger(tmp_path / "run")
    steps = [line.result for line in lines if line.kind == "step"]
    segments = read_shards(shards).segments(range(48))
    assert steps[-1]["tokens"] == counted_targets(segments, document_mask=True).sum()  # 12 steps of 4 are one pass
    assert done["validation"]["tokens"] < 6 * 16
    weights = tiny.weights(tmp_path / "run")
    import shutil

    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000012")
    train(tiny.recipe(document_mask=True), shards, tmp_path / "run")
    assert tiny.weights(tmp_path / "run") == weights
    again = [line.result for line in read_ledger(tmp_path / "run") if line.kind == "step"]
    assert again[: len(steps)] == steps
    assert json.dumps(again[-1]) == json.dumps(steps[-1])


def test_a_mask_changes_the_run_and_may_not_be_switched_on_later(tmp_path) -> None:
    shards = make_document_shards(tmp_path / "shards", "concatenate")
    losses = [
        train(tiny.recipe(document_mask=mask, steps=3), shards, tmp_path / f"run-{mask}")["loss"]
        for mask in (False, True)
    ]
    assert losses[0] != losses[1]
    with pytest.raises(ValueError, match=r"train\.document_mask was False, now True"):
        train(tiny.recipe(document_mask=True, steps=3), shards, tmp_path / "run-False")


def test_shards_without_spans_cannot_be_masked(tmp_path) -> None:
    shards = tiny.make_shards(tmp_path / "shards")
    with pytest.raises(InputError, match=r"holds no document spans.*train\.document_mask=false"):
        train(tiny.recipe(document_mask=True), shards, tmp_path / "run")


def test_a_step_without_a_counted_target_has_no_loss() -> None:
    rows, segments, _ = draw_batch()
    nothing = np.zeros((4, LENGTH - 1), bool)
    step: TrainStep = build(document_mask=True)
    assert math.isnan(accumulate(step, Batch(rows.numpy(), segments[:, :-1], nothing), 2))
