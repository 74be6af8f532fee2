"""A tagger's list of tags, and how they are written."""

import pytest

from engine.commands.caption.tags import Tag, read_tags, spelled


def test_underscores_are_blanks_but_in_emoticons():
    assert [spelled(name) for name in ("long_hair", "miku_(vocaloid)", "^_^", "o_o", "||_||", "a__b")] == [
        "long hair",
        "miku (vocaloid)",
        "^_^",
        "o_o",
        "||_||",
        "a b",
    ]


def test_general_tags_and_characters_are_written(tmp_path):
    path = tmp_path / "selected_tags.csv"
    path.write_text('\ufefftag_id,name,category,count\n1,general,9,5\n2,long_hair,0,4\n3,"a,_b",4,3\n4,artist,1,3\n')
    assert read_tags(path) == [
        Tag("general", False),
        Tag("long hair", True),
        Tag("a, b", True),
        Tag("artist", False),
    ]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "no columns name and category"),
        (b"\x80\x04cos\nsystem\n.", "utf-8"),
        (b"tag_id,count\n1,2\n", "no columns"),
        (b"name,category\nonly_a_name\n", "category None"),
        (b"name,category\n,0\n", "name ''"),
        (b"name,category\nbad\x1b[31m,0\n", "name 'bad"),
        (b'name,category\n"' + b"a" * 200_000 + b'",0\n', "after line 1: field larger"),
        (b"name,category\n" + b"a,0\n" * (5 << 20), "more than 16 MiB"),
    ],
)
def test_other_tables_are_refused(tmp_path, data, message):
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_tags(path)
