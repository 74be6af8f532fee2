"""A checkpoint is believed only when every byte agrees, and refused by one kind of error whatever a stranger wrote."""

import copy
import hashlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.errors import CheckpointError
from engine.core.files.atomic_files import Stored
from engine.results import checkpoint
from engine.results.checkpoint import Checkpoint, reading

WORLD = {"rank": 8, "seed": 0, "base_model": "sha256:1", "target_modules": ["to_k"]}
STATE = {"global_step": 3, "optimizer_step": 3, "loss_scale": None}


ENDINGS = (".safetensors", "_webui.safetensors")


def step_files(step):
    return [checkpoint.step_file(step, ending) for ending in ENDINGS]


def build(**changes):
    values = {
        "global_step": 3,
        "state_files": {"state.safetensors": b"tensors " * 20},
        "state_scalars": STATE,
        "weights": {"pytorch_lora_weights.safetensors": b"lora", "lora_webui.safetensors": b"webui"},
        "world": WORLD,
        "settings": {"validation": {"num_images": 4}},
        "lineage": [{"from_step": 0, "to_step": 3}],
        "history": b"[1, 0.5, 0.1, 2.0]\n",
        "baseline": [{"file": "0.png", "prompt": "a cat", "seed": 1}],
        "pictures": {"0.png": b"PNG"},
        "finished": False,
        "manifest": {
            "base_model": {"identity": "m@1", "revision": "1"},
            "dataset": {"name": None, "revision": None},
            "parent": None,
        },
    }
    return checkpoint.build_files(**(values | changes))


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sealed(body):
    """A manifest whose digest agrees: what an attacker writes, not a damaged copy."""
    body = {key: value for key, value in body.items() if key != "digest"}
    return checkpoint.spelled("manifest.json", {**body, "digest": checkpoint.digest_of(body)})


def written(state):
    """As this program writes it, or as near as JSON allows."""
    try:
        return checkpoint.spelled("state.json", state)
    except ValueError:
        return json.dumps(state).encode()


def forged(*, state=None, step=None, **manifest):
    """All files of a checkpoint, with hashes that agree, about which anything may be a lie."""
    files, _ = build()
    if state is not None:
        files["state.json"] = state if isinstance(state, bytes) else written(state)
    if step is not None:
        files["global_step.txt"] = step
    body = json.loads(files["manifest.json"])
    body["files"] = {name: hashlib.sha256(files[name]).hexdigest() for name in body["files"]}
    files["manifest.json"] = sealed(body | manifest)
    return files


def state_json():
    return json.loads(build()[0]["state.json"])


class TestThereAndBack:
    @pytest.mark.parametrize("finished", [True, False])
    def test_everything_comes_back(self, tmp_path, finished):
        files, digest = build(finished=finished)
        assert ("FINISH" in files) is finished and files["global_step.txt"] == b"3\n"
        found = reading.load(write(tmp_path, files))
        assert isinstance(found, Checkpoint)
        assert found.digest == digest == json.loads(files["manifest.json"])["digest"]
        assert (found.global_step, found.finished, found.world, found.state_scalars) == (3, finished, WORLD, STATE)
        state = Stored(tmp_path / "state.safetensors", hashlib.sha256(files["state.safetensors"]).hexdigest())
        assert found.state_files == {"state.safetensors": state}
        assert found.lineage == [{"from_step": 0, "to_step": 3}]
        assert found.settings == {"validation": {"num_images": 4}}
        assert found.history == files["history.jsonl"] and found.pictures == {"0.png": b"PNG"}
        assert found.baseline == [{"file": "0.png", "prompt": "a cat", "seed": 1}]

    def test_held_out_losses_are_there_where_they_were_measured(self, tmp_path):
        files, _ = build(held_out_losses=b"rows")
        assert files["heldout.jsonl"] == b"rows" and "heldout.jsonl" in json.loads(files["manifest.json"])["files"]
        assert reading.load(write(tmp_path, files)).held_out_losses == b"rows"
        assert build(held_out_losses=b"") == build()
        assert reading.load(write(tmp_path / "without", build()[0])).held_out_losses == b""

    def test_bytes_are_the_same_for_the_same_values_in_any_order(self):
        shuffled = build(world=dict(reversed(WORLD.items())), state_scalars=dict(reversed(STATE.items())))
        assert shuffled == build()
        assert build(weights={"pytorch_lora_weights.safetensors": b"other"})[1] != build()[1]

    def test_the_manifest_lists_every_other_file(self):
        files, _ = build(finished=True)
        listed = json.loads(files["manifest.json"])["files"]
        assert listed == {n: hashlib.sha256(d).hexdigest() for n, d in files.items() if n != "manifest.json"}

    def test_files_beside_it_are_never_opened(self, tmp_path):
        write(tmp_path, build()[0] | {"optimizer.bin": b"pickle", "report.html": b""})
        (tmp_path / "pipe").mkdir()
        assert isinstance(reading.load(tmp_path), Checkpoint)


