"""The arrows between modules, and what must not be found anywhere: by reading the code, not by running it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "engine"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(ENGINE.rglob("*.py"))}
PACKAGES = {module_name(path) for path in ENGINE.rglob("__init__.py")}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(body, *, lazy):
    """All statements that run at import time; with `lazy`, those inside functions too."""
    for node in body:
        if is_type_checking(node) or (not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        yield node
        for field in ("body", "orelse", "finalbody", "handlers"):
            yield from statements(getattr(node, field, []), lazy=lazy)


def imports(module, *, lazy=False):
    """The modules that `module` imports: `engine.x` for our own, the top-level package for others."""
    found = set()
    for node in statements(TREES[module].body, lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if module in PACKAGES else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in TREES else base for a in node.names}
    return {name if name in TREES else name.partition(".")[0] for name in found}


def ours(names):
    return {name for name in names if name in TREES}


def closure(module):
    """Everything that importing `module` imports, packages' own `__init__` included."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in TREES:
            parents = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
            queue += [*imports(name), *(parent for parent in parents if parent in TREES)]
    return seen


HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "safetensors"}
LIGHT = [
    "core.errors",
    "core.files.folder_lock",
    "core.process.gpus",
    "core.process.startup",
    "core.process.streams",
    "core.rng",
    "task.plan.steps",
    "task.plan.visits",
    "task.settings",
    "task.task",
    "results.checkpoint",
    "results.output.folder",
    "data.dataset.sizes",
    "data.media.rendering",
    "data.media.image",
    "data.media.registry",
    "data.caption_choice",
    "training.buckets",
    "training.encoding.long_step",
    "training.encoding.step_window",
    "training.methods.lokr.spec",
    "training.methods.lora.checks",
    "training.methods.lora.formats.names",
    "training.methods.registry",
    "training.optimizers.registry",
    "training.optimizers.lr_schedule",
    "training.methods.lora.targets",
    "models.base_model",
    "models.spec",
    "job.advice.audit",
    "job.advice.lengths",
    "job.advice.disk_space",
    "job.memory",
    "job.advice.precheck",
    "job.opening",
    "job.prepare",
    "commands.container",
    "commands.prefetch",
]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    assert closure(f"engine.{name}") & HEAVY == set()


def test_jobs_of_images_load_no_video_library():
    """`av` is FFmpeg, 100 MB: imported where a clip is read or written."""
    assert "av" in closure("engine.data.media.video.clip")
    assert [
        name for name in ("job.run", "commands.verify", "commands.compare") if "av" in closure(f"engine.{name}")
    ] == []


ROOMS = ["core", "task", "results", "data", "models", "training", "evaluation", "job", "commands"]
"""A module imports from its own room and from those before it."""

# To be straightened: the module, and what it imports from a later room.
BACKWARDS: set[tuple[str, str]] = set()


def room(module):
    return module.split(".")[1]


def test_every_module_is_in_a_room():
    assert {room(module) for module in TREES if module != "engine"} == set(ROOMS)


def test_imports_go_one_way():
    backwards = {
        (module, name)
        for module in TREES
        for name in ours(imports(module, lazy=True)) - {"engine"}
        if module != "engine" and ROOMS.index(room(name)) > ROOMS.index(room(module))
    }
    assert backwards == BACKWARDS


@pytest.mark.parametrize(
    "folder", [ENGINE, *(path.parent for path in ENGINE.rglob("__init__.py"))], ids=lambda path: str(path.name)
)
def test_a_folder_has_few_entries(folder):
    entries = [path.name for path in folder.iterdir() if not path.name.startswith("__")]
    assert len(entries) <= 13, entries


MADE_FOR = {
    "diffusion": {f"engine.models.families.{row}.{part}" for row in ("sd", "sdxl") for part in ("spec", "model")},
}
"""Modules that are made for a row of another seam: these families' schedulers, and names of predictions."""


