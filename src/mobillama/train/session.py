"""One process's hold on a run: where it stands, and the lines, checkpoints and model it leaves in the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from mobillama import manifest
from mobillama.config import TrainConfig, TrainRecipe
from mobillama.data.order import Steps
from mobillama.data.shards import Shards, tokenizer_files
from mobillama.device import Place, peak_memory
from mobillama.errors import TrainingError
from mobillama.model.weights import save_model
from mobillama.train.anomaly import Watch
from mobillama.train.checkpoint import Checkpoint, load_checkpoint, prune_checkpoints
from mobillama.train.checkpoint_writer import CheckpointWriter
from mobillama.train.curves import Curves
from mobillama.train.environment import environment, keep_code_files
from mobillama.train.initial import start_digest
from mobillama.train.ledger import FILE, Kind, Ledger
from mobillama.train.progress import Display
from mobillama.train.published import Published, complete_published, is_publication, next_number, write_published
from mobillama.train.run import Parent, begin_run, read_run
from mobillama.train.sharded_step import ShardedStep
from mobillama.train.standing import Standing, summarise
from mobillama.train.state_results import WholeTensors
from mobillama.train.step import TrainStep
from mobillama.train.validate import validate
from mobillama.train.world import World, spread


@dataclass
class Session:
    """A run while this process trains it."""

    folder: Path
    recipe: TrainRecipe
    shards: Shards
    steps: int
    parent: Parent | None
    place: Place
    world: World
    ledger: Ledger | None  # on rank 0, which alone writes
    trainer: TrainStep | ShardedStep
    writer: CheckpointWriter
    display: Display
    watch: Watch
    curves: Curves | None = None  # likewise
    step: int = 0  # optimizer steps taken
    tokens: int = 0  # trained on
    seconds: list[float] = field(default_factory=list)  # of each step of this process
    trained: list[int] = field(default_factory=list)  # tokens of each step of this process
    saved: int = 0  # step of the newest checkpoint
    published: list[Published] = field(default_factory=list)  # written on rank 0, and not in the ledger yet
    began: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> TrainConfig:
        """The recipe's `train` table."""
        return self.recipe.train

    @property
    def order(self) -> Steps:
        """Which positions of the reading order its steps take."""
        rows = self.config.rows_per_step
        return Steps(rows, self.parent.step, self.parent.first_row) if self.parent else Steps(rows)

    @property
    def environment(self) -> dict[str, Any]:
        """What the bits can depend on besides recipe and shards."""
        return environment(self.place, self.world)

    def record(self, kind: Kind, result: Mapping[str, Any], circumstance: Mapping[str, Any] | None = None) -> None:
        """Append a line to the ledger; rank 0 does."""
        if self.ledger:
            self.ledger.append(kind, result, circumstance)

    def draw(self, values: Mapping[str, float | None]) -> None:
        """Draw a point of each curve at this step; rank 0 does."""
        if self.curves:
            self.curves.add(self.step, values)

    def begin(self, standing: Standing) -> None:
        """Write the `start` line; of a branch also the line of the checkpoint it begins with, whose state is loaded."""
        result = {
            "recipe": self.recipe.digest(),
            "shards": self.shards.digest,
            "steps": self.steps,
            "tokens_per_step": self.config.rows_per_step * self.shards.seq_len,
        }
        if self.ledger:
            keep_code_files(self.folder)
            start = start_digest(self.recipe)
            result |= {"initial_model": start} if start else {}
        if self.parent:
            result |= {"parent": self.parent.result()}
        self.record("start", result, {"environment": self.environment})
        if self.parent and (newest := standing.newest.checkpoint):
            self._load(newest)
            self.record("checkpoint", newest.result(), newest.circumstance())
            self.display.say(f"branched off {self.parent.run} after step {self.step}: steps go on to {self.steps}")

    def _load(self, checkpoint: Checkpoint) -> None:
        load_checkpoint(checkpoint, self.trainer.state())
        self.trainer.loaded()
        self.step, self.tokens, self.saved = checkpoint.step, checkpoint.tokens, checkpoint.step

    def resume(self, standing: Standing) -> None:
        """Load the newest good checkpoint (None: the initial weights stand) and write the `resumed` line that names it.

        The line names the checkpoints that were refused as well, and what was wrong with them.
        """
        found, newest = standing.newest, standing.newest.checkpoint
        if newest:
            self._load(newest)
        for what in found.refused.values():
            self.display.say(f"not used and set aside: {what}")
        self.world.once(lambda: self._complete_published())
        if self.ledger:
            self._record_resumed(self.ledger, standing)
        self._record_published()
        self.display.say(f"going on from step {self.step} of {self.steps}")

    def _complete_published(self) -> None:
        if self.ledger:
            self.published = complete_published(
                self.folder, self.recipe, self.shards, self.ledger.published, after=self.order.after
            )

    def _record_published(self) -> None:
        """Write the line of each published model that was written since."""
        for each in self.published:
            self.record("published", each.result(), each.circumstance())
        self.published = []

    def _record_resumed(self, ledger: Ledger, standing: Standing) -> None:
        found, newest = standing.newest, standing.newest.checkpoint
        keep_code_files(self.folder)
        result: dict[str, Any] = {"step": 0, "checkpoint": None, "steps": self.steps, "changed": standing.changed}
        told = self.recipe.digest() if standing.changed else (read_run(self.folder) or {})["recipe_digest"]
        result |= {"recipe": told}
        result |= {"refused": found.result()} if found.refused else {}
        asked, over = self.config.shard_ranks, spread(self.world.size, self.config.shard_ranks)
        if asked and over != asked:
            result |= {"shard_ranks": over}
            self.display.say(
                f"note: train.shard_ranks={asked} does not divide the {self.world.size} ranks that train now: "
                f"weights and optimizer are spread over {over} of them, which changes no result beyond rounding"
            )
        if newest:
            if ledger.step_of("checkpoint") < newest.step:  # killed between sealing it and saying so
                ledger.append("checkpoint", newest.result(), newest.circumstance())
            result |= {"step": newest.step, "checkpoint": newest.folder.name, "weights": newest.result()["weights"]}
        before, now = ledger.environment, self.environment
        if different := [f"{key} {now.get(key)} (earlier {was})" for key, was in before.items() if now.get(key) != was]:
            self.display.say(f"note: the environment has changed, bits may differ from here on: {', '.join(different)}")
        ledger.append("resumed", result, {"environment": now})
        if standing.changed:  # in this order: killed between the two, the next start finds the same changes
            ledger.sync()
            begin_run(self.folder, self.recipe, self.shards, self.steps, self.parent)

    def count(self, result: Mapping[str, Any], tokens: int, seconds: float) -> None:
        """Take a step into the books: `result` is that of its line, `tokens` were trained on in it."""
        self.step, self.tokens = result["step"], result["tokens"]
        self.seconds.append(seconds)
        self.trained.append(tokens)
        self.record("step", result, {"seconds": round(seconds, 6)})
        self.draw({key: result[key] for key in ("loss", "grad_norm", "grad_norm_ffn", "grad_norm_attention", "lr")})

    def validate(self) -> None:
        """Evaluate the held-out rows, if there are any, and write the `validation` line."""
        if not self.shards.num_validation_rows:
            return
        started = time.monotonic()
        found = validate(
            self.trainer,
            self.shards,
            rows=self.config.validation_rows,
            batch_rows=self.config.micro_batch_rows * self.world.size,
            document_mask=self.config.document_mask,
        )
        loss = found["loss"] if found["tokens"] else math.nan
        if not math.isfinite(loss):
            self.stop(self.step, f"the validation loss of step {self.step} is {loss}; expected a finite number")
        self.record("validation", {"step": self.step, **found}, {"seconds": _since(started)})
        points = {"validation/loss": found["loss"], "validation/bits_per_byte": found["bits_per_byte"]}
        self.draw(points | {f"bits_per_byte/{name}": part["bits_per_byte"] for name, part in found["sources"].items()})
        per_byte = "" if found["bits_per_byte"] is None else f", {found['bits_per_byte']:.4f} bits per byte"
        self.display.say(f"step {self.step}: held-out loss {found['loss']:.4f} nats per token{per_byte}")

    def publishes(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good, with a model folder."""
        return is_publication(self.config, self.shards.chunk_rows, self.shards.seq_len, step, self.steps, self.order)

    def save(self, *, ends: bool = False) -> None:
        """Begin a checkpoint, after the one before is done; lines reach the disk before it does.

        ends: no step comes after it. It is written from the state itself then: a copy would cost as much memory again.
        """
        self.settle(wait=True)
        if self.ledger:
            self.ledger.sync()
        published = None
        if self.publishes(self.step):
            published = self.world.once(lambda: next_number(self.folder, self.step))
        self.writer.begin(
            self.trainer.state(),
            step=self.step,
            tokens=self.tokens,
            made_from=manifest.origin(self.shards.folder, self.shards.manifest),
            recipe=self.recipe.tree(),
            circumstance=self.environment,
            published=published,
            then=self._publish,
            at_once=ends,
        )
        if ends or not self.config.asynchronous:
            self.settle(wait=True)

    def _publish(self, saved: Checkpoint) -> None:
        if saved.published is not None:
            self.published.append(write_published(self.folder, saved, self.recipe, self.shards))

    def settle(self, *, wait: bool = False) -> None:
        """Once the checkpoint begun last is sealed, write its line and let go of the oldest."""
        saved = self.writer.wait() if wait else self.writer.finished()
        if saved is None:
            return
        self.saved = saved.step
        self.record("checkpoint", saved.result(), saved.circumstance())
        self._record_published()
        if self.ledger:
            self.ledger.sync()  # the line that lets the oldest go must not be lost before it
            prune_checkpoints(self.folder, self.config.keep_last, first=self.parent.step if self.parent else None)

    def finish(self) -> None:
        """Write the model folder and the `end` line."""
        weights: dict[str, Tensor] = {}
        state = self.trainer.state()
        whole = WholeTensors({name: tensor for name, tensor in state.items() if name.startswith("model.")})
        for name, tensor in whole.items():  # one after another, on all ranks
            if self.world.is_main:
                weights[name.removeprefix("model.")] = tensor.cpu()
        out = self.folder / "model"
        digest, root = self.world.once(lambda: self._write_model(out, weights))
        memory = peak_memory(self.place)
        result = {"step": self.step, "tokens": self.tokens, "weights": digest}
        self.record("end", result, {"seconds": _since(self.began), "manifest": root, **memory})
        words = ", ".join(f"{key.removesuffix('_bytes')} {value / 2**30:.2f} GiB" for key, value in memory.items())
        self.display.say(f"finished {self.step} steps; peak memory: {words}; the model is in {out}")

    def _write_model(self, out: Path, weights: Mapping[str, Tensor]) -> tuple[str, str]:
        """The model folder; sha256 (hex) of its weights file, and its root digest."""
        manifest.remove(out)  # of a run that was lengthened, or of a kill before its `end` line
        with manifest.building(out) as partial:
            save_model(partial, weights, self.recipe.model, tokenizer_files(self.shards.folder))
            sealed = manifest.seal(
                partial,
                out,
                "model",
                made_from=[manifest.origin(self.shards.folder, self.shards.manifest)],
                recipe=self.recipe.tree(),
                counts={"step": self.step, "tokens": self.tokens},
                circumstance=self.environment,
            )
        return str(sealed.files["model.safetensors"]["sha256"]), sealed.digest()

    def stop(self, step: int, wrong: str) -> NoReturn:
        """End the run at a step that is not to be trusted, for what is wrong with it. Error: TrainingError, always."""
        self.settle(wait=True)
        rest = f"the checkpoint of step {self.saved} is intact" if self.saved else "no checkpoint was written yet"
        raise TrainingError(
            f"{wrong}. Nothing was saved after it; {rest}. Look at what the step read (mobillama data show "
            f"{self.folder} --step {step}) and at loss and grad_norm of the steps before it in "
            f"{self.folder / FILE}. If they grew: a lower train.learning_rate, more train.warmup_steps or a smaller "
            "train.clip, in a new --out; train.dtype=float32 tells whether bfloat16 is to blame"
        )

    def summary(self) -> dict[str, Any]:
        """What `train` gives back of this process's work."""
        steady = self.seconds[1:]  # the first step compiles and warms up
        return {
            **self.world.once(self._summarise),
            "seconds": _since(self.began),
            "first_step_seconds": self.seconds[0] if self.seconds else None,
            "tokens_per_second": sum(self.trained[1:]) / sum(steady) if steady else None,
            "environment": self.environment,
            "peak_memory": peak_memory(self.place),
        }

    def _summarise(self) -> dict[str, Any]:
        assert self.ledger  # asked on rank 0
        return summarise(self.folder, self.ledger, self.steps)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 6)
