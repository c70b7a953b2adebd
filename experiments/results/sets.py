"""`python -m experiments.results.sets NAME FOLDER`: write the parts of a public set as files that lm_research.train reads.

Texts and labels are those of the sources; only the container changes, to one object a line. SETS has the names.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import json
import lzma
import pathlib
import random
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from experiments.results.row import data_folder, public
from lm_research import cli
from lm_research.common import flags
from lm_research.errors import DONE, ConfigError, suggest

Records = list[dict[str, Any]]
PIECES = "pair/babylm_finetune/en"


def write(folder: pathlib.Path, **parts: Iterable[dict[str, Any]]) -> None:
    """Write each part to `folder`/PART.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, records in parts.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def lines(name: str) -> list[str]:
    """Read the lines of a gzip-compressed file of the public data, of which a few have bytes that are not UTF-8."""
    return gzip.decompress(public(name).read_bytes()).decode("utf-8-sig", "replace").splitlines()


def table(name: str, columns: str = "") -> Iterator[dict[str, str]]:
    """Yield the rows of a table with tabs and without quotation; without `columns` its first line names them."""
    rows = csv.reader(lines(name), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = columns.split() or next(rows)
    for row in rows:
        yield dict(zip(names, row, strict=False))


def first_words(name: str) -> Records:
    """Read lines that begin with their class."""
    found = (line.split(maxsplit=1) for line in lines(f"classify/sentconv/{name}.gz") if line.strip())
    return [{"label": label, "text": text.strip()} for label, text in found]


def two_parts(folder: pathlib.Path, part: Callable[[str], Records], train: Sequence[str], test: Sequence[str]) -> None:
    """Write a set of two parts, each of which is one or more of the source's."""
    write(
        folder,
        **{name: [one for key in keys for one in part(key)] for name, keys in (("train", train), ("test", test))},
    )


def divide(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Divide records at random: the given fraction, and the rest."""
    shuffled = random.Random(seed).sample(records, len(records))
    cut = round(fraction * len(records))
    return shuffled[:cut], shuffled[cut:]


def trec(folder: pathlib.Path) -> None:
    """Write TREC's six kinds of questions; a tenth of the training part is held out, as in sent-conv-torch."""
    held, train = divide(first_words("TREC.train.all"), 0.1, 0)
    write(folder, train=train, validation=held, test=first_words("TREC.test.all"))


def stanford(folder: pathlib.Path, kind: str) -> None:
    """Write the sentences of Stanford's sentiment treebank; `kind` is binary or fine."""
    names = {"train": "train", "validation": "dev", "test": "test"}
    write(folder, **{part: first_words(f"stsa.{kind}.{name}") for part, name in names.items()})


def glue_sentences(name: str) -> Records:
    """Read one of the source's parts of GLUE's SST-2."""
    rows = table(f"glue/SST-2/{name}.tsv.gz")
    return [{"label": row["label"], "text": row["sentence"].strip()} for row in rows]


def stanford_phrases(folder: pathlib.Path) -> None:
    """Write SST-2 with the phrases of its training sentences (GLUE's training part), and the test sentences of the treebank."""
    train = glue_sentences("train") + glue_sentences("dev")
    held, test = first_words("stsa.binary.dev"), first_words("stsa.binary.test")
    write(folder, train=train, validation=held, test=test)


def reviews(folder: pathlib.Path, fold: int) -> None:
    """Write one of ten folds of MR: a tenth to test, a tenth of the rest held out."""
    records = first_words("rt-polarity.all")
    shuffled = random.Random(0).sample(records, len(records))
    test = shuffled[fold::10]
    held, train = divide([record for at, record in enumerate(shuffled) if at % 10 != fold], 0.1, fold)
    write(folder, train=train, validation=held, test=test)


def cola(folder: pathlib.Path) -> None:
    """Write CoLA; `test` is GLUE's development part, the in-domain and the out-of-domain one together."""

    def part(name: str) -> Records:
        rows = table(f"glue/CoLA/raw/{name}.tsv.gz", "source label mark text")
        return [{"label": row["label"], "text": row["text"]} for row in rows]

    two_parts(folder, part, ["in_domain_train"], ["in_domain_dev", "out_of_domain_dev"])


def mrpc(folder: pathlib.Path) -> None:
    """Write MRPC: all 4,076 training pairs (GLUE holds out 408 of them), and the 1,725 of the test part."""

    def part(name: str) -> Records:
        rows = table(f"glue/MRPC/msr_paraphrase_{name}.txt.gz")
        return [{"label": row["Quality"], "text": row["#1 String"], "pair": row["#2 String"]} for row in rows]

    two_parts(folder, part, ["train"], ["test"])


def inference(folder: pathlib.Path, name: str) -> None:
    """Write RTE or WNLI: the source divides the training part into train and val; `test` is the development part."""

    def part(file: str) -> Records:
        rows = table(f"glue/{name}/{file}.tsv.gz", "index text pair label")
        return [{key: row[key] for key in ("label", "text", "pair")} for row in rows if row["index"] != "index"]

    two_parts(folder, part, ["train", "val"], ["dev"])


def stsb(folder: pathlib.Path) -> None:
    """Write STS-B with scores from 0 to 5."""

    def part(name: str) -> Records:
        rows = table(f"glue/STS-B/original/sts-{name}.tsv.gz", "genre file year id score text pair")
        return [{"label": float(row["score"]), "text": row["text"], "pair": row["pair"]} for row in rows]

    two_parts(folder, part, ["train"], ["test"])


def intents(folder: pathlib.Path, name: str) -> None:
    """Write the intents of ATIS or SNIPS, without the test records whose intent no training record has (5 of ATIS's 893)."""

    def part(file: str) -> Records:
        where = f"tagging/atis_snips/{name}/{file}"
        pairs = zip(lines(f"{where}/label.gz"), lines(f"{where}/seq.in.gz"), strict=True)
        return [{"label": label.strip(), "text": text.strip()} for label, text in pairs]

    train = part("train")
    known = {record["label"] for record in train}
    write(folder, train=train, test=[record for record in part("test") if record["label"] in known])


def assistant_intents(folder: pathlib.Path) -> None:
    """Write the 150 intents of CLINC150, without the questions that have none of them (out of scope)."""
    parts = json.loads("\n".join(lines("classify/clinc150/data_full.json.gz")))
    for_file = {"train": "train", "validation": "val", "test": "test"}
    write(
        folder,
        **{part: [{"label": label, "text": text} for text, label in parts[name]] for part, name in for_file.items()},
    )


def emotion(folder: pathlib.Path) -> None:
    """Write the six emotions of messages."""
    for part, name in {"train": "train", "validation": "val", "test": "test"}.items():
        rows = (line.rpartition(";") for line in lines(f"classify/emotion/{name}.txt.gz")[1:])
        write(folder, **{part: [{"label": label, "text": text} for text, _, label in rows]})


def several_emotions(folder: pathlib.Path) -> None:
    """Write GoEmotions, whose messages have one or more of 28 labels."""
    names = public("classify/goemotions/original/labels.txt").read_text(encoding="utf-8").split()
    for part, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        rows = table(f"classify/goemotions/original/{name}.tsv.gz", "text labels id")
        records = [
            {"label": [names[int(number)] for number in row["labels"].split(",")], "text": row["text"]} for row in rows
        ]
        write(folder, **{part: records})


def objects(folder: pathlib.Path, train: str, test: str) -> None:
    """Write a set whose files have one object a line, as they are; `test` is the validation part of SuperGLUE and of the pieces of NLI."""
    for part, file in (("train", train), ("test", test)):
        write(folder, **{part: [json.loads(line) for line in lines(f"{file}.jsonl.gz")]})


def questions(folder: pathlib.Path) -> None:
    """Write TyDiQA-GoldP's English training questions; a tenth of their contexts is `test`, because the development part has no answers."""
    packed = public("qa/tydiqa_goldp/tydiqa.goldp.en.train.json.gz").read_bytes()
    articles = json.loads(gzip.decompress(packed))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    contexts = list(dict.fromkeys(paragraph["context"] for paragraph in paragraphs))
    held = set(random.Random(0).sample(contexts, len(contexts) // 10))
    records: dict[str, Records] = {"train": [], "test": []}
    for paragraph in paragraphs:
        part = records["test" if paragraph["context"] in held else "train"]
        for one in paragraph["qas"]:
            part.append({"context": paragraph["context"], "question": one["question"], "answers": one["answers"]})
    write(folder, **records)


def slots(folder: pathlib.Path, name: str) -> None:
    """Write the slots of ATIS or SNIPS as words and tags."""

    def part(file: str) -> Records:
        where = f"tagging/atis_snips/{name}/{file}"
        pairs = zip(lines(f"{where}/seq.in.gz"), lines(f"{where}/seq.out.gz"), strict=True)
        return [{"tokens": words.split(), "tags": tags.split()} for words, tags in pairs]

    two_parts(folder, part, ["train"], ["test"])


def chunks(folder: pathlib.Path) -> None:
    """Unpack CoNLL-2000's column files."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(public("tagging/conll2000/conll2000.zip")) as archive:
        for part in ("train", "test"):
            (folder / f"{part}.conll").write_bytes(archive.read(f"conll2000/{part}.txt"))


def entities(folder: pathlib.Path) -> None:
    """Unpack WNUT-17's column files."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "wnut17train.conll"), ("test", "emerging.test.annotated")):
        (folder / f"{part}.conll").write_bytes(gzip.decompress(public(f"tagging/wnut17/{name}.gz").read_bytes()))


def parts_of_speech(folder: pathlib.Path) -> None:
    """Unpack the CoNLL-U files of UD English EWT."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        packed = public(f"tagging/ud_english_ewt/en_ewt-ud-{name}.conllu.xz").read_bytes()
        (folder / f"{part}.conll").write_bytes(lzma.decompress(packed))


def tinyshakespeare(folder: pathlib.Path) -> None:
    """Write the first nine tenths of tinyshakespeare, which lies next to the folder of public data, and the rest."""
    text = public(str(data_folder().parent / "tinyshakespeare.txt")).read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    cut = int(0.9 * len(text))
    for part, piece in (("train", text[:cut]), ("test", text[cut:])):
        (folder / f"{part}.txt").write_text(piece, encoding="utf-8")


SETS: dict[str, Callable[[pathlib.Path], None]] = {
    "trec": trec,
    "sst2": stanford_phrases,
    "sst2_sentences": functools.partial(stanford, kind="binary"),
    "sst5": functools.partial(stanford, kind="fine"),
    **{f"mr{fold}": functools.partial(reviews, fold=fold) for fold in range(10)},
    "cola": cola,
    "mrpc": mrpc,
    "rte": functools.partial(inference, name="RTE"),
    "wnli": functools.partial(inference, name="WNLI"),
    "stsb": stsb,
    "atis": functools.partial(intents, name="atis"),
    "snips": functools.partial(intents, name="snips"),
    "atis_slots": functools.partial(slots, name="atis"),
    "snips_slots": functools.partial(slots, name="snips"),
    "conll2000": chunks,
    "wnut17": entities,
    "ud_ewt": parts_of_speech,
    "clinc150": assistant_intents,
    "emotion": emotion,
    "sst2_glue": functools.partial(two_parts, part=glue_sentences, train=["train", "dev"], test=["test"]),
    "goemotions": several_emotions,
    "tydiqa": questions,
    "copa": functools.partial(objects, train="superglue/COPA_full/train-en", test="superglue/COPA_full/val-en"),
    **{
        name: functools.partial(objects, train=f"superglue/{where}/{train}", test=f"superglue/{where}/val")
        for name, where, train in (
            ("cb", "CB", "train"),
            ("boolq", "BoolQ", "train"),
            ("rte32", "RTE", "train"),
            ("wic", "WiC", "train"),
            ("wsc", "WSC", "dev32"),  # the 32 of `train` all have one label
        )
    },
    **{
        f"{name}_piece": functools.partial(
            objects, train=f"{PIECES}/{name}/{name}_en.train", test=f"{PIECES}/{name}/{name}_en.valid"
        )
        for name in ("mnli", "xnli")
    },
    "tinyshakespeare": tinyshakespeare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = flags.Parser(prog="python -m experiments.results.sets", description=__doc__)
    parser.add_argument("name", help=f"one of {', '.join(SETS)}")
    parser.add_argument("folder", type=flags.path, help="folder of the files, which is created")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return cli.parsed(parser, run, argv)


def run(args: argparse.Namespace) -> int:
    """Write the set."""
    if args.name not in SETS:
        raise ConfigError(f"There is no set {args.name!r}. {suggest(args.name, SETS)}")
    SETS[args.name](args.folder)
    return DONE


if __name__ == "__main__":
    cli.start(main)
