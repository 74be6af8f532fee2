"""Files that are there whole or not at all, also when every single operation may be the last."""

import errno
import hashlib
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.core.errors import OutputError
from engine.core.files import atomic_files


class Crash(BaseException):
    """The process dies here. No `Exception`: nothing may clean up after a SIGKILL but what a `finally` would."""


@contextmanager
def crash_at(n, monkeypatch):
    """Die instead of doing the n-th file operation (from 0). Gives a list that holds the operations' names."""
    done = []

    def dying(name, real):
        def operation(*arguments, **options):
            done.append(name)
            if len(done) > n:
                raise Crash(name)
            return real(*arguments, **options)

        return operation

    with monkeypatch.context() as patch:
        for owner, names in {
            os: ("open", "fsync", "fchmod", "unlink", "rmdir"),
            Path: ("rename", "replace", "open", "mkdir", "unlink", "chmod"),
            atomic_files: ("_exchange",),
        }.items():
            for name in names:
                patch.setattr(owner, name, dying(name, getattr(owner, name)))
        yield done


def every_crash(monkeypatch, prepare, action):
    """Runs `action` on a fresh `prepare()` for each n, dying at the n-th operation; yields what prepare gave."""
    for n in range(200):
        subject = prepare(n)
        try:
            with crash_at(n, monkeypatch) as done:
                action(subject)
        except Crash:
            yield subject
        else:
            assert n == len(done) > 0
            yield subject
            return
    raise AssertionError("the action never came to its end")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_created_file_is_whole_or_absent(tmp_path, monkeypatch, has_links):
    if not has_links:
        refusal = OSError(errno.EPERM, "no links here")
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(refusal))
    assert atomic_files.create_file(tmp_path / "a", b"1") is True
    assert atomic_files.create_file(tmp_path / "a", b"2") is False
    assert contents(tmp_path) == {"a": b"1"}


class TestWriteCached:
    """What no disk and no other job can spoil."""

    def test_is_whole_in_a_folder_that_it_makes_and_leaves_nothing_beside(self, tmp_path):
        path = tmp_path / "a" / "b" / "file"
        for data in (b"one", b"three" * 1000):
            assert atomic_files.write_cached(path, data)
            assert contents(path.parent) == {"file": data}

    @pytest.mark.parametrize("operation", ["write_bytes", "replace"])
    @pytest.mark.parametrize("end", [OSError(errno.ENOSPC, "full"), Crash("a signal")])
    def test_what_fails_leaves_what_was_there_and_nothing_beside(self, tmp_path, monkeypatch, operation, end):
        path = tmp_path / "file"
        assert atomic_files.write_cached(path, b"before")
        real = getattr(Path, operation)

        def dying(self, *arguments):
            if operation == "write_bytes":
                real(self, b"ha")
            raise end

        with monkeypatch.context() as patch:
            patch.setattr(Path, operation, dying)
            if isinstance(end, OSError):
                assert not atomic_files.write_cached(path, b"half")
            else:
                with pytest.raises(Crash):
                    atomic_files.write_cached(path, b"half")
        assert contents(tmp_path) == {"file": b"before"}

    def test_another_writer_in_the_middle_changes_nothing(self, tmp_path, monkeypatch):
        path, real = tmp_path / "file", Path.write_bytes

        def overtaken(self, data):
            monkeypatch.setattr(Path, "write_bytes", real)
            real(self, data[:2])
            assert atomic_files.write_cached(path, b"another's")
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", overtaken)
        assert atomic_files.write_cached(path, b"own") and contents(tmp_path) == {"file": b"own"}