class TestEarlierSteps:
    NAMES = tuple(step_files(1) + step_files(2))

    def build(self, names=NAMES, **changes):
        return build(steps={name: name.encode() for name in names}, **changes)

    def test_they_come_back(self, tmp_path):
        files, digest = self.build()
        assert digest != build()[1]
        found = reading.load(write(tmp_path, files))
        assert {name: b"".join(file.chunks()) for name, file in found.steps.items()} == {
            name: name.encode() for name in self.NAMES
        }
        assert found.digest == digest
        assert found.pictures == {"0.png": b"PNG"}
        assert reading.load(write(tmp_path / "without", build()[0])).steps == {}

    def test_they_stay_on_disk_and_are_carried_on_from_there(self, tmp_path):
        """200 of Stable Diffusion XL would not fit into memory."""
        files, digest = self.build()
        found = reading.load(write(tmp_path, files))
        assert found.steps == {
            name: Stored(tmp_path / name, hashlib.sha256(files[name]).hexdigest()) for name in self.NAMES
        }
        assert build(steps=found.steps) == (files | found.steps, digest)

    def test_their_names(self):
        assert step_files(200) == ["steps/000200.safetensors", "steps/000200_webui.safetensors"]
        for step in (1, 999_999, 1_000_000, 2**60):
            assert [checkpoint.step_of(name) for name in step_files(step)] == [step, step]
            assert [checkpoint.step_ending(name) for name in step_files(step)] == list(ENDINGS)

    @pytest.mark.parametrize(
        "name",
        [
            "steps/1.safetensors",
            "steps/0000001.safetensors",
            "steps/000001.bin",
            "steps/000001_webui_webui.safetensors",
            "steps/000001.safetensors\n",
            "steps/٠٠٠٠٠١.safetensors",
            "steps/../000001.safetensors",
            "steps/../../000001.safetensors",
            "steps/steps/000001.safetensors",
            "/steps/000001.safetensors",
            "./steps/000001.safetensors",
            "steps//000001.safetensors",
            "Step/000001.safetensors",
            "part/.hidden",
            "part/inner/000001.safetensors",
            "steps/000001",
            "steps/000001/../../../000001.safetensors",
            "steps/000001/000001.safetensors",
            "steps/000001/part/inner/000001.safetensors",
            "steps/manifest.json",
            "steps",
        ],
    )
    def test_no_other_file_of_a_folder_is_read(self, tmp_path, name):
        (tmp_path / "000001.safetensors").write_bytes(b"outside")
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / "steps").mkdir()
        files, _ = build()
        body = json.loads(files["manifest.json"])
        body["files"][name] = hashlib.sha256(b"outside").hexdigest()
        write(inside, files | {"manifest.json": sealed(body)})
        assert checkpoint.step_of(name) is None
        with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
            reading.load(inside)

    def test_links_are_refused(self, tmp_path):
        files, _ = self.build()
        write(tmp_path / "real", files)
        (tmp_path / "link").mkdir()
        write(tmp_path / "link", {name: data for name, data in files.items() if "/" not in name})
        (tmp_path / "link" / "steps").symlink_to(tmp_path / "real" / "steps")
        with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
            reading.load(tmp_path / "link")
        path = tmp_path / "real" / self.NAMES[0]
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
            reading.load(tmp_path / "real")

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_listed_must_be_there(self, tmp_path, name, damage):
        write(tmp_path, self.build()[0])
        damage(tmp_path / name)
        with pytest.raises(CheckpointError, match=r"incomplete|is corrupt"):
            reading.load(tmp_path)

    def test_the_whole_folder_is_gone(self, tmp_path):
        write(tmp_path, {name: data for name, data in self.build()[0].items() if "/" not in name})
        with pytest.raises(CheckpointError, match="incomplete"):
            reading.load(tmp_path)

    @pytest.mark.parametrize("step", [0, 3, 4])
    def test_a_step_that_is_not_earlier(self, tmp_path, step):
        write(tmp_path, self.build(step_files(step))[0])
        with pytest.raises(CheckpointError, match=r"steps/"):
            reading.load(tmp_path)


SHARDS = tuple(f"state-{k:05}-of-00003.safetensors" for k in (1, 2, 3))


