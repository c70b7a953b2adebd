"""The keys of the section task."""

from __future__ import annotations

import dataclasses

from lm_research.config.keys import Section, key


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    @property
    def reads_objective(self) -> str | None:
        """The objective whose settings it reads, where it does; others leave the section objective as it is."""
        return "seq2seq" if self.name in ("seq2seq", "instruction") else None

    name: str | None = key(
        None,
        "Labelled task to fine-tune for, instead of an objective: classification of texts or pairs, tagging of words, question "
        "answering by spans of a context, multiple choice, embedding of texts so that pairs lie close together, writing a target for a "
        "source, or following instructions.",
    )
    train: str = key(
        "",
        "Labelled records: .jsonl, .json, .csv, .tsv or .parquet files, tfds:NAME@SPLIT, or (seq2seq) lines:SOURCES,TARGETS, two text "
        "files whose lines belong together.",
        path=True,
    )
    validation: str = key(
        "", "Held-out records in the same forms; empty holds out a share (data.validation_fraction).", path=True
    )
    test: str = key("", "Further records that are scored once, at the end of the run.", path=True)
    text_key: str = key(
        "text",
        "Field of the text (tagging: of the list of words; question_answering: of the context; seq2seq: of the source; instruction: of the "
        "prompt); A.B is field B of field A.",
    )
    pair_key: str = key("", "Field of a second text (question_answering: of the question); empty reads single texts.")
    label_key: str = key(
        "label",
        "Field of the label: a name or number, a list of names, a value, (tagging) a list of tags, (seq2seq) the target, or (instruction) "
        "the answer.",
    )
    column: str = key(
        "",
        "tagging, files of columns: the column of the tags, by its name in CoNLL-U (UPOS, XPOS, DEPREL, ...) or by its number, from 1, or "
        "from the end, -1 being the last; empty is UPOS of CoNLL-U, else the last.",
    )
    together_key: str = key(
        "",
        "classification, target=label: field that is equal in records that belong together; group_accuracy is the share of such groups "
        "in which every label is right.",
    )
    credit_key: str = key(
        "",
        "With together_key: field with what it is worth (0 to 1) to choose this one of the records that belong together. Chosen is the "
        "record with the highest probability of the last label: choice_credit is the mean worth, choice_accuracy the share of groups whose "
        "chosen record has that label.",
    )
    target: str = key(
        "label",
        "classification: one label of several, any number of labels, or a value (regression); several values are a list, or "
        "the fields that label_key names with commas between. embedding: value learns how "
        "similar a pair is; without it pairs belong together and label_key is not read.",
        choices=("label", "labels", "value"),
    )
    label_separator: str = key(",", "target=labels: what separates labels where a field is one text.")
    labels: str = key("", "All labels, in order, with commas between; empty takes those of the training records.")
    metric: str = key(
        "",
        "Metric that picks the best checkpoint and stops early, or several with + between, for their mean; empty is the usual one.",
    )
    patience: int = key(
        0, "Evaluations in a row without a better metric after which training ends; 0 trains all steps.", low=0
    )
    label_smoothing: float = key(
        0.0,
        "target=label, seq2seq, instruction: probability spread evenly over all labels or tokens, in training.",
        low=0.0,
        high=0.99,
    )
    class_weights: str = key(
        "none",
        "target=label: how much each class counts in the loss: none (all alike), balanced (inversely to its training records), or "
        "LABEL=WEIGHT, ... for every label.",
    )
    stride: int = key(
        128,
        "question_answering, tagging: tokens of a long context or sentence that neighbouring windows have in common (tagging: at most half "
        "of a window).",
        low=0,
        high=2**24,
    )
    long_sentences: str = key(
        "windows",
        "tagging: sentences of more than data.max_length tokens: read in windows, or cut; then the tags of missing words count as O.",
        choices=("windows", "cut"),
    )
    max_answer_length: int = key(30, "question_answering: tokens of the longest answer.", low=1, high=2**16)
    n_best: int = key(
        20, "question_answering: answers weighed, and written to predictions, for each question.", low=1, high=10_000
    )
    null_threshold: float = key(
        0.0,
        "question_answering: a question has no answer where the score of none minus the best answer's is above this (SQuAD 2.0).",
    )
    choices_key: str = key(
        "choices", "multiple_choice: the field with the list of choices, or the fields of one each with commas between."
    )
    negative_key: str = key(
        "", "embedding: field of a text that does not go with the first; empty has those of others."
    )
    pooling: str = key(
        "",
        "embedding: what of a text's states is its vector: mean, cls (the first), last, max, mean_sqrt_len or weightedmean, or "
        "several joined (cls+mean); empty is what the model directory says, else last of causal models and mean of others.",
    )
    prompt: str = key(
        "", "embedding: text put before each text; empty is the one that the model directory names as usual, if any."
    )
    similarity: str = key(
        "",
        "embedding: how vectors are compared for scores; empty is what the model directory says, else cosine, or dot without "
        "normalize.",
        choices=("", "cosine", "dot", "euclidean", "manhattan"),
    )
    normalize: bool = key(True, "embedding: vectors of length 1, so that products are cosines.")
    temperature: float = key(
        0.05, "embedding: what similarities are divided by before the softmax.", low=1e-4, high=1e4
    )
    symmetric: bool = key(
        False, "embedding: each second text looks for its first too; the loss is the mean of both ways."
    )
    value_zero: float = key(0.0, "embedding, target=value: the value that stands for a cosine of 0.")
    value_one: float = key(
        1.0, "embedding, target=value: the value that stands for a cosine of 1; others lie on a line."
    )
    source_prefix: str = key("", "seq2seq: text before each source, such as 'summarize: '; spaces count.")
    generate: str = key(
        "end",
        "seq2seq, instruction: when held-out records are decoded and what was written is scored: in each evaluation, at the end of the "
        "run, or never.",
        choices=("each", "end", "never"),
    )
    decoding: str = key(
        "",
        "seq2seq, instruction: how, as arguments of lm.generate with commas between: num_beams=4,length_penalty=2.0; empty is greedy.",
    )
    decoder_start: str = key(
        "",
        "seq2seq: token that targets begin with; empty is the model's own, or that of objective.decoder_start.",
    )
    source_language: str = key(
        "",
        "seq2seq: code of the sources' language, such as en_XX, for tokenizers that mark texts with it (mBART's, NLLB's, M2M-100's); "
        "empty is src_lang of the tokenizer's files.",
    )
    target_language: str = key(
        "",
        "seq2seq: code of the targets' language, such as ro_RO; empty is tgt_lang of the tokenizer's files, or what the model's files "
        "make it write.",
    )
    bleu_tokenizer: str = key(
        "13a",
        "seq2seq: sacrebleu's tokenizer for BLEU: 13a for languages with spaces, zh for Chinese, ja-mecab for Japanese, ko-mecab for "
        "Korean, char for single characters.",
        choices=("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
    )
    rouge_tokenizer: str = key(
        "auto",
        "seq2seq: what ROUGE counts: rouge_score's own tokens (letters a to z and digits alone); auto, the same but words of other scripts "
        "too, and characters of those without spaces (Chinese, Japanese, Thai); character; or whitespace, for texts divided beforehand.",
        choices=("auto", "character", "whitespace", "rouge_score"),
    )