@pytest.mark.parametrize("seam, registry", [("families", "registry"), ("objectives", "objectives.registry")])
def test_a_row_is_imported_by_its_registry_alone(seam, registry):
    """The registry imports its `spec`, and the module with the torch part by the name that is in the row."""
    rows = [path.name for path in (ENGINE / "models" / seam).iterdir() if (path / "spec.py").exists()]
    assert rows
    for row in rows:
        own = f"engine.models.{seam}.{row}."
        importers = {module for module in TREES if any(name.startswith(own) for name in imports(module, lazy=True))}
        outside = {module for module in importers if not module.startswith(own)}
        assert outside - MADE_FOR.get(row, set()) == {f"engine.models.{registry}"}


SHARED = ("tracker", "registry", "speed", "service", "services", "service_process")
"""Files in the folder of the trackers that are no rows."""


def test_a_tracker_is_imported_by_its_registry_alone():
    """Besides the protocol, the registry and what trackers share, each file of the folder is a row."""
    folder = "engine.results.trackers"
    rows = {name for name in TREES if name.startswith(f"{folder}.")}
    rows -= {f"{folder}.{name}" for name in SHARED}
    assert rows
    importers = {module for module in TREES if ours(imports(module, lazy=True)) & rows}
    assert importers == {f"{folder}.registry"}


@pytest.mark.parametrize("module", [name for name in TREES if not name.startswith("engine.models")])
def test_no_objective_is_named_outside_the_models_room(module):
    """As an identifier or a whole string; Stable Diffusion is a model, not the objective."""
    objectives = {path.name for path in (ENGINE / "models" / "objectives").iterdir() if (path / "spec.py").exists()}
    assert objectives
    assert not {text.lower() for text in names_and_texts(TREES[module])} & objectives


def test_there_is_no_import_cycle():
    state = {}

    def visit(module, path):
        if state.get(module) == "done":
            return
        assert module not in path, f"cycle: {' -> '.join([*path, module])}"
        for name in ours(imports(module, lazy=True)) - {module}:
            visit(name, [*path, module])
        state[module] = "done"

    for module in TREES:
        visit(module, [])


OUTSIDE_FAMILIES = [
    path for path in (ROOT / "entrypoint.py", *sorted(ENGINE.rglob("*.py"))) if ENGINE / "models" not in path.parents
]


