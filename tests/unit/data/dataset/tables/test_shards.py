"""Datasets of shards on servers: equal to a folder of the same tars, whatever the cache holds and the server can do."""

import json
import shutil

import pytest

from engine.core.errors import DatasetError, TemporaryError
from engine.core.limits import Limits
from engine.data.dataset import open as opening
from engine.data.dataset.open import open_dataset
from engine.data.dataset.sizes import read_extents
from engine.data.dataset.tables import shards as reading_shards
from engine.data.media.geometry import UnreadableImage
from engine.data.media.image import IMAGE
from engine.task.task import Dataset
from tests.support.archives import tar_of
from tests.support.shard_server import HASTY, serving_shards
from tests.support.shards import picture, shard, shards, written

FILES = shards(5)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(reading_shards.read_shards, "__kwdefaults__", {"policy": HASTY})


@pytest.fixture
def server():
    with serving_shards(FILES) as running:
        running.files["list.txt"] = "\n".join(FILES).encode()
        yield running


@pytest.fixture
def opened(tmp_path):
    def opened(url=None, *, cache="cache", report=lambda line: None, max_cache=None, max_dataset=1 << 30, **keys):
        limits = Limits(allow_private_urls=True, max_cache_bytes=max_cache, max_dataset_bytes=max_dataset)
        wanted = Dataset(url=url, **keys)
        return open_dataset(wanted, IMAGE, cache_dir=tmp_path / cache, revision=None, report=report, limits=limits)

    return opened


def content(dataset):
    return [
        (dataset.name(i), dataset.image_bytes(i), dataset.mask_bytes(i), dataset.captions(i))
        for i in range(len(dataset))
    ]


def same(one, other):
    assert one.fingerprint == other.fingerprint
    assert one.caption_rules == other.caption_rules
    assert content(one) == content(other)


@pytest.fixture
def folder(tmp_path, opened):
    return opened(name=str(written(tmp_path / "folder", FILES)))


@pytest.mark.parametrize("form", ["list", "braces", "json", "braces in a list"])
def test_equals_a_folder_of_the_same_tars(server, opened, folder, form):
    server.files["list.json"] = json.dumps(list(FILES)).encode()
    server.files["b.txt"] = b"# my shards\nt-{000..003}.tar\nt-004.tar"
    names = {"list": "list.txt", "braces": "t-{000..004}.tar", "json": "list.json", "braces in a list": "b.txt"}
    said = []
    same(opened(server.url(names[form]), report=said.append), folder)
    assert said[-1].startswith("dataset: 5 shards of 0.1 MB together, 5 of them in the cache")
    assert sorted(path for path in server.whole() if "t-" in path) == [f"/{name}" for name in FILES]


def test_repeats_and_picked_rows_equal_those_of_a_folder(server, opened, tmp_path):
    local = opened(name=str(written(tmp_path / "folder", FILES)), repeats=2)
    remote = opened(server.url("list.txt"), repeats=2)
    same(remote, local)
    same(remote.picked([1, 5, 6, 19]), local.picked([1, 5, 6, 19]))
    assert remote.picked([5, 6]).known_size(0) == (16, 14)


def test_masks_equal_those_of_a_folder(opened, tmp_path):
    files = shards(2, masks=True)
    with serving_shards(files) as server:
        remote = opened(server.url("t-{000..001}.tar"), mask_column="mask.png", image_column="png", max_cache=0)
        local = opened(name=str(written(tmp_path / "folder", files)), mask_column="mask.png", image_column="png")
        same(remote, local)
        digests = [remote.known_digest(index, of_mask=True) for index in range(8)]
    assert [digest is None for digest in digests] == [True, False] * 4


def test_a_later_job_asks_the_server_nothing(server, opened, folder):
    opened(server.url("list.txt"))
    server.requests.clear()
    same(opened(server.url("list.txt")), folder)
    assert not server.requests


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etags", [True, False])
def test_images_whose_shards_are_not_kept_are_fetched_again(server, opened, folder, ranges, etags):
    server.ranges, server.etags = ranges, etags
    said = []
    remote = opened(server.url("list.txt"), max_cache=0, report=said.append)
    server.requests.clear()
    remote.read_ahead(range(len(remote)))
    same(remote, folder)
    assert any("does not send parts" in line for line in said) == (not ranges)
    wanted = ([], 20) if ranges else ([f"/{name}" for name in FILES], 0)
    assert (sorted(server.whole()), len(server.parts())) == wanted


def test_a_shard_that_is_evicted_in_the_middle(server, opened, folder, tmp_path):
    remote = opened(server.url("list.txt"))
    for path in sorted((tmp_path / "cache" / "datasets" / "shards").glob("*.tar"))[:3]:
        remote.image_bytes(0)
        path.unlink()
    same(remote, folder)


