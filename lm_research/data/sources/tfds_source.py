"""TensorFlow Datasets, read without TensorFlow: ArrayRecord files through `as_data_source`."""

from __future__ import annotations

import importlib
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

from lm_research.common.paths import is_remote, path_of
from lm_research.config import DataConfig
from lm_research.data.sources.files import check_folder
from lm_research.data.sources.problems import Problems
from lm_research.errors import DataError, suggest

_LEGACY = ("text", "translate", "summarization", "question_answering")  # their builders register when imported
_RECORDS = 1000  # read at once
_PROBE_SECONDS = 5.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def read_documents(name: str, data: DataConfig, problems: Problems) -> Iterator[str]:
    """Read the texts of one split in the order in which TFDS stores them, preparing the data set first if necessary.

    Args:
      name: NAME[/CONFIG][:VERSION][@SPLIT]; the split is any TFDS split expression, by default `train`.
      data: `text_key` and `tfds_dir` are used.
      problems: collects texts that are not UTF-8.

    Raises:
      DataError: the data set, split or feature is unknown; the data is missing and cannot be downloaded, or is stored in a
        format that needs TensorFlow.
    """
    name, split = _parse(name)
    builder = _builder(name, data)
    key = _text_key(builder, name, data.text_key)
    return _texts(_open(builder, name, split), key, name, problems)


def read_examples(name: str, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Read all features of each example of a split, in TFDS's order, with texts as str and classes as their names, also in lists.

    Raises:
      DataError: as `read_documents`, or a text that is not UTF-8.
    """
    import tensorflow_datasets as tfds

    name, split = _parse(name)
    builder = _builder(name, data)
    features = dict(builder.info.features or {})

    def plain(value: Any, feature: Any, where: str) -> Any:
        if isinstance(feature, tfds.features.ClassLabel):
            return feature.int2str(int(value)) if int(value) >= 0 else None  # -1 is GLUE's hidden label
        if isinstance(feature, tfds.features.TranslationVariableLanguages):
            pairs = zip(value["language"], value["translation"], strict=True)
            return {plain(language, None, where): plain(text, None, where) for language, text in pairs}
        if isinstance(value, dict):
            inner, of = feature, lambda part: part
            if isinstance(feature, tfds.features.Sequence):  # a sequence of records is read as a record of sequences
                inner, of = feature.feature, tfds.features.Sequence
            return {name: plain(part, of(inner[name]), where) for name, part in value.items()}
        if isinstance(feature, tfds.features.Sequence):
            return [plain(part, feature.feature, where) for part in value]
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where} has a text that is not UTF-8 ({error.reason} at byte {error.start})."
                ) from error
        return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value

    records = _open(builder, name, split)
    for number in range(len(records)):
        where = f"tfds:{name}@{split}, example {number}"
        yield {key: plain(value, features.get(key), where) for key, value in records[number].items()}


def _open(builder: Any, name: str, split: str) -> Any:
    """Open the records of a split, addressed by number, preparing the data set first if necessary."""
    if not builder.is_prepared():
        _prepare(builder, name)
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise DataError(
            f"tfds:{name} is prepared at {builder.data_path} in a format that only TensorFlow reads "
            f"({builder.info.file_format.value}). Delete that folder, or set config.data.tfds_dir to another one; it will "
            "then be prepared as array_record."
        ) from error
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(
            f"tfds:{name} has no split {split!r}. {suggest(split, builder.info.splits)} Write tfds:{name}@SPLIT."
        ) from error


def fingerprint(name: str, data: DataConfig) -> list[str]:
    """Return the full name with version, the split and the text feature. In TFDS the data of one version never change.

    Raises:
      DataError: an unknown data set or feature.
    """
    name, split = _parse(name)
    builder = _builder(name, data)
    return [builder.info.full_name, split, _text_key(builder, name, data.text_key)]


def full_name(name: str, data: DataConfig) -> str:
    """Return name, configuration, version and split, which identify the data; raises a DataError like `fingerprint`."""
    name, split = _parse(name)
    return f"{_builder(name, data).info.full_name}@{split}"


def _parse(name: str) -> tuple[str, str]:
    name, _, split = name.partition("@")
    return name, split or "train"


def _builder(name: str, data: DataConfig) -> Any:
    import tensorflow_datasets as tfds

    data_dir = (
        path_of(data.tfds_dir, "config.data.tfds_dir", error=DataError)
        if data.tfds_dir and not is_remote(data.tfds_dir)
        else None
    )
    if data_dir:
        check_folder(data_dir / re.split("[/:]", name)[0])
    for module in _LEGACY:
        importlib.import_module(f"tensorflow_datasets.{module}")
    try:
        return tfds.builder(name, data_dir=str(data_dir) if data_dir else data.tfds_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        known = re.findall(r"^\t- (\S+)$", str(error), flags=re.MULTILINE)
        hint = suggest(re.split("[/:]", name)[0], known or ["wikipedia"])
        hint = hint if hint.startswith("Did") else "The names are listed at tensorflow.org/datasets/catalog."
        raise DataError(f"tfds:{name} is not a TFDS data set. {hint}") from error
    except Exception as error:  # builders raise various types: a missing config, version or package
        raise DataError(f"TFDS cannot open tfds:{name}: {_first_words(error)}") from error


def _first_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"its builder needs the Python package {error.name}, which lm_research does not install."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."


def _text_key(builder: Any, name: str, key: str | None) -> str:
    import tensorflow_datasets as tfds

    features = builder.info.features
    texts = [
        feature_name
        for feature_name, feature in dict(features or {}).items()
        if isinstance(feature, tfds.features.Text)
    ]
    if not texts:
        raise DataError(f"tfds:{name} has no text feature; it has {', '.join(features or {}) or 'none at all'}.")
    if key and key not in texts:
        raise DataError(f"config.data.text_key={key!r} is not a text feature of tfds:{name}. {suggest(key, texts)}")
    return key or ("text" if "text" in texts else texts[0])


def _prepare(builder: Any, name: str) -> None:
    where = f"tfds:{name} is not prepared in {builder.data_path}"
    fix = (
        "Prepare it on a machine with a network (`python -m lm_research.train` with the same config does that), copy the "
        "folder to this machine and set config.data.tfds_dir to its data_dir; or use another config.data.source."
    )
    host = _unreachable_host(builder)
    if host:
        raise DataError(f"{where}, and its host {host} does not answer; there seems to be no network. {fix}")
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # the network, a checksum, a full disk, a manual download, errors of builders
        raise DataError(f"{where}, and preparing it failed: {_first_words(error)} {fix}") from error


def _unreachable_host(builder: Any) -> str:
    """Return the host of the data if it does not answer; "" if it answers or this cannot be determined.

    TFDS itself retries for minutes. Behind a proxy a direct connection is not a test.
    """
    if any(os.environ.get(proxy) or os.environ.get(proxy.upper()) for proxy in _PROXIES):
        return ""
    for url in getattr(builder, "url_infos", None) or {}:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname:
            continue
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
        except OSError:
            return parts.hostname
        return ""
    return ""


def _texts(records: Any, key: str, name: str, problems: Problems) -> Iterator[str]:
    for start in range(0, len(records), _RECORDS):
        stop = min(start + _RECORDS, len(records))
        for number, record in enumerate(records.__getitems__(list(range(start, stop))), start):
            text = record[key]
            try:
                yield text if isinstance(text, str) else bytes(text).decode("utf-8")
            except UnicodeDecodeError as error:
                problems.found(
                    f"tfds:{name}: {key!r} of example {number} is not UTF-8 ({error.reason} at byte {error.start})"
                )
