"""Nothing is imported from the working folder, and no standard stream ends a program."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # an interpreter of its own for each test

ROOT = Path(__file__).parents[4]
ENTRYPOINT = ROOT / "entrypoint.py"
CUSTOM = {"sitecustomize", "usercustomize"}
OTHERS = {"numpy", "PIL", "torch", "entrypoint", "tests"}

WORKER = """
import sys
if __name__ == "__main__":
    sys.path.insert(0, {root!r})
    from engine.core.process.startup import prepare_process
    prepare_process()
    import functools, io
    from PIL import Image
    from engine.data.media.rendering import render_all
    from engine.data.media.geometry import Geometry
    from engine.data.media.image import render
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    read = functools.partial(bytes, file.getvalue())
    size = (64, 64)
    geometry = Geometry(original=size, resized=size, target=size, top=0, left=0, flip=False, repeatable=True)
    (pixels,) = render_all([(read, geometry)], render, 1)
    print(pixels.shape)
"""


@pytest.fixture
def strangers(tmp_path):
    """A folder of a stranger's whose Python files tell when they are run."""
    folder = tmp_path / "strangers"
    folder.mkdir()
    for name in sys.stdlib_module_names | CUSTOM | OTHERS:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    return folder


@pytest.fixture
def late(strangers, tmp_path):
    """The same without what Python itself looks for before a program's first line: no program can help that."""
    (tmp_path / "probe.py").write_text("import sys; print(*{name.partition('.')[0] for name in sys.modules})")
    probe = subprocess.run([sys.executable, "-m", "probe"], cwd=tmp_path, capture_output=True, text=True, check=True)
    early = {f"{name}.py" for name in {*probe.stdout.split(), *CUSTOM}}
    for path in strangers.iterdir():
        if path.name in early:
            path.unlink()
    assert len(list(strangers.iterdir())) > 150
    return strangers


def run(strangers, *command, **env):
    """Run Python in the stranger's folder; nothing of it may run."""
    home = {"PATH": os.environ["PATH"], "HOME": str(strangers.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=strangers, env=home | env, capture_output=True, text=True, check=False
    )
    ran = strangers.parent / "ran"
    assert not ran.exists(), ran.read_text()
    return done


class TestPath:
    @pytest.mark.parametrize("env", [{}, {"PYTHONSAFEPATH": "1"}], ids=str)
    def test_the_program(self, strangers, env):
        done = run(strangers, ENTRYPOINT, "--plan", "--task", "nowhere", **env)
        assert done.returncode == 2 and "nowhere cannot be read" in done.stderr, done.stderr

    @pytest.mark.parametrize("flags, env", [((), {}), ((), {"PYTHONSAFEPATH": "1"}), (("-E",), {}), (("-I",), {})])
    def test_its_image_workers(self, strangers, tmp_path, flags, env):
        script = tmp_path / "script.py"
        script.write_text(WORKER.format(root=str(ROOT)))
        done = run(strangers, *flags, script, **env)
        assert done.stdout == "(64, 64, 3)\n", done.stderr

    @pytest.mark.parametrize("path", ["", ".", ":", f"{ROOT}:", "./", "{strangers}"])
    def test_a_search_path_that_names_the_working_folder(self, late, tmp_path, path):
        script = tmp_path / "script.py"
        script.write_text(WORKER.format(root=str(ROOT)))
        done = run(late, script, PYTHONPATH=path.format(strangers=late))
        assert done.stdout == "(64, 64, 3)\n", done.stderr
        done = run(late, ENTRYPOINT, "--version", PYTHONPATH=path.format(strangers=late))
        assert done.stdout.startswith("sd-lora-task "), done.stderr

    @pytest.mark.parametrize("program", ["verify", "compare", "prefetch", "caption", "chain"])
    def test_the_other_programs(self, late, program):
        done = run(late, ENTRYPOINT, program, "--help")
        assert done.returncode == 0 and f"usage: entrypoint.py {program}" in done.stdout, done.stderr

    def test_a_folder_that_is_gone(self, tmp_path):
        script = f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); os.execv({sys.executable!r}, "
        script += f"[{sys.executable!r}, {str(ENTRYPOINT)!r}, '--version'])"
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


BROKEN = ["2>/dev/full", ">/dev/full 2>&1", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 >/dev/null | true", "2</dev/null"]


class TestStreams:
    @pytest.mark.parametrize("broken", BROKEN)
    @pytest.mark.parametrize("arguments, code", [("--task nowhere", 2), ("--version", 0), ("--help", 0)])
    def test_the_code_is_right(self, tmp_path, broken, arguments, code):
        command = f"{sys.executable} {ENTRYPOINT} --output-dir out {arguments} {broken}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stderr

    @pytest.mark.parametrize("broken", BROKEN)
    def test_of_the_other_programs_too(self, tmp_path, broken):
        command = f"{sys.executable} {ENTRYPOINT} verify nowhere --task nowhere {broken}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 5, done.stderr

    def test_no_file_gets_the_number_of_a_closed_stream(self, tmp_path):
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.core.process.startup import prepare_process\n"
            "prepare_process(); import os, subprocess\n"
            "with open('file', 'w') as file:\n"
            "    os.write(2, b'of a library'); print('lost', flush=True); print('lost', file=sys.stderr)\n"
            "    subprocess.run([sys.executable, '-c', 'import os; os.write(2, bytes(1))'], check=True)\n"
            "assert sys.stdin.read() == ''\n"
            "os._exit(7 if open('file').read() == '' else 1)\n"
        )
        command = f'{sys.executable} -c "$SCRIPT" <&- >&- 2>&-'
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=os.environ | {"SCRIPT": script}, check=False)
        assert done.returncode == 7

    def test_what_can_be_written_is_written_as_before(self, tmp_path):
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.core.process.startup import prepare_process\n"
            "prepare_process(); print('caf\\u00e9'); print('\\u4e2d', file=sys.stderr); print(sys.stdout.isatty())"
        )
        env = os.environ | {"PYTHONIOENCODING": "latin-1"}
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, check=True)
        assert done.stdout == "caf\u00e9\nFalse\n".encode("latin-1") and done.stderr == b"\\u4e2d\n"

    def test_a_pipe_that_is_full_and_must_not_block(self, tmp_path):
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.core.process.startup import prepare_process\n"
            "prepare_process(); import os; os.set_blocking(2, False)\n"
            "for _ in range(2000): print('x' * 1000, file=sys.stderr)\n"
            "print('done')"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout.read() == b"done\n" and process.wait() == 0
            assert 1000 < len(process.stderr.read()) < 2_000_000

    def test_a_signal_in_the_middle_of_a_line_loses_nothing_of_it(self, tmp_path):
        script = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from engine.core.process.startup import prepare_process\n"
            "prepare_process(); import signal\n"
            "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.2, 0.05)\n"
            "print('x' * 1_000_000); signal.setitimer(signal.ITIMER_REAL, 0)"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            time.sleep(1)
            assert process.stdout.read() == b"x" * 1_000_000 + b"\n" and process.wait() == 0
