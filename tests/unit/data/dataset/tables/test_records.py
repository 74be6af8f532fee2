"""CSV as spreadsheets save it, JSON in every encoding, and messages that hide nothing."""

import json

import pytest

from engine.core.errors import DatasetError
from tests.support.datasets import PICTURES, opened

WANTED = [("a cat, sitting",), ("ein Bär",)]

READ = {
    "commas": 'file_name,text\n0.png,"a cat, sitting"\n1.png,ein Bär\n',
    "semicolons": "file_name;text\n0.png;a cat, sitting\n1.png;ein Bär\n",
    "tabs": "file_name\ttext\n0.png\ta cat, sitting\n1.png\tein Bär\n",
    "bars": "file_name|text\n0.png|a cat, sitting\n1.png|ein Bär\n",
    "Excel's first line": "sep=;\r\nfile_name;text\r\n0.png;a cat, sitting\r\n1.png;ein Bär\r\n",
    "blanks after commas": 'file_name, text\n0.png, "a cat, sitting"\n1.png, ein Bär\n',
    "blanks on both sides": "id ; file_name ; text \n1 ; 0.png ; a cat, sitting \n2 ; 1.png ; ein Bär\n",
    "a byte order mark": '\ufefffile_name,text\n0.png,"a cat, sitting"\n1.png,ein Bär\n',
    "quotes everywhere": '"file_name";"text"\n"0.png";"a cat, sitting"\n"1.png";"ein Bär"\n',
    "empty columns": 'file_name,text,,\n0.png,"a cat, sitting",,\n1.png,ein Bär,,\n',
    "an index": ',file_name,text\n0,0.png,"a cat, sitting"\n1,1.png,ein Bär\n',
    "carriage returns": 'file_name,text\r0.png,"a cat, sitting"\r1.png,ein Bär\r',
}


def folder_with(tmp_path, data, name="metadata.csv"):
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.png").write_bytes(PICTURES[index])
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def captions(dataset):
    return [dataset.captions(row) for row in range(len(dataset))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("case", READ)
def test_spreadsheets(case, encoding, tmp_path):
    text = READ[case].removeprefix("\ufeff") if encoding == "utf-16" else READ[case]
    text = f"\ufeff{text}" if encoding == "utf-16-le" and not text.startswith("\ufeff") else text
    dataset = opened(tmp_path, name=folder_with(tmp_path, text.encode(encoding)))
    assert captions(dataset) == WANTED
    assert [dataset.image_bytes(row) for row in range(2)] == PICTURES[:2]


def test_a_tsv_with_commas_in_its_header(tmp_path):
    folder = folder_with(tmp_path, 'image,text\n0.png,"a cat, sitting"\n1.png,ein Bär\n', "rows.tsv")
    assert captions(opened(tmp_path, name=folder)) == WANTED


def test_blanks_in_captions_stay_where_the_header_has_none(tmp_path):
    folder = folder_with(tmp_path, "file_name,text, note\n0.png, a cat ,x\n1.png,b,y\n")
    assert captions(opened(tmp_path, name=folder)) == [(" a cat ",), ("b",)]


def test_a_column_asked_for_is_found_behind_blanks(tmp_path):
    folder = folder_with(tmp_path, "file_name; caption \n0.png; a cat\n1.png;b\n")
    assert captions(opened(tmp_path, name=folder, caption_column="caption")) == [("a cat",), ("b",)]


REFUSED = {
    "Latin-1": (
        "file_name,text\n0.png,Bär\n".encode("latin-1"),
        "not UTF-8 text (it has a byte 0xe4); save it as CSV in",
    ),
    "UTF-16 without a mark": ("file_name,text\n0.png,a\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
    "other names": ("File Name;Caption\n0.png;a\n", "has no column 'image'"),
    "a field too many": ("file_name;text\n0.png;a;b\n", "a caption with a semicolon in it needs"),
    "two of one name": ("file_name,text,text\n0.png,a,b\n", "two columns of the same name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_the_true_reason(case, tmp_path):
    data, message = REFUSED[case]
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, name=folder_with(tmp_path, data))
    assert message in str(caught.value)


def test_a_blank_in_a_name_is_seen(tmp_path):
    folder = folder_with(tmp_path, json.dumps({"file_name": "0.png", " text": "a"}), "metadata.jsonl")
    with pytest.raises(DatasetError, match=r"no column 'text'.*its columns: file_name \(images\), ' text' \(text\)"):
        opened(tmp_path, name=folder)


def test_a_message_names_a_handful_of_columns(tmp_path):
    rows = {f"/home/me/{number}.png": 1 for number in range(2000)}
    folder = folder_with(tmp_path, json.dumps([rows]), "rows.json")
    with pytest.raises(DatasetError, match=r"5\.png \(numbers\) and 1,994 more$") as caught:
        opened(tmp_path, name=folder)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["lines", "list"])
def test_json_in_the_encodings_of_windows(form, encoding, tmp_path):
    rows = [{"file_name": f"{index}.png", "text": caption} for index, (caption,) in enumerate(WANTED)]
    text = json.dumps(rows) if form == "list" else "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert captions(opened(tmp_path, name=folder_with(tmp_path, text.encode(encoding), "metadata.jsonl"))) == WANTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2\n', "line 2 of metadata.jsonl is not JSON"),
        ('{"a": 1,}\n{"a": 2}\n', "line 1 of metadata.jsonl is not JSON"),
        ('{\n "a": 1,\n "b" 2\n}', "line 3"),
        ('{"a": 1}\n[1]\n', "line 2 of metadata.jsonl is [1]; expected an object"),
        ("[1]", "row 0 of metadata.jsonl is 1; expected an object"),
    ],
)
def test_broken_json_says_where(text, message, tmp_path):
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, name=folder_with(tmp_path, text, "metadata.jsonl"))
    assert message in str(caught.value)
