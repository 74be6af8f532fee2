"""The first step, file and tensor that differ."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from engine.commands.diffs import result_diff
from engine.commands.diffs.result_diff import differing_keys, first_more, first_step
from engine.results.checkpoint import spelled
from engine.results.history import StepReport

ROWS = [StepReport(step, 1.0 / step, 1e-3, 0.5, "a" * 64 if step == 2 else None) for step in (1, 2, 3)]
STATE = {"adapter.a": np.arange(6, dtype=np.float32).reshape(2, 3), "exp_avg.a": np.zeros(4, np.float32)}


def changed(index, **values):
    return [row if k != index else StepReport(**({name: getattr(row, name) for name in row.__slots__} | values))
            for k, row in enumerate(ROWS)]  # fmt: skip


class TestFirstStep:
    def test_the_same(self):
        assert first_step(ROWS, ROWS) is None

    def test_only_the_steps_that_were_made_again_count(self):
        assert first_step(ROWS, ROWS[:2]) is None

    @pytest.mark.parametrize(
        "index, values, message",
        [
            (0, {"loss": 1.0000000000000002}, "step 1: loss 1.0000000000000002 in the result, 1.0 in the re-run"),
            (1, {"weights": "b" * 64}, "step 2: digest of the weights 'bbb"),
            (1, {"weights": None}, "step 2: digest of the weights None in the result"),
            (2, {"grad_norm": None, "loss": 2.0}, "step 3: loss 2.0 .*; gradient norm None in the result, 0.5"),
        ],
    )
    def test_a_difference(self, index, values, message):
        assert re.match(message, first_step(changed(index, **values), ROWS))

    def test_a_missing_step(self):
        assert first_step(ROWS[:2], ROWS) == "step 3 is missing from the result's history"


def flipped(tensors, name, index):
    """With one bit of one value another."""
    copy = {key: value.copy() for key, value in tensors.items()}
    copy[name].reshape(-1).view(np.uint32)[index] ^= 1
    return save(copy)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def first_file(result, rerun):
    """Of files with these bytes; None for one that is missing."""
    return result_diff.first_file(written("result", result), written("rerun", rerun))


def written(kind, files):
    found = {}
    for name, data in files.items():
        found[name] = None if data is None else Path(kind, name)
        if data is not None:
            found[name].parent.mkdir(parents=True, exist_ok=True)
            found[name].write_bytes(data)
    return found


class TestFirstFile:
    def test_the_same(self):
        files = {"checkpoint/state.safetensors": save(STATE), "validation/0.png": b"png"}
        assert first_file(files, files) is None

    def test_a_flipped_bit(self):
        found = first_file({"state.safetensors": flipped(STATE, "exp_avg.a", 2)}, {"state.safetensors": save(STATE)})
        assert found.startswith("state.safetensors: tensor exp_avg.a differs in 1 of 4 values, first at 2: 1e-45")

    def test_minus_zero_is_another_value(self):
        other = STATE | {"exp_avg.a": -STATE["exp_avg.a"]}
        assert "4 of 4" in first_file({"state.safetensors": save(other)}, {"state.safetensors": save(STATE)})

    @pytest.mark.parametrize(
        "data, message",
        [
            (b"", "not a valid safetensors file"),
            (b"\xff" * 64, "not a valid safetensors file"),
            (save({"adapter.a": STATE["adapter.a"]}), "tensor exp_avg.a is missing from the result"),
            (save(STATE | {"adapter.a": np.zeros(3, np.float32)}), r"adapter.a is float32 \(3,\) in the result"),
            (save(STATE | {"more\n": np.zeros(3, np.float32)}), r"tensor 'more\\n' is only in the result"),
            (save(STATE, {"a": "b"}), "the same tensors, serialized differently"),
            (None, "is missing from the result"),
        ],
    )
    def test_other_tensors(self, data, message):
        assert re.search(message, first_file({"state.safetensors": data}, {"state.safetensors": save(STATE)}))

    def test_the_training_comes_before_the_pictures(self):
        names = [
            "manifest.json",
            "validation/0.png",
            "checkpoint/pytorch_lora_weights.safetensors",
            "state.safetensors",
        ]
        found = first_file(dict.fromkeys(names), dict.fromkeys(names, b""))
        assert found.startswith("state.safetensors")

    @staticmethod
    def manifest(change=lambda value: value, spell=lambda value: spelled("manifest.json", value), **more):
        value = {"device": "a", "versions": {}, "digest": "a", "files": {"x": "1", "state.json": "2"}, "parent": None}
        return {"checkpoint/manifest.json": spell(change(value | more))}

    @pytest.mark.parametrize(
        "more", [{"device": "b"}, {"versions": {"torch": 1}}, {"digest": "b"}, {"origins": [{"from_step": 0}]}]
    )
    def test_where_it_was_made_is_no_difference(self, more):
        assert first_file(self.manifest(**more), self.manifest()) is None

    @pytest.mark.parametrize(
        "changed, message",
        [
            ({"seed": 2}, "seed is 2 in the result, absent in the re-run"),
            ({"seed": None}, "seed is None in the result, absent in the re-run"),
            ({"files": {"x": "1", "state.json": "3"}}, None),  # it tells where it was made, too
            ({"files": {"x": "3", "state.json": "2"}}, "files.x is '3' in the result, '1' in the re-run"),
            (
                {"files": {"state.json": "2"}},
                "files.x is absent in the result, '1' in the re-run",
            ),  # nobody is told of a file then
        ],
    )
    def test_what_a_manifest_says(self, changed, message):
        found = first_file(self.manifest(**changed), self.manifest())
        assert found == (message and f"checkpoint/manifest.json: {message}")

    def test_a_key_that_is_missing(self):
        without = self.manifest(lambda value: {key: value[key] for key in value if key != "parent"})
        assert first_file(without, self.manifest()).endswith("parent is absent in the result, None in the re-run")

    @pytest.mark.parametrize(
        "spell",
        [
            lambda value: json.dumps(value).encode(),
            lambda value: spelled("manifest.json", value).replace(b"{", b'{"digest": "x",', 1),
            lambda value: spelled("manifest.json", value) + b"\n",
        ],
    )
    def test_the_same_values_in_other_bytes(self, spell):
        found = first_file(self.manifest(spell=spell), self.manifest())
        assert found == "checkpoint/manifest.json: the same values, serialized differently"

    def test_of_a_state_the_last_tasks_origin_alone_is_none(self):
        def state(first, last, **more):
            value = {"lineage": [{"device": first, "to_step": 1}, {"device": last, "to_step": 2, **more}]}
            return {"state.json": spelled("state.json", value)}

        assert first_file(state("a", "b", origins=[]), state("a", "c")) is None
        assert "lineage[0].device" in first_file(state("a", "b"), state("b", "b"))
        assert "lineage[1].parent is None in the result, absent in the re-run" in first_file(
            state("a", "b", parent=None), state("a", "b")
        )


def test_keys_of_a_strangers_json():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert list(differing_keys({"a": deep, "b": [1, {"c": 1}]}, {"a": 1, "b": [1, {"c": True}]})) == [
        "a is too deep in the result, 1 in the re-run",
        "b[1].c is 1 in the result, True in the re-run",
    ]


def test_files_that_nobody_made_again():
    assert first_more({"a", "b"}, {"a": b"", "b": b"", "c": b""}) is None
    assert first_more({"z\n", "b\n", "a"}, {"a"}) == "'b\\n' is only in the result"
