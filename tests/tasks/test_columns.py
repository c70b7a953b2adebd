"""Files of columns: separators, and CoNLL-U as universaldependencies.org/format.html describes it."""

from __future__ import annotations

import pathlib

import pytest

from lm_research.config import resolve
from lm_research.errors import DataError
from lm_research.tasks.records import read_records

# The form of that page's examples: a comment, a multi-word token, an empty node, a word with a space (section Words, Tokens and Empty Nodes).
CONLL_U = """\
# sent_id = 1
# text = vámonos al 10 000
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\tNumber=Plur\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tfue\tir\tVERB\tV\t_\t_\t_\t1:conj\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
3\ta\ta\tADP\tS\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_
5\t10 000\t10 000\tNUM\tZ\t_\t1\tobl\t_\t_

# sent_id = 2
1\t#\t#\tSYM\tF\t_\t0\troot\t_\t_

"""
WORDS = [["vamos", "nos", "a", "el", "10 000"], ["#"]]
PLUS = "# global.columns = ID FORM UPOS PARSEME:MWE\n# text = a b\n1\ta\tDET\t*\n2-3\tx\t_\t_\n2\tb\tNOUN\t1:VID\n"


def read(path: pathlib.Path, content: str, **task: str) -> list[tuple[list[str], list[str]]]:
    path.write_bytes(content.encode())
    config = resolve({"task": {"name": "tagging", "train": str(path), **task}})
    return [(record.fields["tokens"], record.fields["tags"]) for record in read_records(str(path), config)]


@pytest.mark.parametrize(
    ("column", "tags"),
    [
        ("", [["VERB", "PRON", "ADP", "DET", "NUM"], ["SYM"]]),
        ("upos", [["VERB", "PRON", "ADP", "DET", "NUM"], ["SYM"]]),
        ("XPOS", [["V", "P", "S", "D", "Z"], ["F"]]),
        ("5", [["V", "P", "S", "D", "Z"], ["F"]]),
        ("DEPREL", [["root", "obj", "case", "det", "obl"], ["root"]]),
        ("-3", [["root", "obj", "case", "det", "obl"], ["root"]]),
    ],
)
def test_conll_u(column: str, tags: list[list[str]], tmp_path: pathlib.Path) -> None:
    for end in ("\n", "\r\n"):
        assert read(tmp_path / "a.conllu", CONLL_U.replace("\n", end), column=column) == list(
            zip(WORDS, tags, strict=True)
        )


def test_conll_u_plus(tmp_path: pathlib.Path) -> None:
    assert read(tmp_path / "a.cupt", PLUS) == [(["a", "b"], ["DET", "NOUN"])]
    assert read(tmp_path / "a.cupt", PLUS, column="PARSEME:MWE") == [(["a", "b"], ["*", "1:VID"])]


FORMS = {
    "tabs, whatever else a word holds": (
        "New York\tB-LOC\n10\u00a0000\tO\na\u3000b\tO\n\u2028\tO\n\u00a0\tO\n\n\n\u3000x\tI-X\n",
        [
            (["New York", "10\u00a0000", "a\u3000b", "\u2028", "\u00a0"], ["B-LOC", "O", "O", "O", "O"]),
            (["\u3000x"], ["I-X"]),
        ],
    ),
    "spaces of ASCII": (
        "10\u00a0000  CD  O\na\u3000b NN B-X\n \nc\x0bd NN O\n",
        [(["10\u00a0000", "a\u3000b"], ["O", "B-X"]), (["c\x0bd"], ["O"])],
    ),
    "a hash is a word": ("# NN O\n#1 CD B-X\n\n# NN O", [(["#", "#1"], ["O", "B-X"]), (["#"], ["O"])]),
    "with tabs too": ("#\tO\n\n#\tO\n", [(["#"], ["O"]), (["#"], ["O"])]),
    "documents, columns that are lined up": ("-DOCSTART- -X- O O\n\nEU  \tNNP\t O \n", [(["EU"], ["O"])]),
    "ten columns, no numbers": ("\t".join("abcdefghiO") + "\n", [(["a"], ["O"])]),
    "numbers as words": ("1\tCD\tO\n2\tCD\tO\n", [(["1", "2"], ["O", "O"])]),
}


@pytest.mark.parametrize("case", FORMS)
def test_separators(case: str, tmp_path: pathlib.Path) -> None:
    content, expected = FORMS[case]
    assert read(tmp_path / "a.txt", content) == expected
    if "\t" in content:
        assert read(tmp_path / "a.tsv", content) == expected  # a table has no lists of words


def test_a_column_by_its_number(tmp_path: pathlib.Path) -> None:
    content = "EU NNP B-NP B-ORG\n\nx NN I-NP O\n"
    assert [tags for _, tags in read(tmp_path / "a", content, column="2")] == [["NNP"], ["NN"]]
    assert [tags for _, tags in read(tmp_path / "a", content, column="-2")] == [["B-NP"], ["I-NP"]]


WRONG = {
    "no tab on a line": ("a\tO\nb O\n", "", r"line 2 has one column, 'b O', divided by tabs"),
    "no tag": ("a\tNN\tO\nb\tNN\t\n", "", "line 2 has no tag"),
    "no word": ("a\tO\n\tO\n", "", "line 2 has no word"),
    "a name without names": ("a NN O\n", "UPOS", "columns have no names, and config.task.column is 'UPOS'"),
    "a name that is not there": (CONLL_U, "UPSO", "no column 'UPSO'.*Did you mean 'UPOS'"),
    "a number that is not there": ("a NN O\nb O\n", "3", "line 2 has 2 columns.*config.task.column"),
    "the word": ("a NN O\n", "1", "number 1 is the word"),
    "zero": ("a NN O\n", "0", "Give the column's number, from 1"),
    "nine columns": (CONLL_U + "1\ta\ta\tX\t_\t_\t0\troot\t_\n", "", r"line 15 has 9 columns"),
    "no number": (CONLL_U + "x" + "\t_" * 9, "", r"line 15 has 10 columns, divided by tabs, the first 'x'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_lines_and_columns_that_are_wrong(case: str, tmp_path: pathlib.Path) -> None:
    content, column, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.txt", content, column=column)