@pytest.mark.parametrize("path", OUTSIDE_FAMILIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_family_is_named_outside_the_models_room(path):
    """Not even in a comment or a message: what differs between families is the families' business."""
    assert re.findall(r"(?i)\w*(?:sdxl|diffusionxl|(?<![a-z])xl(?![a-z]))\w*", path.read_text()) == []


MAY_NAME_ROWS = ("engine.training.methods", "engine.training.optimizers", "engine.models", "engine.task")
"""The rooms of methods and optimizers; families, which name their layers in LoRA files; and the task format's keys."""
NAMES_OF_ROWS = {
    # The name of a format.
    "engine.commands.export.main": {"lora"},
    # What captions of other programs have.
    "engine.data.dataset.captions.caption_notes": {"lora"},
}
"""What the contract fixes: the names of methods and optimizers, and of their files and keys, outside of their rooms."""


def names_and_texts(tree):
    """All identifiers of a module, and its strings but for docstrings."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        for field in ("id", "attr", "name", "arg", "module"):
            if isinstance(found := getattr(node, field, None), str):
                yield found


@pytest.mark.parametrize("module", [name for name in TREES if not name.startswith(MAY_NAME_ROWS)])
def test_no_method_and_no_optimizer_is_named_outside_its_room(module):
    """In texts for people a LoRA may be called one: that is what the results are, whichever method makes others."""
    found = set()
    for text in names_and_texts(TREES[module]):
        own = re.sub(r"(?i)sd[-_]lora[-_]task", "", text)
        found |= set(
            re.findall(
                r"\w*(?:lora|Lora|LORA|lokr|Lokr|LOKR|loftq|LoftQ|[Aa]dam[wW]|[Aa]dafactor|[Pp]rodigy|exp_avg)\w*", own
            )
        )
    assert found == NAMES_OF_ROWS.get(module, set())


FIXED_WORDS = {
    "engine/task/aliases.py": {"unet", "epsilon"},  # keys of other trainers' tasks
    "engine/task/keys/optimizer.py": {"epsilon"},  # AdamW's
    "engine/task/keys/train_args.py": {"epsilon"},  # the value of a key
    # AdamW's and Prodigy's
    **{f"engine/training/optimizers/{name}.py": {"epsilon"} for name in ("adamw", "adamw_8bit", "prodigy", "registry")},
    # a key of kohya's metadata, and AdamW's
    "engine/training/methods/lora/formats/webui_metadata.py": {"unet", "epsilon"},
}
"""Words that the task format or other programs fix, by file."""


@pytest.mark.parametrize("path", OUTSIDE_FAMILIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_part_of_a_model_is_named_outside_the_models_room(path):
    """Families, objectives and their parts: what the denoiser is, which text encoders there are, what is predicted."""
    found = {word.lower() for word in re.findall(r"(?i:unet|text_model|epsilon)|CLIP", path.read_text())}
    assert found == FIXED_WORDS.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize("module", TREES)
def test_no_pickle(module):
    assert not imports(module, lazy=True) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save", "np.load", "numpy.load")
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "use_safetensors"):
            assert ast.unparse(node.value) == str(node.arg == "use_safetensors")
        assert not (isinstance(node, ast.keyword) and node.arg == "trust_remote_code")


BROAD = {
    "engine.models.loading.modules": 1,  # the libraries' readers of damaged files raise anything
    "engine.models.loading.tokenizers": 1,
    "engine.models.export.weights": 1,  # the libraries' constructors raise anything for malformed configurations
    "engine.data.fetch.hub": 1,  # sorts whatever the Hub's library raises, and raises it again
    "engine.data.fetch.hub_push": 1,  # whatever the Hub's library raises in its thread
    "engine.core.process.forks": 1,  # a bug ends a forked program with 70
    "engine.commands.program": 1,  # a bug ends a program with 70
    "engine.commands.train": 1,
    "engine.models.parts.token_files": 1,  # tokenizers raises bare Exceptions
    "engine.commands.caption.source": 2,  # captioners' libraries raise anything
    "engine.data.media.image": 2,  # Pillow on damaged bytes raises anything
    "engine.results.trackers.service_process": 1,  # the same of a service, in its own process
    "engine.results.trackers.tracker": 1,  # whatever a tracker raises is a warning, not the training's end
}


def test_broad_excepts_are_on_the_list():
    found = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = "everything" if node.type is None else ast.unparse(node.type)
            ends_by_raising = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if kinds == "everything" or kinds == "Exception" or ("BaseException" in kinds and not ends_by_raising):
                found[module] = found.get(module, 0) + 1
    assert found == BROAD


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import engine.commands.container", HEAVY | {"numpy", "pyarrow", "huggingface_hub", "tqdm"}),
        ("import engine.commands.train", HEAVY | {"numpy", "pyarrow", "huggingface_hub"}),
        ("import entrypoint; entrypoint.main(['--help'], {})", HEAVY | {"numpy", "huggingface_hub"}),
        *(
            (f"import entrypoint; entrypoint.main(['{name}', '--help'], {{}})", HEAVY)
            for name in ("verify", "compare", "prefetch", "caption", "chain", "worker", "export")
        ),
        (
            "import engine.task.task; engine.task.task.parse_task(b'{}', source='x')",
            HEAVY | {"numpy", "PIL", "huggingface_hub"},
        ),
        ("import engine.task.plan.steps, engine.task.plan.visits", HEAVY | {"PIL", "pyarrow", "huggingface_hub"}),
        ("import engine.job.prepare, engine.job.memory", HEAVY),
        (
            "import engine.job.advice.audit, engine.models.parts.clip.tokens; engine.models.parts.clip.tokens._clip",
            HEAVY,
        ),
        ("import engine.data.media.rendering", HEAVY | {"pyarrow", "huggingface_hub"}),
    ],
)
def test_what_is_imported_in_fact(code, absent):
    script = (
        "import sys, json, contextlib\n"
        f"with contextlib.suppress(BaseException):\n    {code}\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "engine" in loaded, done.stderr
    assert loaded & absent == set()