def test_the_cache_s_bound_decides_how_many_shards_stay(server, opened, folder, tmp_path):
    size = max(map(len, FILES.values()))
    said = []
    bound = 4 * size + size // 2
    remote = opened(server.url("list.txt"), max_cache=bound, report=said.append)
    same(remote, folder)
    kept = list((tmp_path / "cache" / "datasets" / "shards").glob("*.tar"))
    assert 2 <= len(kept) < 5
    assert sum(path.stat().st_size for path in kept) <= bound
    assert f"{len(kept)} of them in the cache" in said[-1]


def test_a_job_that_died_goes_on_where_it_was(server, opened, folder):
    def answer(handler):
        if handler.path != "/t-003.tar":
            return False
        server.send(handler, 404, b"")
        return True

    server.answer = answer
    with pytest.raises(DatasetError, match=r"shard 4 of 5, http.*t-003\.tar.*404"):
        opened(server.url("list.txt"), max_cache=0)
    server.answer = lambda handler: False
    server.requests.clear()
    same(opened(server.url("list.txt"), max_cache=0), folder)
    assert server.whole() == ["/t-003.tar", "/t-004.tar"]


def test_sizes_are_known_without_the_images(server, opened, folder, tmp_path):
    remote = opened(server.url("list.txt"), max_cache=0)
    server.requests.clear()
    assert read_extents(remote, IMAGE, tmp_path / "one") == read_extents(folder, IMAGE, tmp_path / "other")
    assert not server.requests


def test_an_unreadable_image_is_the_same_one(opened, tmp_path):
    files = {"a.tar": shard(0, 3), "b.tar": shard(3, 2).replace(b"\x89PNG", b"none", 1)}
    with serving_shards(files) as server:
        server.files["list.txt"] = b"a.tar\nb.tar"
        remote = opened(server.url("list.txt"))
        local = opened(name=str(written(tmp_path / "folder", files)))
        same(remote, local)
        assert read_extents(remote, IMAGE, tmp_path / "one") == read_extents(local, IMAGE, tmp_path / "other")
        assert [remote.known_size(index) is None for index in range(5)] == [False, False, False, True, False]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etags", [True, False])
def test_another_content_ends_the_job(server, opened, ranges, etags):
    remote = opened(server.url("list.txt") + "?token=secret", max_cache=0)
    server.ranges, server.etags = ranges, etags
    server.files["t-002.tar"] = FILES["t-003.tar"]
    assert remote.image_bytes(0)
    with pytest.raises(DatasetError, match=r"t-002\.tar/.* has changed on its server .*remove .*\.\*") as caught:
        remote.image_bytes(9)
    assert "secret" not in str(caught.value)


def test_a_part_with_other_bytes_ends_the_job(server, opened):
    remote = opened(server.url("list.txt"), max_cache=0)

    def answer(handler):
        start, end = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        size = len(FILES["t-000.tar"])
        fields = {"Content-Range": f"bytes {start}-{end}/{size}"}
        server.send(handler, 206, bytes(end + 1 - start), **fields)
        return True

    server.answer = answer
    with pytest.raises(DatasetError, match="has changed on its server"):
        remote.image_bytes(0)


def test_a_link_that_expires(server, opened):
    remote = opened(server.url("t-{000..004}.tar?signed=secret"), max_cache=0)

    def answer(handler):
        server.send(handler, 403, b"")
        return True

    server.answer = answer
    with pytest.raises(DatasetError, match="links that last longer") as caught:
        remote.image_bytes(0)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_the_old_content_put_back_goes_on(server, opened, tmp_path, ranges):
    """A shard that was fetched once more, as another version, does not stay in the cache."""
    url = server.url("list.txt")
    opened(url)
    for path in (tmp_path / "cache" / "datasets" / "shards").glob("*.tar"):
        path.unlink()
    server.ranges = ranges
    server.files["t-002.tar"] = FILES["t-003.tar"]
    with pytest.raises(DatasetError, match="has changed on its server"):
        opened(url).image_bytes(9)
    server.files["t-002.tar"] = FILES["t-002.tar"]
    assert opened(url).image_bytes(9)


def test_facts_that_are_removed_beside_their_shard_take_the_new_content(server, opened, tmp_path):
    url = server.url("list.txt")
    before = opened(url)
    server.files["t-002.tar"] = shard(100, 4)
    for path in (tmp_path / "cache" / "datasets" / "shards").glob("*.json"):
        path.unlink()
    after = opened(url, max_cache=0)
    assert after.fingerprint != before.fingerprint
    assert after.image_bytes(8) == picture(100)


