"""A TFDS data set of 25 short texts, made without downloads. In a separate module, as TFDS requires."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow_datasets as tfds

TRAIN = [f"Document {number}. It is short." for number in range(20)]
TEST = [f"Held-out text {number}." for number in range(5)]


class TinyTextForTests(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = dict(label=tfds.features.ClassLabel(num_classes=2), headline=text, text=text)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager: object) -> dict[str, Iterator]:
        return {"train": self._generate_examples(TRAIN), "test": self._generate_examples(TEST)}

    def _generate_examples(self, texts: list[str]) -> Iterator[tuple[int, dict]]:
        for number, text in enumerate(texts):
            yield number, dict(label=number % 2, headline=f"Headline {number}", text=text)


class TinyNumbersForTests(tfds.core.GeneratorBasedBuilder):
    """A data set without text."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(label=tfds.features.ClassLabel(num_classes=2)))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, download_manager: object) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        yield 0, dict(label=0)
