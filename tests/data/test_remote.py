"""Files behind addresses give the documents that local ones give; what breaks on the way is named, and can go on."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet as parquet
import pytest
from datatrove.data import Document
from fsspec.implementations.memory import MemoryFileSystem
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig, SubsetConfig, read_recipe
from mobillama.data import publish, remote
from mobillama.data.build import build_shards
from mobillama.data.ingest import read_task
from mobillama.data.sources import describe, list_tasks, recipe_tasks, state
from mobillama.errors import DamagedFileError, InputError
from mobillama.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, empty before and after."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.01)
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem()
    MemoryFileSystem.store.clear()


def upload(memory: MemoryFileSystem, folder: Path, to: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            memory.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def documents(source: SourceConfig) -> list[Document]:
    return [document for task in list_tasks(source) for document in read_task(task)]


def told(found: list[Document]) -> list[tuple[str, str, object, object]]:
    return [(d.text, d.id, d.metadata["file"], d.metadata["record"]) for d in found]


def make_folder(root: Path) -> Path:
    write_jsonl(root / "book" / "1.jsonl", make_documents("book", 5))
    (root / "web.jsonl.gz").write_bytes(gzip.compress(write_jsonl(root / "x", make_documents("web", 4)).read_bytes()))
    (root / "x").unlink()
    write_jsonl(root / "book.1" / "2.jsonl", make_documents("more", 2))
    return root


def test_an_address_gives_the_documents_of_a_folder_in_the_same_order(tmp_path: Path, memory: MemoryFileSystem):
    upload(memory, make_folder(tmp_path), "/data")
    local, far = (SourceConfig(root=root) for root in (str(tmp_path), "memory://data"))
    assert told(documents(far)) == told(documents(local))
    assert told(documents(SourceConfig(root=f"file://{tmp_path}"))) == told(documents(local))
    some = {"files": ("book*/*.jsonl",), "subsets": ("book.1", "book")}
    assert told(documents(far.model_copy(update=some))) == told(documents(local.model_copy(update=some)))


def test_parquet_behind_an_address_is_read(tmp_path: Path, memory: MemoryFileSystem):
    records = make_documents("book", 5)
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "book.parquet")
    upload(memory, tmp_path, "/data")
    found = documents(SourceConfig(kind="parquet", root="memory://data"))
    assert [d.text for d in found] == [record["text"] for record in records]


def test_a_remote_file_is_hashed_while_it_is_read(tmp_path: Path, memory: MemoryFileSystem):
    upload(memory, make_folder(tmp_path), "/data")
    (task,) = list_tasks(SourceConfig(root="memory://data", subsets=("web",)))
    digests: dict[str, str] = {}
    assert len(list(read_task(task, digests))) == 4
    data = (tmp_path / "web.jsonl.gz").read_bytes()
    assert digests == {"web.jsonl.gz": hashlib.sha256(data).hexdigest()}


def test_a_build_from_an_address_gives_the_bytes_of_one_from_a_folder(
    tmp_path: Path, memory: MemoryFileSystem, tokenizer: Tokenizer
):
    root = tmp_path / "raw"
    for name in ("book", "web"):
        write_jsonl(root / f"{name}.jsonl", make_documents(name, 12))
    upload(memory, root, "/raw")
    made = {}
    for name, where in (("near", str(root)), ("far", "memory://raw")):
        recipe = make_recipe(root, chunks=2).model_copy(update={"source": SourceConfig(root=where)})
        build_shards(recipe, tmp_path / name, workers=1, tokenizer=tokenizer, on_progress=lambda progress: None)
        corpus = manifest.read(tmp_path / f"{name}-corpus")
        made[name] = [corpus.files, [entry for entry in corpus.made_from if entry["kind"] == "source file"]]
    assert made["far"] == made["near"]


def test_a_remote_file_that_changes_or_goes_between_listing_and_reading_is_named(memory: MemoryFileSystem):
    memory.pipe_file("/data/book.jsonl", b'{"text": "one"}\n')
    (task,) = list_tasks(SourceConfig(root="memory://data"))
    before = state([task])
    memory.pipe_file("/data/book.jsonl", b'{"text": "two!"}\n')
    with pytest.raises(InputError, match=r"memory://.*book\.jsonl is not what it was when the build began"):
        list(read_task(task))
    assert state(list_tasks(SourceConfig(root="memory://data"))) != before
    memory.rm_file("/data/book.jsonl")
    with pytest.raises(InputError, match=r"cannot be read beyond byte 0 of 16 .*The same command goes on"):
        list(read_task(task))


def test_a_local_file_that_changes_while_it_is_read_is_named(tmp_path: Path):
    path = write_jsonl(tmp_path / "book.jsonl", [{"text": "one"}])
    tasks = list_tasks(SourceConfig(root=str(tmp_path)))
    write_jsonl(path, [{"text": "another"}])
    with pytest.raises(InputError, match=r"book\.jsonl changed while it was read"):
        describe(tasks)
    path.unlink()
    with pytest.raises(InputError, match=r"book\.jsonl was there when the build began and is gone"):
        list(read_task(tasks[0]))


class Server(ThreadingHTTPServer):
    """Files over HTTP, which can break off, refuse ranges or lose a file."""

    files: dict[str, bytes]
    ranges = True
    break_after = 0  # bytes of the next answers of a file's body; 0 = whole
    breaks = 0  # how many answers break off
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "")
        start, stop = 0, len(data)
        if self.server.ranges and wanted.startswith("bytes="):
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(low), min(len(data), int(high or len(data)) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.end_headers()
        if body:
            part = data[start:stop]
            if self.server.breaks > 0 and len(part) > self.server.break_after:
                self.server.breaks -= 1
                part = part[: self.server.break_after]
                self.close_connection = True
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.01)
    served = Server(("127.0.0.1", 0), Handler)
    served.files, served.asked = {}, []
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def list_of(server: Server, tmp_path: Path, names: tuple[str, ...]) -> SourceConfig:
    base = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "urls.txt").write_text("# RedPajama\n" + "".join(f"{base}/{name}\n" for name in names))
    return SourceConfig(url_list=str(tmp_path / "urls.txt"), id_field="")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_list_of_addresses_is_read_in_its_order(server: Server, tmp_path: Path, ranges: bool):
    server.ranges = ranges
    records = {name: make_documents(name, 3) for name in ("b", "a")}
    for name, rows in records.items():
        server.files[f"/{name}.jsonl"] = write_jsonl(tmp_path / "x", rows).read_bytes()
    source = list_of(server, tmp_path, ("b.jsonl", "a.jsonl"))
    recipe = DataRecipe(subset={"mine": SubsetConfig(source=source)})
    found = [d for task in recipe_tasks(recipe) for d in read_task(task)]
    assert [d.text for d in found] == [r["text"] for rows in records.values() for r in rows]
    assert {d.metadata["source"] for d in found} == {"mine"}
    assert found[0].id == f"mine/http://127.0.0.1:{server.server_port}/b.jsonl#1"


@pytest.mark.parametrize("ranges", [True, False])
def test_reading_goes_on_after_a_broken_connection(server: Server, tmp_path: Path, ranges: bool):
    rows = make_documents("big", 300)
    server.files["/big.jsonl"] = write_jsonl(tmp_path / "x", rows).read_bytes()
    server.ranges, server.break_after, server.breaks = ranges, 10_000, 2
    assert [d.text for d in documents(list_of(server, tmp_path, ("big.jsonl",)))] == [row["text"] for row in rows]
    assert server.breaks == 0


def test_a_source_that_vanishes_half_way_is_an_error_that_says_where(server: Server, tmp_path: Path):
    server.files["/big.jsonl"] = write_jsonl(tmp_path / "x", make_documents("big", 300)).read_bytes()
    source = list_of(server, tmp_path, ("big.jsonl",))
    server.break_after, server.breaks = 10_000, 100
    with pytest.raises(InputError, match=r"big\.jsonl cannot be read beyond byte \d+ of \d+ .*goes on where this one"):
        documents(source)
    del server.files["/big.jsonl"]
    with pytest.raises(InputError, match=r"big\.jsonl cannot be found"):
        documents(source)


def test_the_next_build_goes_on_after_a_source_vanished(server: Server, tmp_path: Path, tokenizer: Tokenizer):
    names = ("a", "b", "c")
    for name in names:
        server.files[f"/{name}.jsonl"] = write_jsonl(tmp_path / "x", make_documents(name, 40)).read_bytes()
    source = list_of(server, tmp_path, tuple(f"{name}.jsonl" for name in names))
    recipe = make_recipe(tmp_path, chunks=2).model_copy(
        update={"source": SourceConfig(), "subset": {"web": SubsetConfig(source=source)}}
    )

    def build(name: str) -> manifest.Manifest:
        return build_shards(recipe, tmp_path / name, workers=1, tokenizer=tokenizer, on_progress=lambda progress: None)

    whole = build("whole")
    server.break_after, server.breaks = 1000, 100
    server.asked.clear()
    with pytest.raises(InputError, match="cannot be read beyond byte"):
        build("broken")
    server.breaks = 0
    assert build("broken").files == whole.files


class Hub(MemoryFileSystem):
    """Stands in for the hub: sizes and hashes as it gives them."""

    protocol = "hf"
    root_marker = ""
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("hf://").strip("/")

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path not in self.store:
            raise FileNotFoundError(path)
        data = self.store[path]
        return {"name": path, "type": "file", "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}

    def find(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        if path == "datasets/bigcode/closed":
            raise PermissionError("gated")
        return {name: self.info(name) for name in self.store if name.startswith(path)}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return io.BytesIO(self.store[self._strip_protocol(path)])


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    fsspec.register_implementation("hf", Hub, clobber=True)
    Hub.store.clear()
    yield Hub
    sys.modules["fsspec.registry"]._registry.pop("hf")  # the real one is found again by its name


def test_a_data_set_of_the_hub_is_read(tmp_path: Path, hub: type[Hub]):
    rows = [{"content": f"code {n}", "id": str(n)} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for language in ("python", "c"):
        hub.store[f"datasets/bigcode/starcoderdata/{language}/train-0.parquet"] = (tmp_path / "x.parquet").read_bytes()
    hub.store["datasets/bigcode/starcoderdata/README.md"] = b"words"
    source = read_recipe(DataRecipe, "amber").subset["starcoder"].source
    assert source is not None
    recipe = DataRecipe(subset={"starcoder": SubsetConfig(source=source)})
    found = [d for task in recipe_tasks(recipe) for d in read_task(task)]
    assert [(d.text, d.metadata["source"]) for d in found] == [(f"code {n}", "starcoder") for n in (0, 1, 2)] * 2
    assert found[0].id == "starcoder/c/train-0.parquet#1"
    with pytest.raises(InputError, match=r"cannot be listed \(gated\).*hf auth login"):
        list_tasks(SourceConfig(kind="parquet", root="hf://datasets/bigcode/closed"))


def test_amber_names_its_seven_subsets_and_their_sources(hub: type[Hub], server: Server):
    recipe = read_recipe(DataRecipe, "amber")
    assert recipe.pack.chunks == 360 and recipe.pack.seq_len == 2048
    assert sum(subset.target_tokens for subset in recipe.subset.values()) == pytest.approx(1259.13e9, rel=1e-4)
    assert list(recipe.source.subsets) == [
        *("arxiv", "book", "c4", "refinedweb", "starcoder", "stackexchange", "wikipedia")
    ]
    assert set(recipe.subset) == set(recipe.source.subsets)
    lists = "datasets/togethercomputer/RedPajama-Data-1T@7c945316ee427406ddb89a4d49b714e147fb93eb/urls"
    server.files["/part.jsonl"] = b'{"text": "words", "meta": {"url": "https://a.org"}}\n'
    for name in ("arxiv", "book", "c4", "stackexchange", "wikipedia"):
        hub.store[f"{lists}/{name}.txt"] = f"http://127.0.0.1:{server.server_port}/part.jsonl\n".encode()
    hub.store["datasets/tiiuae/falcon-refinedweb/data/train-00000-of-05534-b8fc5348cbe605a5.parquet"] = b"PAR1"
    hub.store["datasets/bigcode/starcoderdata/python/train-00000-of-00059.parquet"] = b"PAR1"
    tasks = recipe_tasks(recipe)
    assert [(task.subset, task.how) for task in tasks] == [
        (name, "parquet" if name in ("refinedweb", "starcoder") else "jsonl") for name in recipe.source.subsets
    ]
    (document,) = read_task(tasks[0])
    assert (document.metadata["source"], document.metadata["url"]) == ("arxiv", "https://a.org")


def test_a_subset_takes_its_own_source_and_the_others_the_recipes(tmp_path: Path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / "all" / f"{name}.jsonl", [{"text": name}])
    write_jsonl(tmp_path / "own" / "any" / "name.jsonl", [{"text": "own"}])
    own = SubsetConfig(source=SourceConfig(root=str(tmp_path / "own")))

    def texts(**recipe: Any) -> list[tuple[str, str]]:
        made = DataRecipe.model_validate(recipe)
        return [(d.metadata["source"], d.text) for task in recipe_tasks(made) for d in read_task(task)]

    everything = SourceConfig(root=str(tmp_path / "all"))
    assert texts(source=everything, subset={"b": own}) == [("a", "a"), ("c", "c"), ("b", "own")]
    chosen = SourceConfig(root=str(tmp_path / "all"), subsets=("c", "b"))
    assert texts(source=chosen, subset={"b": own, "z": own}) == [("c", "c"), ("b", "own"), ("z", "own")]
    assert texts(subset={"b": own}) == [("b", "own")]
    with pytest.raises(InputError, match="subset b: no file below"):
        texts(subset={"b": {"source": {"root": str(tmp_path / "own"), "files": ["*.gz"]}}})


def test_artefacts_are_uploaded_whole_the_manifest_last_and_checked(
    tmp_path: Path, memory: MemoryFileSystem, built: Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[str] = []
    publish.publish(built, "memory://out/shards", sent.append)
    assert sent[-1] == manifest.FILE and set(sent[:-1]) == set(manifest.read(built).files)
    for name in sent:
        assert memory.cat_file(f"/out/shards/{name}") == (built / name).read_bytes()
    sent.clear()
    publish.publish(built, "memory://out/shards", sent.append)
    assert sent == []
    with pytest.raises(InputError, match="holds another artefact"):
        publish.publish(built.with_name("shards-corpus"), "memory://out/shards")

    class Interruption(Exception):
        pass

    def interrupt(name: str) -> None:
        if len(sent) == 3:
            raise Interruption
        sent.append(name)

    with pytest.raises(Interruption):
        publish.publish(built, "memory://out/second", interrupt)
    assert publish.published("memory://out/second") is None
    put = MemoryFileSystem.put_file
    again: list[str] = []
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda fs, path, to: again.append(to) or put(fs, path, to))
    publish.publish(built, "memory://out/second")
    assert len(again) == len(manifest.read(built).files) + 1 - 3
    assert publish.published("memory://out/second") == manifest.read(built)

    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda fs, path, to: fs.pipe_file(to, b"damaged"))
    with pytest.raises(DamagedFileError, match=r"found sha256 \w+ after the upload; expected \w+"):
        publish.publish(built, "memory://out/third")


def test_a_build_for_an_address_ends_there_and_is_not_repeated(
    tmp_path: Path, memory: MemoryFileSystem, corpora: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MOBILLAMA_CACHE", str(tmp_path / "cache"))
    recipe = make_recipe(corpora)

    def build(changed: DataRecipe = recipe) -> manifest.Manifest:
        return publish.build_at(changed, "memory://out/shards/", tokenizer=tokenizer, on_progress=lambda progress: None)

    made = build()
    assert publish.published("memory://out/shards") == made
    corpus = publish.published("memory://out/shards-corpus")
    assert corpus is not None and corpus.digest() == made.made_from[0]["digest"]
    monkeypatch.setattr(publish, "build_shards", Callable)
    assert build() == made
    with pytest.raises(InputError, match="built from another recipe"):
        build(recipe.model_copy(update={"seed": 5}))


def test_a_kind_of_address_that_nothing_reads_is_named():
    with pytest.raises(InputError, match=r"nonsense://x cannot be opened .*install what reads this kind"):
        list_tasks(SourceConfig(root="nonsense://x"))
