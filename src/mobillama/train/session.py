"""One process's hold on a run: where it stands, and the lines, checkpoints and model it leaves in the run folder."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mobillama
from mobillama import manifest
from mobillama.config import TrainConfig, TrainRecipe
from mobillama.data.shards import Shards, tokenizer_files
from mobillama.device import Place, peak_memory
from mobillama.errors import DamagedFileError, TrainingError
from mobillama.model.weights import save_model
from mobillama.train import checkpoint as checkpoints
from mobillama.train.checkpoint import Checkpoint
from mobillama.train.curves import Curves
from mobillama.train.ledger import Ledger
from mobillama.train.progress import Display
from mobillama.train.step import TrainStep
from mobillama.train.validate import validate


@dataclass
class Session:
    """A run while this process trains it."""

    folder: Path
    recipe: TrainRecipe
    shards: Shards
    steps: int
    place: Place
    ledger: Ledger
    trainer: TrainStep
    display: Display
    step: int = 0  # optimizer steps taken
    tokens: int = 0  # trained on
    seconds: list[float] = field(default_factory=list)  # of each step of this process
    trained: list[int] = field(default_factory=list)  # tokens of each step of this process
    began: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> TrainConfig:
        """The recipe's `train` table."""
        return self.recipe.train

    @property
    def environment(self) -> dict[str, Any]:
        """What the bits can depend on besides recipe and shards."""
        return {**self.place.environment(), "mobillama": mobillama.__version__}

    def begin(self) -> None:
        """Write the `start` line."""
        result = {
            "recipe": self.recipe.digest(),
            "shards": self.shards.digest,
            "steps": self.steps,
            "tokens_per_step": self.config.rows_per_step * self.shards.seq_len,
        }
        self.ledger.append("start", result, {"environment": self.environment})

    def resume(self, newest: Checkpoint | None, changed: dict[str, Any]) -> None:
        """Load a checkpoint (None: the initial weights stand) and write the `resumed` line that names it."""
        result: dict[str, Any] = {"step": 0, "checkpoint": None, "steps": self.steps, "changed": changed}
        if newest:
            if self.ledger.last_step < newest.step:
                raise DamagedFileError(
                    f"{self.ledger.path} ends at step {self.ledger.last_step}, but {newest.folder} is of step "
                    f"{newest.step}: lines were lost; restore the file from a copy, or train into a new --out"
                )
            self.trainer.load_state(checkpoints.SavedState(newest))
            self.step, self.tokens = newest.step, newest.tokens
            if self.ledger.step_of("checkpoint") < newest.step:  # killed between sealing it and saying so
                self.ledger.append("checkpoint", newest.result())
            result |= {"step": newest.step, "checkpoint": newest.folder.name, "weights": newest.result()["weights"]}
        before, now = self.ledger.environment, self.environment
        if different := [f"{key} {now.get(key)} (earlier {was})" for key, was in before.items() if now.get(key) != was]:
            self.display.say(f"note: the environment has changed, bits may differ from here on: {', '.join(different)}")
        self.ledger.append("resumed", result, {"environment": now})
        self.display.say(f"going on from step {self.step} of {self.steps}")

    def validate(self, curves: Curves) -> None:
        """Evaluate the held-out rows, if there are any, and write the `validation` line."""
        if not self.shards.num_validation_rows:
            return
        started = time.monotonic()
        found = validate(
            self.trainer,
            self.shards,
            rows=self.config.validation_rows,
            batch_rows=self.config.micro_batch_rows,
            document_mask=self.config.document_mask,
        )
        self.require_number("validation loss", found["loss"] if found["tokens"] else math.nan, self.step)
        self.ledger.append("validation", {"step": self.step, **found}, {"seconds": _since(started)})
        points = {"validation/loss": found["loss"], "validation/bits_per_byte": found["bits_per_byte"]}
        points |= {f"bits_per_byte/{name}": part["bits_per_byte"] for name, part in found["sources"].items()}
        curves.add(self.step, time.time(), points)
        per_byte = "" if found["bits_per_byte"] is None else f", {found['bits_per_byte']:.4f} bits per byte"
        self.display.say(f"step {self.step}: held-out loss {found['loss']:.4f} nats per token{per_byte}")

    def save(self) -> None:
        """Write a checkpoint and its line, and let go of the oldest; lines reach the disk before the checkpoint."""
        self.ledger.sync()
        started = time.monotonic()
        saved = checkpoints.save_checkpoint(
            self.folder,
            self.trainer.state(),
            step=self.step,
            tokens=self.tokens,
            made_from=manifest.origin(self.shards.folder, self.shards.manifest),
            recipe=self.recipe.tree(),
            circumstance=self.environment,
        )
        self.ledger.append("checkpoint", saved.result(), {"seconds": _since(started)})
        checkpoints.prune_checkpoints(self.folder, self.config.keep_last)

    def finish(self) -> None:
        """Write the model folder and the `end` line."""
        out = self.folder / "model"
        manifest.remove(out)  # of a run that was lengthened, or of a kill before its `end` line
        state = self.trainer.state()
        weights = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
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
        result = {"step": self.step, "tokens": self.tokens, "weights": sealed.files["model.safetensors"]["sha256"]}
        memory = peak_memory(self.place)
        self.ledger.append("end", result, {"seconds": _since(self.began), **memory})
        words = ", ".join(f"{key.removesuffix('_bytes')} {value / 2**30:.2f} GiB" for key, value in memory.items())
        self.display.say(f"finished {self.step} steps; peak memory: {words}; the model is in {out}")

    def require_number(self, what: str, value: float, step: int, details: str = "") -> None:
        """Stop the run at a value that is not a number. Error: TrainingError."""
        if math.isfinite(value):
            return
        last = self.ledger.step_of("checkpoint")
        rest = f"the checkpoint of step {last} is intact" if last else "no checkpoint was written yet"
        raise TrainingError(
            f"the {what} of step {step} is {value}; expected a finite number{details}. Nothing was saved after it; "
            f"{rest}. Look at what the step read (mobillama data show {self.folder} --step {step}) and at loss and "
            f"grad_norm of the steps before it in {self.ledger.path}. If they grew: a lower train.learning_rate, more "
            "train.warmup_steps or a smaller train.clip, in a new --out; train.dtype=float32 tells whether bfloat16 is "
            "to blame"
        )

    def summary(self) -> dict[str, Any]:
        """What `train` gives back of this process's work."""
        steady = self.seconds[1:]  # the first step compiles and warms up
        return {
            **summarise(self.folder, self.ledger, self.steps),
            "seconds": _since(self.began),
            "first_step_seconds": self.seconds[0] if self.seconds else None,
            "tokens_per_second": sum(self.trained[1:]) / sum(steady) if steady else None,
            "environment": self.environment,
            "peak_memory": peak_memory(self.place),
        }


def summarise(run: Path, ledger: Ledger, steps: int) -> dict[str, Any]:
    """Where a run stands, from its ledger: plain JSON types."""
    finished = ledger.is_ended(steps) and (run / "model").exists()
    newest, held_out = ledger.newest.get("step"), ledger.newest.get("validation")
    return {
        "run": str(run),
        "model": str(run / "model") if finished else None,
        "finished": finished,
        "step": newest.step if newest else 0,
        "steps": steps,
        "tokens": newest.result["tokens"] if newest else 0,
        "loss": newest.result["loss"] if newest else None,
        "validation": dict(held_out.result) if held_out else None,
    }


def _since(started: float) -> float:
    return round(time.monotonic() - started, 6)
