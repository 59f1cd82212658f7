"""The library is found, is of the header's version, and what cannot be used is said with what to do."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobillama.errors import DamagedFileError, EngineError, InputError, MissingLibraryError, OutOfMemoryError
from mobillama.runtime import library as door

HEADER = (Path(__file__).parents[2] / "native" / "include" / "mobillama.h").read_text(encoding="utf-8")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for the library anew, before the test and after it."""
    door.library.cache_clear()
    yield
    door.library.cache_clear()


def test_versions_and_functions_are_those_of_the_header() -> None:
    assert int(re.search(r"#define MOBILLAMA_VERSION (\d+)", HEADER)[1]) == door.VERSION  # type: ignore[index]
    assert door.library().mobillama_version() == door.VERSION
    declared = set(re.findall(r"^MOBILLAMA_API .*?\bmobillama_(\w+)\(", HEADER, re.MULTILINE))
    assert declared == set(door.FUNCTIONS)


def test_statuses_are_those_of_the_header() -> None:
    declared = {name: int(value) for name, value in re.findall(r"MOBILLAMA_([A-Z]+) = (\d),?\s*/\*", HEADER)}
    declared["OK"] = 0
    assert declared == {status.name: status.value for status in door.Status}


def struct_fields(text: str) -> list[tuple[str, str]]:
    """(name, C type) of the members of a struct, in order."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).replace("const char*", "const_char_pointer")
    text = text.replace("void (*progress)(double share, void* user)", "function progress")
    found = []
    for declaration in filter(None, map(str.strip, text.split(";"))):
        kind, names = declaration.replace("void* user", "pointer user").split(" ", 1)
        found += [(name.strip(), kind) for name in names.split(",")]
    return found


@pytest.mark.parametrize(
    ("name", "struct"),
    [
        ("open_options", door.OpenOptions),
        ("info", door.InfoStruct),
        ("context_options", door.ContextOptions),
        ("sampling", door.SamplingStruct),
    ],
)
def test_structs_have_the_members_of_the_header(name: str, struct: type[ctypes.Structure]) -> None:
    kinds = {
        "int32_t": ctypes.c_int32,
        "int64_t": ctypes.c_int64,
        "uint64_t": ctypes.c_uint64,
        "double": ctypes.c_double,
        "pointer": ctypes.c_void_p,
        "const_char_pointer": ctypes.c_char_p,
        "function": door.Progress,
    }
    (members,) = re.findall(rf"typedef struct {{([^}}]*)}} mobillama_{name};", HEADER)
    assert [(member, kinds[kind]) for member, kind in struct_fields(members)] == [tuple(f) for f in struct._fields_]


def test_a_library_that_was_not_built_names_the_places_and_what_to_run(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(door.VARIABLE, raising=False)
    monkeypatch.setattr("mobillama.runtime.__path__", [str(tmp_path)])
    with pytest.raises(
        MissingLibraryError, match=rf"not found \({re.escape(str(tmp_path))}.*make setup.*{door.VARIABLE}"
    ):
        door.library()


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_file_that_is_no_library_is_an_error(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    monkeypatch.setenv(door.VARIABLE, str(path))
    with pytest.raises(MissingLibraryError, match=r"library.so cannot be used"):
        door.library()
    monkeypatch.setenv(door.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(MissingLibraryError, match=rf"{door.VARIABLE}=.*nothing is no file"):
        door.library()


def test_a_library_of_another_version_is_an_error(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "VERSION", door.VERSION + 1)
    with pytest.raises(MissingLibraryError, match=rf"version {door.VERSION - 1}.*expects version {door.VERSION}"):
        door.library()


def test_the_variable_names_the_library(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere.so"
    link.symlink_to(door.find())
    monkeypatch.setenv(door.VARIABLE, str(link))
    assert door.find() == link.resolve()
    assert door.library().mobillama_version() == door.VERSION


def test_every_failure_has_an_error_of_ours_that_is_also_the_usual_one() -> None:
    assert set(door.ERRORS) == set(door.Status) - {door.Status.OK}
    assert issubclass(door.ERRORS[door.Status.FULL], InputError)
    assert issubclass(OutOfMemoryError, MemoryError)
    assert issubclass(DamagedFileError, OSError)
    assert issubclass(EngineError, RuntimeError)


def test_a_status_is_raised_with_the_words_of_the_library(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    status = door.library().mobillama_open(bytes(bad), None, ctypes.byref(ctypes.c_void_p()))
    assert status in (door.Status.FORMAT, door.Status.UNSUPPORTED)
    with pytest.raises(door.ERRORS[status], match=r"bad\.gguf"):  # type: ignore[arg-type]
        door.check(status)


def test_the_machine_is_measured() -> None:
    assert door.library().mobillama_bandwidth(1 << 20, 1, 0.01) > 1e6
    assert 0 <= door.library().mobillama_round_trip() < 1e-3
