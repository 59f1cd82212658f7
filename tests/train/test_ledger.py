import hashlib
import json

import pytest

from mobillama.errors import DamagedFileError, InputError, TrainingError
from mobillama.train.ledger import FILE, Ledger, read_ledger


def write(run, steps=3, **opening):
    with Ledger.open(run, **opening) as ledger:
        for step in range(1, steps + 1):
            ledger.append("step", {"step": step, "loss": 1 / 3 / step}, {"seconds": 0.5})
    return (run / FILE).read_bytes()


def test_each_line_holds_the_hash_of_the_line_before(tmp_path):
    lines = write(tmp_path).splitlines()
    previous = [json.loads(line)["circumstance"]["previous"] for line in lines]
    assert previous == ["0" * 64, *(hashlib.sha256(line).hexdigest() for line in lines[:-1])]


def test_floats_are_read_back_to_the_same_bits(tmp_path):
    write(tmp_path)
    assert [line.result["loss"] for line in read_ledger(tmp_path)] == [1 / 3, 1 / 6, 1 / 9]


def test_a_restart_only_appends(tmp_path):
    before = write(tmp_path)
    after = write(tmp_path)
    assert after.startswith(before)
    assert len(read_ledger(tmp_path)) == 6


def test_a_line_cut_off_by_a_kill_is_cut_away_and_the_others_stay(tmp_path):
    before = write(tmp_path)
    for tail in (b"{", b'{"kind":"step","result":{"step":4}', before.splitlines()[-1]):
        (tmp_path / FILE).write_bytes(before + tail)
        assert len(read_ledger(tmp_path)) == 3
        assert (tmp_path / FILE).read_bytes() == before + tail  # reading changes nothing
        with Ledger.open(tmp_path) as ledger:
            assert ledger.last_step == 3
        assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("number", [1, 2])
def test_a_changed_line_is_named(tmp_path, number):
    lines = write(tmp_path).splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"seconds":0.5', b'"seconds":0.4')
    (tmp_path / FILE).write_bytes(b"".join(lines))
    for reading in (read_ledger, Ledger.open):
        with pytest.raises(DamagedFileError, match=rf"line {number} was changed.*sha256 is [0-9a-f]{{64}}.*expects"):
            reading(tmp_path)


def test_a_removed_line_is_noticed(tmp_path):
    lines = write(tmp_path).splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(lines[0] + lines[2])
    with pytest.raises(DamagedFileError, match="line 1 was changed"):
        read_ledger(tmp_path)


@pytest.mark.parametrize("junk", [b"not json\n", b"[1]\n", b'{"kind":"step"}\n', bytes(40) + b"\n"])
def test_a_whole_line_that_is_no_ledger_line_is_named(tmp_path, junk):
    before = write(tmp_path)
    (tmp_path / FILE).write_bytes(before + junk)
    with pytest.raises(DamagedFileError, match="line 4 is not a ledger line"):
        read_ledger(tmp_path)


def test_a_folder_without_ledger_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"has no ledger.jsonl"):
        read_ledger(tmp_path)


def test_a_repeated_step_must_repeat(tmp_path):
    before = write(tmp_path)
    with Ledger.open(tmp_path, repeats_after=1) as ledger:
        ledger.append("step", {"step": 2, "loss": 1 / 6})
        with pytest.raises(TrainingError, match=r"step 3 did not repeat.*loss 0.5 \(earlier 0.1111111111111111\)"):
            ledger.append("step", {"step": 3, "loss": 0.5})
    assert (tmp_path / FILE).read_bytes().startswith(before)
    assert len(read_ledger(tmp_path)) == 4  # the line that differed was not written


def test_a_repeat_that_lacks_a_key_does_not_repeat(tmp_path):
    write(tmp_path)
    with Ledger.open(tmp_path, repeats_after=0) as ledger, pytest.raises(TrainingError, match="did not repeat"):
        ledger.append("step", {"step": 1})


def test_steps_need_not_repeat_where_determinism_was_not_asked_for(tmp_path):
    write(tmp_path)
    with Ledger.open(tmp_path, repeats_after=None) as ledger:
        ledger.append("step", {"step": 3, "loss": 0.5})
    assert len(read_ledger(tmp_path)) == 4


def test_a_number_that_json_cannot_hold_is_never_written(tmp_path):
    with Ledger.open(tmp_path) as ledger, pytest.raises(ValueError, match="JSON"):
        ledger.append("step", {"step": 1, "loss": float("nan")})
    assert read_ledger(tmp_path) == []


def test_a_repeat_is_not_compared_where_the_earlier_version_said_nothing(tmp_path):
    with Ledger.open(tmp_path) as ledger:
        ledger.append("step", {"step": 1, "loss": 0.5})
        ledger.append("checkpoint", {"step": 1, "weights": "sha256 of a file", "optimizer": "another"})
    now = {"step": 1, "form": 2, "weights": "digest of tensors", "optimizer": "another"}
    with Ledger.open(tmp_path, repeats_after=0) as ledger:
        ledger.append("step", {"step": 1, "loss": 0.5, "grad_norm_ffn": 1.0, "grad_norm_attention": 2.0})
        ledger.append("checkpoint", now)
        with pytest.raises(TrainingError, match=r"did not repeat.*loss 0.25 \(earlier 0.5\)"):
            ledger.append("step", {"step": 1, "loss": 0.25, "grad_norm_ffn": 1.0, "grad_norm_attention": 2.0})
    with Ledger.open(tmp_path, repeats_after=0) as ledger, pytest.raises(TrainingError, match="did not repeat"):
        ledger.append("step", {"step": 1, "loss": 0.5, "skipped": True})