def test_an_index_of_another_version_is_read_in_parts_too(server, opened, tmp_path):
    """Other keys need another index: of the file that the server has now, of which parts are then asked for."""
    opened(server.url("list.txt"), max_cache=0)
    server.files["t-001.tar"] = shards(7)["t-006.tar"]
    remote = opened(server.url("list.txt"), max_cache=0, default_caption="nothing")
    server.requests.clear()
    remote.read_ahead(range(len(remote)))
    files = {name: server.files[name] for name in FILES}
    same(remote, opened(name=str(written(tmp_path / "folder", files)), default_caption="nothing"))
    assert not server.whole()


def test_an_empty_image_costs_no_request(opened):
    members = {"0.png": picture(0), "0.txt": b"x", "1.png": b"", "1.txt": b"y"}
    with serving_shards({"a.tar": tar_of(members)}) as server:
        server.files["list.txt"] = b"a.tar"
        remote = opened(server.url("list.txt"), max_cache=0)
        server.requests.clear()
        with pytest.raises(UnreadableImage, match="empty"):
            remote.image_bytes(1)
    assert not server.requests


def test_why_a_server_cannot_be_reached(server, opened):
    remote = opened(server.url("list.txt"), max_cache=0)
    server.close()
    with pytest.raises(TemporaryError, match="refused"):
        remote.image_bytes(0)


def test_removing_the_facts_takes_the_new_content(server, opened, tmp_path):
    url = server.url("list.txt")
    before = opened(url, max_cache=0)
    server.files["t-002.tar"] = shard(100, 4)
    assert opened(url, max_cache=0).fingerprint == before.fingerprint
    shutil.rmtree(tmp_path / "cache" / "datasets" / "shards")
    after = opened(url, max_cache=0)
    assert after.fingerprint != before.fingerprint
    assert after.captions(8) == ("picture 100",)


NOT_A_TAR = "a shard is a plain, uncompressed tar"
BAD = {
    "gzip": (b"\x1f\x8b123", NOT_A_TAR),
    "zip": (b"PK\x03\x04123", NOT_A_TAR),
    "parquet": (b"PAR1123", NOT_A_TAR),
    "page": (b"<html>", NOT_A_TAR),
    "nothing": (b"", NOT_A_TAR),
    "cut off": (FILES["t-001.tar"][:1500], "t-001.tar"),
    "no images": (shard(0, 0), "t-001.tar"),
    "other columns": (shard(4, 2).replace(b".txt", b".cls"), "t-001.tar"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_shard_that_is_not_usable_is_named_and_fetched_anew(server, opened, folder, case):
    server.files["t-001.tar"], message = BAD[case]
    with pytest.raises(DatasetError, match=rf"shard 2 of 5, http.*t-001\.tar: .*{message}"):
        opened(server.url("list.txt"))
    server.files["t-001.tar"] = FILES["t-001.tar"]
    same(opened(server.url("list.txt")), folder)


def test_too_large_together(server, opened):
    size = len(FILES["t-000.tar"])
    with pytest.raises(DatasetError, match=r"shard 3 of 5.*MAX_DATASET_BYTES"):
        opened(server.url("list.txt"), max_dataset=2 * size + size // 2)
    opened(server.url("list.txt"))
    with pytest.raises(DatasetError, match=r"first 3 shards of 5.*MAX_DATASET_BYTES"):
        opened(server.url("list.txt"), max_dataset=2 * size + size // 2)


def test_a_server_that_fails(server, opened):
    def answer(handler):
        if "t-002" in handler.path:
            server.send(handler, 500, b"")
        return "t-002" in handler.path

    server.answer = answer
    with pytest.raises(TemporaryError, match=r"t-002\.tar"):
        opened(server.url("list.txt"))


def test_splits_and_configurations_are_refused(server, opened):
    with pytest.raises(DatasetError, match=r"dataset\.config_name"):
        opened(server.url("list.txt"), config_name="x")


def test_relative_references_are_resolved_after_redirects(server, opened, folder):
    server.files |= {f"far/{name}": data for name, data in FILES.items()}
    server.files["far/list.txt"] = server.files["list.txt"]

    def answer(handler):
        if handler.path.startswith("/short"):
            server.send(handler, 302, b"", Location="/far/list.txt?token=secret")
        return handler.path.startswith("/short")

    server.answer = answer
    same(opened(server.url("short")), folder)
    assert "/far/t-004.tar" in server.whole()


def test_a_redirect_of_a_shard_to_a_private_address_is_refused(server, tmp_path):
    urls = [server.url("t-000.tar")]
    source = opening.Source(
        columns=opening.Columns("image", "text", IMAGE), reach=opening.Reach(), cache_dir=tmp_path, max_bytes=1 << 30
    )
    with pytest.raises(DatasetError, match=r"shard 1 of 1.*private or local address"):
        reading_shards.read_shards(urls, source, limits=Limits(), report=lambda line: None)
