"""Compressed streams: one after the other, damaged, endless."""

import bz2
import gzip
import lzma
import tarfile

import pytest

from tests.support.archives import FILES, pages, refusal, tar_of


def test_streams_one_after_the_other(tmp_path):
    tar = tar_of(FILES)
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        folder = tmp_path / compress.__module__
        folder.mkdir()
        assert pages(folder, compress(tar[:700]) + compress(tar[700:])) == FILES


def test_zeros_between_streams_are_padding(tmp_path):
    assert pages(tmp_path, lzma.compress(tar_of(FILES)) + bytes(100_000) + lzma.compress(b"")) == FILES


def test_an_endless_chain_of_headers(tmp_path):
    info = tarfile.TarInfo("h")
    info.type, info.size = tarfile.XHDTYPE, 12
    link = info.tobuf(tarfile.USTAR_FORMAT) + b"12 path=abc\n".ljust(512, b"\x00")
    message = refusal(tmp_path, gzip.compress(link * 5000))
    assert "headers" in message or "damaged" in message


def test_xz_dictionaries_are_bounded(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    data = bytearray(lzma.compress(tar_of(FILES), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 12}]))
    huge = lzma.LZMACompressor(filters=filters)
    del data
    try:
        packed = huge.compress(tar_of(FILES)) + huge.flush()
    except MemoryError:
        pytest.skip("no memory to build it")
    assert "damaged" in refusal(tmp_path, packed)
