#!/usr/bin/env python3
"""Check artefacts and runs with the standard library alone: python tools/verify.py PATH ...

Checks every folder under the paths that holds manifest.json or run.json as docs/formats.md says (Manifest, Run): files
by hash, what it was made from by digest, the chain of a run's ledger. Prints differences, what was not at hand, and a
line with the root digest of each. Exit status 1 if anything differs. Shares no code with the package.
"""

import hashlib
import json
import sys
from pathlib import Path, PurePosixPath

KNOWN = {"mobillama.manifest": 1, "mobillama.run": 1}
LINES = {"start", "step", "validation", "checkpoint", "resumed", "end"}
SAID = {  # line of the ledger -> what it gives the sha256 of
    "checkpoint": {"weights": "weights.safetensors", "optimizer": "optimizer.safetensors"},
    "end": {"weights": "model.safetensors"},
}


class Report:
    """What checking one artefact or run gave."""

    def __init__(self, path):
        self.path, self.kind, self.digest, self.wrong, self.missing = path, "?", "", [], []

    def tell(self):
        for text in [*self.wrong, *(f"not checked: {text}" for text in self.missing)]:
            print(f"{self.path}: {text}")
        print(f"{'DIFFERS' if self.wrong else 'ok'} {self.kind} {self.digest} {self.path}")


