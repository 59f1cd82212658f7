"""Writing a checkpoint while training goes on: whole or not at all, at any number of ranks.

A copy of the state is taken between two steps; the rest happens in a thread of each rank. There the digest of every
tensor is made from memory, the ranks write their rows with torch.distributed.checkpoint (safetensors, no pickle), and
rank 0 seals the folder once all have written and synced. The thread talks to the other ranks' threads over a process
group of its own, so that nothing of the training's waits for it. (dcp.async_save would write as well, but knows nothing
of digests, seals and folders that appear whole.)
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mobillama import manifest
from mobillama.errors import TrainingError
from mobillama.train import digest
from mobillama.train.checkpoint import FORM, KIND, Checkpoint, checkpoints_folder
from mobillama.train.state_digest import local_tensor, state_digests
from mobillama.train.world import ALONE, PATIENCE, World

T = TypeVar("T")
FILE_BYTES = 1 << 27  # of whole tensors in a file at most, unless one is larger
WAIT_SECONDS = 0.005  # between two looks at the thread
GRACE_SECONDS = 5.0  # for this rank's thread to hear of another's error, and clean up
Then = Callable[[Checkpoint], None]


@dataclass
class Job:
    """A checkpoint on its way: what it is of, and what came of it."""

    out: Path
    made_from: Mapping[str, str]
    recipe: Mapping[str, Any]
    counts: Mapping[str, Any]
    circumstance: Mapping[str, Any]
    then: Then | None
    seconds: dict[str, float] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def is_over(self) -> bool:
        """Whether this rank's part is done, well or badly."""
        return self.thread is None or not self.thread.is_alive()

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note the seconds of a part."""
        started = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - started, 6)


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; all ranks make and call it alike, from their main thread.

    As a context manager it waits at the end for what is on its way, so that nobody else finds the folder half written.
    """

    def __init__(self, run: Path, world: World = ALONE, *, asynchronous: bool = True) -> None:
        self.run, self.world, self.asynchronous = run, world, asynchronous
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world.size > 1 else None
        self._job: Job | None = None
        self._copies: dict[str, Tensor] = {}  # kept from one checkpoint to the next

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._job and self._job.thread:
            # After an error elsewhere the other ranks may be gone: their threads' exchange then fails by itself.
            self._job.thread.join(None if self.world.size == 1 else 60.0)

    def begin(
        self,
        state: Mapping[str, Tensor],
        *,
        step: int,
        tokens: int,
        made_from: Mapping[str, str],
        recipe: Mapping[str, Any],
        circumstance: Mapping[str, Any],
        published: int | None = None,
        then: Then | None = None,
        at_once: bool = False,
    ) -> None:
        """Copy a training state (names as in TrainStep.state) and write it in the background, or at once.

        circumstance: the environment. published: the number under which it is kept for good. then: called on rank 0
        with the sealed checkpoint, in the background too. at_once: no training goes on beside it, so that no copy is
        needed. What comes of it, errors too, is told by `finished` or `wait`; one of these must have told of the
        checkpoint before.
        """
        if self._job:
            raise RuntimeError(f"{self._job.out} is still being written, or nobody asked what came of it")
        counts: dict[str, Any] = {"step": step, "tokens": tokens, "form": FORM}
        counts |= {} if published is None else {"published": published}
        out = checkpoints_folder(self.run) / f"step_{step:06d}"
        job = Job(out, made_from, recipe, counts, {**circumstance, "ranks": self.world.size}, then)
        self._job = job
        if at_once or not self.asynchronous:
            self._write(job, state)
            return
        with job.timed("copy"):
            copied = {name: self._copy(name, tensor) for name, tensor in state.items()}
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        job.thread = threading.Thread(target=self._write, args=(job, copied), name="checkpoint", daemon=True)
        job.thread.start()

    def finished(self) -> Checkpoint | None:
        """The checkpoint, once, when it is sealed; None while it is not, or if none was begun. The same on all ranks.

        Errors: OSError if there is no room (what was written of it is removed, older ones stay); TrainingError if
        another rank failed.
        """
        job = self._job
        if job is None:
            return None
        failed = self.world.agree(job.is_over and job.error is not None)
        if not failed and self.world.agree(not job.is_over):
            return None
        self._job = None
        if failed:
            if job.thread:
                job.thread.join(GRACE_SECONDS)
            raise job.error or TrainingError(
                f"another rank could not write {job.out}; its own message says why. Older checkpoints stay as they are"
            )
        return job.checkpoint

    def wait(self) -> Checkpoint | None:
        """As `finished`, but waits for it; None if none was begun."""
        while self._job:
            if saved := self.finished():
                return saved
            if self._job.thread:
                self._job.thread.join(WAIT_SECONDS)
        return None

    @torch.no_grad()
    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in the CPU's memory, of the same form."""
        local = local_tensor(tensor.detach())
        copy = self._copies.get(name)
        if copy is None or copy.shape != local.shape or copy.dtype != local.dtype:
            copy = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.device.type == "cuda")
            self._copies[name] = copy
        copy.copy_(local, non_blocking=True)
        return _like(tensor, copy) if isinstance(tensor, DTensor) else copy

    def _write(self, job: Job, state: Mapping[str, Tensor]) -> None:
        """Everything but the copy; runs on all ranks side by side."""
        try:
            with job.timed("digest"):
                tensors = state_digests(state, self._group)
            with contextlib.ExitStack() as held:
                self._on_main(lambda: _make_room(job.out, held))
                try:
                    with job.timed("write"):
                        self._write_rows(manifest.partial_path(job.out), state)
                    sealed = self._on_main(lambda: _seal(job, tensors))
                except BaseException:
                    if self.world.is_main:
                        shutil.rmtree(manifest.partial_path(job.out), ignore_errors=True)
                    raise
            checkpoint = Checkpoint(job.out, sealed, job.seconds)
            self._on_main(lambda: job.then(checkpoint) if job.then else None)
            job.checkpoint = checkpoint
        except BaseException as error:
            job.error = _in_plain_words(error, job.out)

    def _write_rows(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """This rank's rows into files of its own, synced; returns when all ranks have."""
        from torch.distributed.checkpoint.state_dict_saver import save

        from mobillama.train.row_files import RowFiles

        save(
            dict(state),
            storage_writer=RowFiles(folder, _files(state)),
            process_group=self._group,
            no_dist=self._group is None,
        )

    def _on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, on all ranks; its error is raised on all."""
        if self._group is None:
            return work()
        box: list[Any] = [None, None]
        if self.world.is_main:
            try:
                box[0] = work()
            except BaseException as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self._group)
        if box[1] is not None:
            raise box[1]
        return box[0]  # type: ignore[no-any-return]


def _like(tensor: DTensor, local: Tensor) -> Tensor:
    """This rank's part of a tensor, as a tensor spread in the same way."""
    # Not DTensor.from_local, which would send a copy on the CPU back to the mesh's device.
    return DTensor(local, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call,no-any-return,unused-ignore]


def _make_room(out: Path, held: contextlib.ExitStack) -> None:
    """Take the folder to write in, empty."""
    shutil.rmtree(manifest.partial_path(out), ignore_errors=True)
    held.enter_context(manifest.building(out))


def _files(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file (from 1) holds each tensor: in the order of names, weights apart from the optimizer's."""
    files: dict[str, int] = {}
    number, size, part = 0, 0, ""
    for name in sorted(state):
        if number == 0 or name.partition(".")[0] != part or size + state[name].nbytes > FILE_BYTES:
            number, size, part = number + 1, 0, name.partition(".")[0]
        files[name], size = number, size + state[name].nbytes
    return files


def _seal(job: Job, tensors: Mapping[str, str]) -> manifest.Manifest:
    partial = manifest.partial_path(job.out)
    digest.write_digests(partial, tensors)
    with job.timed("seal"):
        return manifest.seal(
            partial,
            job.out,
            KIND,
            made_from=[job.made_from],
            recipe=job.recipe,
            counts={**job.counts, **digest.part_digests(tensors)},
            circumstance=job.circumstance,
        )


def _in_plain_words(error: BaseException, out: Path) -> BaseException:
    """The error of the rank that failed, out of the wrapping that torch.distributed.checkpoint puts around it."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException) and error.failures:
        rank, (inner, _) = min(error.failures.items())
        if not isinstance(inner, OSError):
            return TrainingError(f"rank {rank} could not write {out} ({inner!r}); older checkpoints stay as they are")
        error = inner
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, str(error.filename or out))
    return error
