"""Law: who may import whom. The table of DESIGN.md, kept by walking every import, those inside functions too."""

import ast
from pathlib import Path

import mobillama

ROOT = Path(mobillama.__file__).parent

# room -> rooms it may import. `errors` and `cores` are open to all; a room may always import itself.
OPEN = {"errors", "cores"}
MAY = {
    "__init__": {"data", "language_model", "loading", "train"},
    "errors": set(),
    "cores": set(),
    "strict_json": set(),
    "config": set(),
    "manifest": {"strict_json"},
    "device": set(),
    "tokenizer": {"config", "manifest"},
    "generation": {"tokenizer"},
    "runtime": {"config", "manifest", "tokenizer", "generation"},
    "data": {"config", "manifest", "tokenizer", "strict_json"},
    "model": {"config", "manifest", "generation"},
    "train": {"config", "manifest", "device", "data", "model", "strict_json"},
    "language_model": {"config", "manifest", "device", "model", "tokenizer", "generation"},
    "loading": {"language_model", "runtime", "generation"},
    "export": {"config", "manifest", "model", "tokenizer", "runtime"},
    "report": {"manifest"},
    "eval": {"config", "manifest", "device", "tokenizer", "data", "model", "generation", "language_model", "runtime"},
}
STAGES = {*MAY} - {"__init__", *OPEN}
MAY |= {"bench": STAGES, "experiment": STAGES, "quickstart": STAGES}
MAY["cli"] = STAGES | {"bench", "experiment", "quickstart"}
NEVER = {"data": {"torch"}, "config": {"torch"}, "report": {"torch"}, "tokenizer": {"torch"}, "manifest": {"torch"}}
NEVER |= {"generation": {"torch"}, "runtime": {"torch"}}
ENDS = ("bench", "experiment", "quickstart")
HEAVY = {"torch", "datatrove", "pyarrow", "sentencepiece", "transformers", "pydantic", "numpy", "tokenizers"}


def rooms() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        found.setdefault(path.relative_to(ROOT).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.name == "modeling_mobillama.py", f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "mobillama" else {module}
    return names


def test_every_room_is_in_the_table():
    assert set(rooms()) == set(MAY)


def test_imports_follow_the_table():
    wrong = []
    for room, paths in rooms().items():
        for path in paths:
            for name in imported(path):
                parts = name.split(".")
                if parts[0] == "mobillama" and len(parts) > 1:
                    other = parts[1]
                    known = other in MAY and other != "__init__"
                    if known and other not in MAY[room] | {room, *OPEN}:
                        wrong.append(f"{path.relative_to(ROOT)} imports {other}")
                elif parts[0] in NEVER.get(room, set()):
                    wrong.append(f"{path.relative_to(ROOT)} imports {parts[0]}")
    assert not wrong


def test_nothing_but_the_command_line_imports_bench_experiment_and_quickstart():
    importers = {
        room
        for room, paths in rooms().items()
        for path in paths
        for name in imported(path)
        if name.startswith(tuple(f"mobillama.{end}" for end in ENDS)) and room not in ENDS
    }
    assert importers == {"cli"}


def test_the_face_and_the_command_line_import_nothing_heavy_at_module_level():
    for name in (
        "__init__.py",
        "errors.py",
        "loading.py",
        *(f"cli/{path.name}" for path in (ROOT / "cli").glob("*.py")),
    ):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {module.split(".")[0] for module in modules} & HEAVY, f"{name} imports {modules}"