class TestShardsAndFolders:
    WEIGHTS = ("part/config.json", "part/model-00001-of-00002.safetensors", "steps/000002/part/config.json")

    def build(self, names=SHARDS):
        files = {name: name.encode() for name in self.WEIGHTS}
        steps = {name: files.pop(name) for name in self.WEIGHTS if name.startswith("steps/")}
        return build(state_files={name: name.encode() for name in names}, weights=files, steps=steps)

    def write(self, folder, files):
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def test_they_stay_on_disk(self, tmp_path):
        files, digest = self.build()
        found = reading.load(self.write(tmp_path, files))
        stored = {name: Stored(tmp_path / name, hashlib.sha256(name.encode()).hexdigest()) for name in files}
        assert found.digest == digest
        assert found.state_files == {name: stored[name] for name in SHARDS}
        assert found.steps == {name: stored[name] for name in ("steps/000002/part/config.json",)}
        assert found.pictures == {"0.png": b"PNG"}

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
    @pytest.mark.parametrize("name", [*SHARDS, *WEIGHTS])
    def test_a_damaged_or_missing_one_is_named(self, tmp_path, name, damage):
        self.write(tmp_path, self.build()[0])
        damage(tmp_path / name)
        with pytest.raises(CheckpointError, match=name) as caught:
            reading.load(tmp_path)
        assert caught.value.code == 5

    @pytest.mark.parametrize("name", SHARDS)
    def test_a_shard_that_is_not_listed_is_named(self, tmp_path, name):
        files, _ = self.build([one for one in SHARDS if one != name])
        with pytest.raises(CheckpointError, match=f"does not list {name}"):
            reading.load(self.write(tmp_path, files))

    @pytest.mark.parametrize(
        "names", [(*SHARDS, "state.safetensors"), (*SHARDS, "state-00001-of-00002.safetensors"), ()]
    )
    def test_not_exactly_one_state(self, tmp_path, names):
        with pytest.raises(CheckpointError, match=r"two training states|does not list state"):
            reading.load(self.write(tmp_path, self.build(names)[0]))

    @pytest.mark.parametrize("place", ["part", "steps", "steps/000002", "steps/000002/part"])
    def test_a_folder_that_is_a_link_is_refused(self, tmp_path, place):
        folder = self.write(tmp_path / "checkpoint", self.build()[0])
        (folder / place).rename(tmp_path / "elsewhere")
        (folder / place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
            reading.load(folder)

    @pytest.mark.parametrize("name", ["part/config.json", SHARDS[1]])
    def test_a_pipe_is_not_opened(self, tmp_path, name):
        folder = self.write(tmp_path, self.build()[0])
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
            reading.load(folder)


class TestDamage:
    def test_every_flipped_byte_is_found(self, tmp_path):
        files, _ = build(finished=True)
        write(tmp_path, files)
        for name, data in files.items():
            for position in range(0, len(data), 7):
                changed = bytearray(data)
                changed[position] ^= 0x20
                (tmp_path / name).write_bytes(changed)
                with pytest.raises(CheckpointError):
                    reading.load(tmp_path)
            (tmp_path / name).write_bytes(data)
        assert isinstance(reading.load(tmp_path), Checkpoint)

    @pytest.mark.parametrize("name", sorted(build(finished=True)[0]))
    @pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "folder"])
    def test_a_file_that_is_not_as_it_was(self, tmp_path, name, damage):
        write(tmp_path, build(finished=True)[0])
        path = tmp_path / name
        data = path.read_bytes()
        path.unlink()
        if damage == "truncated" and data:
            path.write_bytes(data[:-2])
        elif damage == "longer":
            path.write_bytes(data + b"}")
        elif damage == "folder":
            path.mkdir()
        with pytest.raises(CheckpointError) as caught:
            reading.load(tmp_path)
        assert name in str(caught.value) or damage == "missing"
        assert caught.value.code == 5 and "\n" not in str(caught.value)

    def test_a_forgery_with_agreeing_hashes_is_the_base_of_what_follows(self, tmp_path):
        assert isinstance(reading.load(write(tmp_path, forged())), Checkpoint)

    @pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "a/b", "..", ".", "", "secret/"])
    def test_names_that_leave_the_folder_are_refused(self, tmp_path, name):
        (tmp_path / "secret").write_bytes(b"")
        folder = write(tmp_path / "checkpoint", forged())
        listed = json.loads((folder / "manifest.json").read_bytes())["files"]
        empty = hashlib.sha256(b"").hexdigest()
        (folder / "manifest.json").write_bytes(forged(files=listed | {name: empty})["manifest.json"])
        with pytest.raises(CheckpointError):
            reading.load(folder)

    @pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\N{SNOWMAN}"], ids=["long", "nul", "snowman"])
    def test_names_that_no_file_can_have_are_refused(self, tmp_path, name):
        listed = json.loads(build()[0]["manifest.json"])["files"]
        with pytest.raises(CheckpointError):
            reading.load(write(tmp_path, build()[0] | forged(files=listed | {name: "0"})))

    @pytest.mark.parametrize("name", ["state.safetensors", "manifest.json", "pytorch_lora_weights.safetensors"])
    def test_links_are_refused(self, tmp_path, name):
        folder = write(tmp_path / "checkpoint", build()[0])
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError):
            reading.load(folder)

    @pytest.mark.parametrize(
        "state, step",
        [
            ({"global_step": 4}, None),
            ({}, b"4\n"),
            ({"global_step": None}, None),
            ({"global_step": True}, None),
            ({"global_step": "3"}, None),
            ({}, b"three"),
            ({}, b""),
        ],
    )
    def test_steps_that_disagree(self, tmp_path, state, step):
        with pytest.raises(CheckpointError):
            reading.load(write(tmp_path, forged(state=state_json() | {"state": STATE | state}, step=step)))

    @pytest.mark.parametrize("step, text", [(-1, b"-1"), (3.0, b"3"), (True, b"1")], ids=str)
    def test_a_step_is_a_count(self, tmp_path, step, text):
        """Also where all three places agree."""
        state = state_json() | {"state": STATE | {"global_step": step}}
        with pytest.raises(CheckpointError):
            reading.load(write(tmp_path, forged(state=state, step=text, global_step=step)))

    def test_another_format_is_named(self, tmp_path):
        with pytest.raises(CheckpointError, match="format 2, but this version reads only 1"):
            reading.load(write(tmp_path, forged(state=state_json() | {"format": 2})))

    @pytest.mark.parametrize("name", ["global_step.txt", "state.json", "FINISH"])
    def test_a_gigabyte_of_what_is_parsed_is_not_read(self, tmp_path, name):
        write(tmp_path, build(finished=True)[0])
        os.truncate(tmp_path / name, 1 << 30)
        with pytest.raises(CheckpointError, match="too many for a checkpoint"):
            reading.load(tmp_path)

    def test_depths_that_could_be_read_but_not_written_are_refused(self, tmp_path):
        deep = json.loads("[" * 500 + "]" * 500)
        for key, value in (("lineage", [{"a": deep}]), ("settings", {"a": deep}), ("world", {"a": deep})):
            with pytest.raises(CheckpointError, match="levels deep"):
                reading.load(write(tmp_path, forged(state=state_json() | {key: value})))

    def test_a_manifest_of_a_gigabyte_is_not_read(self, tmp_path):
        write(tmp_path, build()[0])
        os.truncate(tmp_path / "manifest.json", 1 << 30)
        with pytest.raises(CheckpointError, match="not a checkpoint's manifest"):
            reading.load(tmp_path)