class TestStored:
    DATA = bytes(range(256)) * (5 << 12)  # more than a piece

    @pytest.fixture
    def stored(self, tmp_path):
        path = tmp_path / "there"
        path.write_bytes(self.DATA)
        return atomic_files.Stored(path, hashlib.sha256(self.DATA).hexdigest())

    def test_is_written_as_its_bytes_would_be(self, stored, tmp_path):
        assert stored.is_whole() and max(map(len, stored.chunks())) < len(self.DATA)
        for name, data in (("copy", stored), ("plain", self.DATA)):
            atomic_files.write_new(tmp_path / name, data)
        assert contents(tmp_path) == dict.fromkeys(("there", "copy", "plain"), self.DATA)
        assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o644

    @pytest.mark.parametrize("damage", ["gone", "empty", "longer", "changed", "folder"])
    def test_what_is_not_whole_is_not_written_as_if_it_were(self, stored, tmp_path, damage):
        stored.path.unlink()
        if damage == "folder":
            stored.path.mkdir()
        elif damage != "gone":
            data = {"empty": b"", "longer": self.DATA + b"1", "changed": b"1" + self.DATA[1:]}[damage]
            stored.path.write_bytes(data)
        assert not stored.is_whole()
        with (
            pytest.raises(OutputError, match=r"/there, a part of the result, is gone or damaged; run the same"),
            atomic_files.writing_to(tmp_path),
        ):
            atomic_files.write_new(tmp_path / "copy", stored)


class TestWriteFile:
    def test_replaces_and_leaves_nothing_beside(self, tmp_path):
        path = tmp_path / "file"
        for data in (b"one", b"", b"three" * 1000):
            atomic_files.write_file(path, data)
            assert contents(tmp_path) == {"file": data}
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_readable_by_everyone_whatever_the_umask(self, tmp_path):
        before = os.umask(0o077)
        try:
            atomic_files.write_file(tmp_path / "file", b"")
            atomic_files.make_folder(tmp_path / "folder")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
        assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755

    def test_a_crash_anywhere_leaves_the_old_or_the_new(self, tmp_path, monkeypatch):
        def prepare(n):
            folder = tmp_path / str(n)
            folder.mkdir()
            atomic_files.write_file(folder / "file", b"old")
            return folder

        found = [
            (folder / "file").read_bytes()
            for folder in every_crash(
                monkeypatch, prepare, lambda folder: atomic_files.write_file(folder / "file", b"new content")
            )
        ]
        assert found[0] == b"old" and found[-1] == b"new content" and set(found) == {b"old", b"new content"}

    def test_is_synced_before_it_gets_its_name(self, tmp_path, monkeypatch):
        order = []
        real_sync, real_replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), real_sync(fd))[1])
        monkeypatch.setattr(Path, "replace", lambda one, other: (order.append("name"), real_replace(one, other))[1])
        atomic_files.write_file(tmp_path / "file", b"data")
        assert order == ["sync", "name", "sync"]

    def test_an_error_leaves_no_half_file(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            atomic_files.write_file(tmp_path / "file", b"data")
        assert contents(tmp_path) == {}


@pytest.mark.parametrize("can_exchange", [True, False])
class TestPublishFolder:
    @pytest.fixture(autouse=True)
    def exchange(self, can_exchange, monkeypatch):
        if not can_exchange:
            monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)

    @staticmethod
    def build(root, text):
        atomic_files.make_folder(root / "built")
        atomic_files.write_new(root / "built" / "a", text)
        atomic_files.write_new(root / "built" / "b", text)

    def publish(self, root):
        atomic_files.publish_folder(root / "built", root / "target", root / "replaced")

    def test_fresh_and_replacing(self, tmp_path):
        for text, before in ((b"1", None), (b"2", b"1"), (b"3", b"2")):
            self.build(tmp_path, text)
            self.publish(tmp_path)
            assert contents(tmp_path / "target") == {"a": text, "b": text}
            assert not (tmp_path / "built").exists()
            if before:
                assert contents(tmp_path / "replaced") == {"a": before, "b": before}

    @pytest.mark.parametrize("had", [None, b"old"])
    def test_a_crash_anywhere_leaves_the_old_or_the_new_whole(self, tmp_path, monkeypatch, had, can_exchange):
        def prepare(n):
            root = tmp_path / str(n)
            root.mkdir()
            if had:
                self.build(root, b"ancient")
                self.publish(root)
                self.build(root, had)
                self.publish(root)
            self.build(root, b"new")
            return root

        for root in every_crash(monkeypatch, prepare, self.publish):
            if had and can_exchange:
                assert (root / "target").exists(), "a moment without a result"
            atomic_files.recover_folder(root / "target", root / "replaced")
            allowed = [{"a": text, "b": text} for text in (had, b"new") if text]
            if had or (root / "target").exists():
                assert contents(root / "target") in allowed
            self.build(root, b"new")  # the same job again
            self.publish(root)
            assert contents(root / "target") == {"a": b"new", "b": b"new"}

    def test_recovering_never_replaces_a_result(self, tmp_path):
        for name in ("target", "replaced"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "is").write_text(name)
        atomic_files.recover_folder(tmp_path / "target", tmp_path / "replaced")
        assert contents(tmp_path / "target") == {"is": b"target"}
        assert contents(tmp_path / "replaced") == {"is": b"replaced"}