def sha256(path):
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path, name):
    """A JSON object of format `name`. Error: ValueError in words."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or tree.get("format") != name:
        raise ValueError(f"not of format {name}")
    version = tree.get("format_version")
    if not isinstance(version, int) or version > KNOWN[name]:
        raise ValueError(f"format version {version}; this program knows {KNOWN[name]}")
    return tree


def root_digest(manifest):
    """The identity of an artefact: sha256 of the manifest's canonical JSON without its circumstance."""
    tree = {key: value for key, value in manifest.items() if key != "circumstance"}
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_origin(path, kind):
    """The digest of what lies at `path`, as `made_from` names it; None if there is none of that kind."""
    if kind == "source file":
        return sha256(path) if path.is_file() else None
    if kind == "tokenizer":
        return sha256(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else None
    file = path / "manifest.json"
    return root_digest(read(file, "mobillama.manifest")) if file.is_file() else None


def check_artefact(folder):
    """Files and lineage of one artefact; the report and the manifest (None if it cannot be read)."""
    report = Report(folder)
    try:
        manifest = read(folder / "manifest.json", "mobillama.manifest")
        report.kind, report.digest = manifest["kind"], root_digest(manifest)
        check_files(folder, manifest["files"], report)
        check_lineage(folder, manifest["made_from"], report)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        report.wrong.append(f"manifest.json cannot be used: {error!r}")
        return report, None
    return report, manifest


def check_files(folder, promised, report):
    for name, entry in promised.items():
        path = folder / name
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            report.wrong.append(f"{name}: leads out of the folder")
        elif not path.is_file():
            report.wrong.append(f"{name}: missing")
        elif path.stat().st_size != entry["bytes"]:
            report.wrong.append(f"{name}: {path.stat().st_size} bytes; expected {entry['bytes']}")
        elif (found := sha256(path)) != entry["sha256"]:
            report.wrong.append(f"{name}: sha256 {found}; expected {entry['sha256']}")
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    report.wrong += [f"{name}: not in the manifest" for name in there if name not in {*promised, "manifest.json"}]


def check_lineage(folder, made_from, report):
    folder = folder.resolve()
    runs = [above.parent for above in folder.parents[:2] if (above / "run.json").is_file()]
    for entry in made_from:
        kind, name, promised = entry["kind"], entry["name"], entry["digest"]
        relative = name and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        places = [*([] if kind == "source file" else [folder]), folder.parent, *runs] if relative else []
        found = [digest_of_origin(place / name, kind) for place in places if (place / name).resolve() != folder]
        found = next((digest for digest in found if digest), None)
        if found is None:
            report.missing.append(f"{kind} {name}: not at hand")
        elif found != promised:
            report.wrong.append(f"made from {kind} {name}: digest {found}; expected {promised}")


def read_ledger(path, report):
    """Whole lines of a ledger, their chain checked; an error stops at the line. Sets the report's digest."""
    lines, previous = [], "0" * 64
    whole = path.read_bytes().split(b"\n")[:-1]  # after the last newline: cut off by a kill
    report.digest = hashlib.sha256(whole[-1]).hexdigest() if whole else ""
    for number, raw in enumerate(whole, 1):
        try:
            line = json.loads(raw)
            promised, _ = line["circumstance"]["previous"], line["result"]["step" if number > 1 else "recipe"]
            if line["kind"] not in LINES or (number == 1) != (line["kind"] == "start"):
                raise ValueError(f"kind {line['kind']!r}")
        except (ValueError, KeyError, TypeError) as error:
            report.wrong.append(f"ledger.jsonl line {number} is not a line: {error!r}")
            return []
        if promised != previous:
            report.wrong.append(f"ledger.jsonl line {number} follows {promised}; line {number - 1} is {previous}")
            return []
        previous = hashlib.sha256(raw).hexdigest()
        lines.append(line)
    return lines


def check_run(run, artefacts):
    """A run's ledger, and its shards, checkpoints and model against it."""
    report = Report(run)
    report.kind = "run"
    try:
        told = read(run / "run.json", "mobillama.run")
        lines = read_ledger(run / "ledger.jsonl", report)
        text = json.dumps(told["recipe"], sort_keys=True, separators=(",", ":"))
        recipe, shards = told["recipe_digest"], told["shards"]["digest"]
        if hashlib.sha256(text.encode()).hexdigest() != recipe:
            report.wrong.append("run.json: recipe and recipe_digest do not fit")
        changed = any(line["kind"] == "resumed" and line["result"]["changed"] for line in lines)
        for name, expected in (("shards", shards), ("recipe", recipe)):
            if lines and lines[0]["result"][name] != expected and not (name == "recipe" and changed):
                report.wrong.append(f"ledger.jsonl line 1: {name} {lines[0]['result'][name]}; run.json has {expected}")
        path = Path(told["shards"]["path"])
        found = [digest_of_origin(place, "shards") for place in (path, run.resolve().parent / path.name)]
        found = next((digest for digest in found if digest), None)
        if found is None:
            report.missing.append(f"shards {path.name}: not at hand")
        elif found != shards:
            report.wrong.append(f"shards {path.name}: digest {found}; expected {shards}")
        for folder, manifest in artefacts.items():
            if folder.parent == run / "checkpoints" or folder == run / "model":
                check_part(folder, manifest, lines, shards, report)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        report.wrong.append(f"run.json or ledger.jsonl cannot be used: {error!r}")
    return report


def check_part(folder, manifest, lines, shards, report):
    """A checkpoint or the model against the ledger's line of its step."""
    kind, step = "end" if folder.name == "model" else "checkpoint", manifest["counts"]["step"]
    for entry in manifest["made_from"]:
        if entry["kind"] == "shards" and entry["digest"] != shards:
            report.wrong.append(f"{folder.name}: made from shards {entry['digest']}; expected {shards}")
    if lines and max(line["result"].get("step", 0) for line in lines) < step:
        report.wrong.append(f"{folder.name} is of step {step}, which the ledger does not reach: lines were lost")
        return
    said = [line["result"] for line in lines if line["kind"] == kind and line["result"]["step"] == step]
    if not said:
        report.missing.append(f"{folder.name}: the ledger has no {kind} line of step {step}")
        return
    for key, name in SAID[kind].items():
        if manifest["files"].get(name, {}).get("sha256") not in [result[key] for result in said]:
            report.wrong.append(f"{folder.name}/{name}: not the {key} of the ledger's {kind} line of step {step}")


def main(paths):
    """Check all under the paths; the exit status."""
    files = [
        file for path in paths for name in ("manifest.json", "run.json") for file in sorted(Path(path).rglob(name))
    ]
    built = [file for file in files if not file.parent.name.endswith((".partial", ".removed"))]
    checked = {file.parent: check_artefact(file.parent) for file in built if file.name == "manifest.json"}
    known = {folder: manifest for folder, (_, manifest) in checked.items() if manifest}
    runs = [check_run(file.parent, known) for file in built if file.name == "run.json"]
    reports = [*(report for report, _ in checked.values()), *runs]
    for report in reports:
        report.tell()
    return int(any(report.wrong for report in reports)) if reports else "no manifest.json and no run.json there"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