def with_a_repeated_key(data):
    return data.replace(b"{", b'{"world":{"base_model":"LIES"},', 1)


OTHERWISE = {
    "white space": lambda data: data.replace(b":", b": ", 1).replace(b"\n", b"", 1),
    "a line more": lambda data: data + b"\n",
    "a repeated key": with_a_repeated_key,
    "another order": lambda data: json.dumps(dict(reversed(json.loads(data).items())), indent=1).encode(),
    "an escape": lambda data: data.replace(b"parent", b"p\\u0061rent").replace(b"world", b"w\\u006frld"),
}


class TestSpelling:
    """The same values in other bytes: hashes and digests agree, and still it is not what was published."""

    @pytest.mark.parametrize("how", OTHERWISE)
    def test_of_a_state(self, tmp_path, how):
        data = OTHERWISE[how](build()[0]["state.json"])
        assert json.loads(data) == state_json()
        with pytest.raises(CheckpointError, match=r"state.json is not written as this program writes it") as caught:
            reading.load(write(tmp_path, forged(state=data)))
        assert caught.value.code == 5

    @pytest.mark.parametrize("how", OTHERWISE)
    def test_of_a_manifest(self, tmp_path, how):
        files, _ = build()
        data = files["manifest.json"]
        if how == "a repeated key":
            data = data.replace(b"{", b'{"base_model": {"identity": "LIES"},', 1)
        else:
            data = OTHERWISE[how](data)
        assert json.loads(data) == json.loads(files["manifest.json"]) and data != files["manifest.json"]
        with pytest.raises(CheckpointError, match=r"manifest.json is not written as this program writes it"):
            reading.load(write(tmp_path, files | {"manifest.json": data}))

    @pytest.mark.parametrize("where", ["", "world", "lineage"])
    def test_an_added_null(self, tmp_path, where):
        state = state_json()
        (state if not where else state["lineage"][0] if where == "lineage" else state[where])["more"] = None
        with pytest.raises(CheckpointError, match="'more' is null"):
            reading.load(write(tmp_path, forged(state=state)))

    def test_an_added_null_in_the_manifest(self, tmp_path):
        with pytest.raises(CheckpointError, match="'more' is null"):
            reading.load(write(tmp_path, forged(more=None)))

    @pytest.mark.parametrize("step", [b"3", b" 3\n", b"+3\n", b"3\n\n", b"03\n"])
    def test_of_the_step(self, tmp_path, step):
        with pytest.raises(CheckpointError, match="disagree about its global step"):
            reading.load(write(tmp_path, forged(step=step)))

    def test_names_in_any_script_and_any_number_come_back(self, tmp_path):
        names = {"name": "猫/é\u2028", "rate": 1e-07, "big": 10**30, "minus": -0.0}
        found = reading.load(
            write(tmp_path, build(world=WORLD | names, manifest={"base_model": {}, "dataset": names})[0])
        )
        assert found.world == WORLD | names and found.manifest["dataset"] == names


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*path, key))