def test_what_was_moved_aside_comes_back_where_the_new_cannot_be_put(tmp_path, monkeypatch):
    """Where names cannot be swapped: a disk that fails once must not leave a folder without its result."""
    for name in ("built", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    rename = Path.rename

    def failing(path, target):
        if path.name == "built":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        atomic_files.publish_folder(tmp_path / "built", tmp_path / "target", tmp_path / "replaced")
    assert (tmp_path / "target" / "is").read_text() == "target"


def test_exchange_swaps_or_says_that_it_cannot(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    swapped = atomic_files._exchange(tmp_path / "one", tmp_path / "other")
    assert contents(tmp_path / "one") == {"is": b"other" if swapped else b"one"}
    assert atomic_files._exchange(tmp_path / "one", tmp_path / "nowhere") is False


@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "quota is used up: free some space"),
        (errno.EROFS, "read-only: mount it writable"),
        (errno.EACCES, "permission denied: make it writable for the user"),
        (errno.EPERM, "permission denied: make it writable for the user"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_refusals_come_with_advice(number, advice):
    with (
        pytest.raises(OutputError, match=f"^cannot write to /somewhere: .*{advice}") as caught,
        atomic_files.writing_to(Path("/somewhere")),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == 7


def test_other_errors_pass_as_they_are():
    with pytest.raises(KeyError), atomic_files.writing_to(Path("/somewhere")):
        raise KeyError


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_everything_to_the_folders_owner(tmp_path):
    owner = tmp_path / "mounted"
    owner.mkdir()
    os.chown(owner, 12345, 23456)
    atomic_files.make_folder(owner / "folder", owner=owner)
    atomic_files.write_file(owner / "folder" / "file", b"", owner=owner)
    atomic_files.write_new(owner / "new", b"", owner=owner)
    for path in (owner / "folder", owner / "folder" / "file", owner / "new"):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_another_user_keeps_what_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", None)
    atomic_files.write_file(tmp_path / "file", b"", owner=tmp_path)


def test_a_seal_tells_every_changed_bit():
    payload = b"some progress"
    sealed = atomic_files.seal(payload)
    assert atomic_files.unseal(sealed) == payload
    assert atomic_files.unseal(atomic_files.seal(b"")) == b""
    for position in range(len(sealed)):
        for bit in (1, 128):
            changed = bytearray(sealed)
            changed[position] ^= bit
            assert atomic_files.unseal(bytes(changed)) is None
    for broken in (b"", sealed[:-1], sealed[:31], sealed + b"\0"):
        assert atomic_files.unseal(broken) is None


class TestStrangersLinks:
    """Whoever may write to a folder may have put links there, to files of whoever writes now."""

    @pytest.fixture
    def theirs(self, tmp_path):
        """A file and a folder elsewhere, which nothing may change."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "file").write_text("theirs")
        (elsewhere / "file").chmod(0o600)
        yield elsewhere
        assert contents(elsewhere) == {"file": b"theirs"}
        assert stat.S_IMODE((elsewhere / "file").stat().st_mode) == 0o600
        assert (elsewhere / "file").stat().st_uid == os.geteuid()

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 12345, 23456)
        return folder

    @staticmethod
    def put(kind, path, theirs):
        if kind == "link":
            path.symlink_to(theirs / "file")
        elif kind == "link to nowhere":
            path.symlink_to(theirs / "nowhere")
        elif kind == "link to a folder":
            path.symlink_to(theirs)
        elif kind == "second name":
            path.hardlink_to(theirs / "file")
        elif kind == "pipe":
            os.mkfifo(path)

    KINDS = ("link", "link to nowhere", "link to a folder", "second name", "pipe")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["file", ".file.tmp"])
    def test_writing_replaces_them(self, theirs, folder, kind, name):
        self.put(kind, folder / name, theirs)
        atomic_files.write_file(folder / "file", b"ours", owner=folder)
        assert contents(folder) == {"file": b"ours"} and not (folder / "file").is_symlink()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_new_file_is_new(self, theirs, folder, kind):
        self.put(kind, folder / "file", theirs)
        with pytest.raises(FileExistsError):
            atomic_files.write_new(folder / "file", b"ours", owner=folder)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_created_file_leaves_them(self, theirs, folder, kind):
        self.put(kind, folder / "file", theirs)
        before = (folder / "file").lstat()
        assert atomic_files.create_file(folder / "file", b"ours") is False
        assert os.path.samestat((folder / "file").lstat(), before) and len(list(folder.iterdir())) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_log_replaces_them(self, theirs, folder, kind):
        self.put(kind, folder / "log", theirs)
        for line in ("one\n", "two\n"):
            with os.fdopen(atomic_files.open_log(folder / "log", owner=folder), "a") as file:
                file.write(line)
        assert contents(folder) == {"log": b"one\ntwo\n"} and not (folder / "log").is_symlink()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_new_folder_replaces_them(self, theirs, folder, kind):
        self.put(kind, folder / "inner", theirs)
        atomic_files.make_folder(folder / "inner", owner=folder)
        atomic_files.write_new(folder / "inner" / "file", b"ours", owner=folder)
        assert not (folder / "inner").is_symlink()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_log_that_is_swapped_for_one_just_then(self, theirs, folder, kind, monkeypatch):
        real = os.path.lexists

        def swapped(path):
            found = real(path)
            self.put(kind, Path(path), theirs)
            return found

        monkeypatch.setattr(os.path, "lexists", swapped)
        with pytest.raises(OSError):
            atomic_files.open_log(folder / "log", owner=folder)


class TestObstacles:
    def test_are_named_with_what_to_do(self, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "to_file").symlink_to("file")
        (tmp_path / "folder").mkdir()
        (tmp_path / "to_folder").symlink_to("folder")
        for path in ("folder", "to_folder", "to_folder/new", "new/er"):
            assert atomic_files.obstacle(tmp_path / path) is None
        for below in ("", "/a", "/a/b"):
            assert atomic_files.obstacle(tmp_path / f"file{below}") == f"{tmp_path}/file is a file, not a folder"
            found = atomic_files.obstacle(tmp_path / f"dangling{below}")
            assert found == f"{tmp_path}/dangling is a link to nowhere, which is not there"
            assert atomic_files.obstacle(tmp_path / f"to_file{below}").endswith(
                "to_file is a link to file, which is a file"
            )

    @pytest.mark.parametrize(
        "action, words",
        [
            (lambda root: (root / "dangling").mkdir(), "dangling is a link to nowhere, which is not there; remove it"),
            (lambda root: (root / "file" / "a").mkdir(), "file is a file, not a folder; remove it, or choose another"),
            (lambda root: (root / "file").mkdir(), "file is a file, not a folder; remove it"),
            (
                lambda root: atomic_files.write_file(root / "dangling" / "x", b""),
                "dangling is a link to nowhere, which is not",
            ),
            (lambda root: (root / "file").replace(root / "folder"), "folder is a folder, not a file; remove it"),
            (lambda root: atomic_files.open_log(root / "folder"), "folder is a folder, not a file; remove it"),
        ],
    )
    def test_in_messages(self, tmp_path, action, words):
        (tmp_path / "file").write_text("")
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "folder").mkdir()
        expected = f"^cannot write to {tmp_path}: {tmp_path}/{words}"
        with pytest.raises(OutputError, match=expected), atomic_files.writing_to(tmp_path):
            action(tmp_path)