def mutated(draw, value):
    """`value` with something replaced or removed, somewhere."""
    value = copy.deepcopy(value)
    path = draw(st.sampled_from(list(paths_of(value))))
    if not path:
        return draw(JSON_VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if draw(st.booleans()):
        parent[path[-1]] = draw(JSON_VALUES)
    else:
        del parent[path[-1]]
    return value


class TestStrangers:
    """Whatever the JSON says: a Checkpoint whose types are as declared, or a CheckpointError."""

    @staticmethod
    def check(folder):
        try:
            found = reading.load(folder)
        except CheckpointError as error:
            assert "\n" not in str(error)
            return
        assert isinstance(found, Checkpoint)
        assert type(found.global_step) is int and found.global_step >= 0
        for mapping in (found.manifest, found.world, found.settings, found.state_scalars):
            assert type(mapping) is dict
        for rows in (found.lineage, found.baseline):
            assert type(rows) is list and all(type(row) is dict for row in rows)
        for part in ("base_model", "dataset"):
            assert type(found.manifest[part]) is dict

    @given(data=st.data())
    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_state_json(self, tmp_path, data):
        state = mutated(data.draw, state_json())
        write(tmp_path, forged(state=state))
        self.check(tmp_path)

    @given(data=st.data())
    @settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_manifest(self, tmp_path, data):
        files = forged()
        body = mutated(data.draw, json.loads(files["manifest.json"]))
        try:
            files["manifest.json"] = sealed(body)
        except (ValueError, AttributeError, TypeError):  # no digest can be made of it
            files["manifest.json"] = json.dumps(body).encode()
        write(tmp_path, files)
        self.check(tmp_path)

    @given(data=st.binary(max_size=40))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_bytes(self, tmp_path, data):
        for name in ("manifest.json", "state.json", "global_step.txt"):
            write(tmp_path, forged() | {name: data})
            with pytest.raises(CheckpointError):
                reading.load(tmp_path)

    @pytest.mark.parametrize(
        "text", [b"[" * 200_000, b'{"a":' * 100_000, b"1" * 5000], ids=["lists", "dicts", "digits"]
    )
    def test_json_that_exhausts_a_parser(self, tmp_path, text):
        write(tmp_path, forged() | {"manifest.json": text})
        with pytest.raises(CheckpointError):
            reading.load(tmp_path)


class TestNothingThere:
    @pytest.mark.parametrize(
        ("make", "said"), [("nothing", "cannot be read"), ("empty", "holds no checkpoint"), ("file", "is a file: give")]
    )
    def test_nothing_to_load(self, tmp_path, make, said):
        folder = tmp_path / "checkpoint"
        if make == "empty":
            folder.mkdir()
        elif make == "file":
            folder.write_text("")
        with pytest.raises(CheckpointError, match=said):
            reading.load(folder)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can stop being root")
    @pytest.mark.parametrize("closed", ["parent", "folder"])
    def test_a_folder_that_may_not_be_read(self, tmp_path, closed):
        folder = write(tmp_path / "parent" / "folder", build()[0])
        tmp_path.parent.chmod(0o755), tmp_path.parent.parent.chmod(0o755)
        tmp_path.chmod(0o755)
        (folder if closed == "folder" else folder.parent).chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(CheckpointError):
                reading.load(folder)
        finally:
            os.seteuid(0)
