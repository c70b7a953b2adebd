"""Exact parameter counts of every named size, against transformers' classes and against what was published."""

from __future__ import annotations

import pytest

from lm_research.models.families import FAMILIES, define_model

# Exact: `sum(p.numel() for p in model.parameters())` of transformers 5.24's class with the head named, at these sizes
# (BART's and mBART's with the buffer final_logits_bias; T5 v1.1's with its output table, which that class ties).
# Millions: what the source prints, which counts more coarsely, often without heads; 0 where it prints none for this shape.
COUNTS = {
    # Gemma Team 2024, table 2: 2,506,434,560 and 8,538,074,112 with tables of 256,128 rows, 262,144 and 393,216 more
    "gemma": (256000, "causal_lm", {"2b": (2_506_172_416, 2506), "7b": (8_537_680_896, 8538)}),
    # Gemma Team 2024 (2408.00118), table 2: 590M + 2,024M, 918M + 8,324M, 1,180M + 26,047M
    "gemma2": (
        256000,
        "causal_lm",
        {"2b": (2_614_341_888, 2614), "9b": (9_241_705_984, 9242), "27b": (27_227_128_320, 27227)},
    ),
    # Zhang et al. 2025 (2504.06225) print no totals; keras-hub's copy of the released base model has 591,490,560
    "t5gemma": (
        256000,
        "seq2seq_lm",
        {
            "small": (312_517_632, 313),
            "base": (591_490_560, 591),
            "large": (1_241_761_792, 1242),
            "ml": (2_200_345_344, 2200),
            "xl": (3_766_980_608, 3767),
            "2b-2b": (5_596_853_760, 5597),
            "9b-9b": (20_333_401_088, 20_333),
        },
    ),
    # Zhang et al. 2025 (2512.14856): 370M, 1.7B and 7B without the vision tower and its projector, as here
    "t5gemma2": (
        262144,
        "seq2seq_lm",
        {
            "270m-270m": (368_424_832, 370),
            "1b-1b": (1_697_783_168, 1700),
            "4b-4b": (7_089_112_576, 7000),
        },
    ),
    # Gemma Team 2025, table 1: 302M + 698M, 675M + 3,209M, 1,012M + 10,759M, 1,416M + 25,600M; the 270M's card
    "gemma3": (
        262208,
        "causal_lm",
        {
            "270m": (268_139_136, 268),
            "1b": (999_959_680, 1000),
            "4b": (3_880_263_168, 3884),
            "12b": (11_766_034_176, 11771),
            "27b": (27_009_346_304, 27016),
        },
    ),
    # Liu et al. 2019, section 5 (355M), and the released model's README (125M)
    "roberta": (50265, "masked_lm", {"base": (124_697_433, 125), "large": (355_412_057, 355)}),
    # Conneau et al. 2019, section 4 (270M, 550M), without the head's dense layer and bias
    "xlm_roberta": (250002, "masked_lm", {"base": (278_295_186, 270), "large": (560_142_482, 550)}),
    # Jiang et al. 2024, section 1 (47B), and the card of 8x22B (141B)
    "mixtral": (32000, "causal_lm", {"8x7b": (46_702_792_704, 47_000), "8x22b": (140_620_634_112, 141_000)}),
    # Qwen1.5-MoE's card (14.3B), Yang et al. 2024, table 1 (57B)
    "qwen2_moe": (151936, "causal_lm", {"a2.7b": (14_315_784_192, 14_300), "57b_a14b": (57_408_658_944, 57_000)}),
    # Yang et al. 2025, table 2 (30.5B, 235B)
    "qwen3_moe": (
        151936,
        "causal_lm",
        {"30b_a3b": (30_532_122_624, 30_500), "235b_a22b": (235_093_634_560, 235_000)},
    ),
    # Martin et al. 2019, table 1 of its camembert-model.fr (110M, 335M); vocabulary of 32,005
    "camembert": (32005, "masked_lm", {"base": (110_655_493, 110), "large": (336_695_557, 335)}),
    # The shape of RoBERTa
    "data2vec_text": (50265, "masked_lm", {"base": (124_697_433, 125)}),
    # Goyal et al. 2021, section 2 (3.5B, 10.7B)
    "xlm_roberta_xl": (250880, "masked_lm", {"xl": (3_482_741_760, 3500), "xxl": (10_712_994_816, 10_700)}),
    # The shapes of RoBERTa, a norm more, and one less in the embeddings: none; two token types
    "roberta_prelayernorm": (50265, "masked_lm", {"base": (124_698_969, 125), "large": (355_414_105, 355)}),
    # Shoeybi et al. 2019, table 4 (336M, 1.3B, 3.9B)
    "megatron_bert": (
        29056,
        "pretraining",
        {"345m": (334_723_458, 336), "1.3b": (1_277_591_938, 1300), "3.9b": (3_865_326_978, 3900)},
    ),
    # The shapes of BERT; the released base has a vocabulary of 18,000
    "ernie": (18000, "pretraining", {"base": (100_477_010, 100), "large": (323_391_058, 323)}),
    # transformers counts 98,304 and 98,304 more, its tables of sines
    "roformer": (50000, "masked_lm", {"small": (30_046_928, 30), "base": (124_099_664, 124)}),
    # Chung et al. 2020, table 6: 995M in pre-training
    "rembert": (250300, "masked_lm", {"base": (993_263_548, 995)}),
    # Song et al. 2020, section 3.1: the shape of BERT-base (110M)
    "mpnet": (30527, "masked_lm", {"base": (109_518_527, 110)}),
    # Jiang et al. 2020, table 3: 14M, 106M
    "convbert": (
        30522,
        "masked_lm",
        {"small": (13_207_442, 14), "medium_small": (17_555_946, 17), "base": (106_303_170, 106)},
    ),
    # He et al. 2020, section 5; the released models' README prints 140M, 400M, 750M
    "deberta": (
        50265,
        "masked_lm",
        {"base": (139_244_121, 140), "large": (406_264_921, 400), "xlarge": (758_905_945, 750)},
    ),
    # The released models' README: backbone 22M, 44M, 86M, 304M and a vocabulary of 128,100 times the width; v2 900M, 1.5B
    "deberta_v2": (
        128100,
        "masked_lm",
        {
            "xsmall": (70_958_820, 71),
            "small": (142_024_548, 142),
            "base": (184_551_780, 184),
            "large": (435_191_908, 435),
            "xlarge": (887_085_156, 900),
            "xxlarge": (1_567_041_636, 1500),
        },
    ),
    # Sanh et al. 2019, table 3
    "distilbert": (30522, "masked_lm", {"base": (66_985_530, 66)}),
    # Clark et al. 2020, section 3.3 and table 2: 14M, 110M, 335M
    "electra": (
        30522,
        "replaced_token",
        {"small": (13_549_057, 14), "base": (109_483_009, 110), "large": (335_142_913, 335)},
    ),
    # Lan et al. 2019, table 1
    "albert": (
        30000,
        "pretraining",
        {
            "base": (11_813_810, 12),
            "large": (17_847_474, 18),
            "xlarge": (59_021_490, 60),
            "xxlarge": (223_158_450, 235),
        },
    ),
    # Radford et al. 2019, table 2 prints 117M and 345M for the first two; the released ones are 124M and 355M
    "gpt2": (
        50257,
        "causal_lm",
        {
            "small": (124_439_808, 124),
            "medium": (354_823_168, 355),
            "large": (774_030_080, 774),
            "xl": (1_557_611_200, 1558),
        },
    ),
    # Brown et al. 2020, table 2.1
    "gpt3": (
        50257,
        "causal_lm",
        {
            "small": (125_226_240, 125),
            "medium": (355_871_744, 350),
            "large": (760_300_032, 760),
            "xl": (1_315_723_264, 1300),
            "2.7b": (2_651_553_280, 2700),
            "6.7b": (6_658_404_352, 6700),
            "175b": (174_604_259_328, 175_000),
        },
    ),
    # Touvron et al. 2023, table 2
    "llama": (32000, "causal_lm", {"llama_7b": (6_738_415_616, 6700), "llama_13b": (13_015_864_320, 13_000)}),
    # Jiang et al. 2023
    "mistral": (32000, "causal_lm", {"7b": (7_241_732_096, 7240)}),
    # Warner et al. 2024, table 4; the cards of Ettin print 17M to 1B, those of mmBERT 140M and 307M
    "modernbert": (
        50368,
        "masked_lm",
        {
            "base": (149_655_232, 149),
            "large": (395_881_664, 395),
            "ettin_17m": (16_913_600, 17),
            "ettin_32m": (32_081_344, 32),
            "ettin_68m": (68_457_664, 68),
            "ettin_150m": (149_655_232, 150),
            "ettin_400m": (395_881_664, 400),
            "ettin_1b": (1_031_314_112, 1030),
        },
    ),
    "modernbert_decoder": (
        50368,
        "causal_lm",
        {
            "ettin_17m": (16_913_600, 17),
            "ettin_32m": (32_081_344, 32),
            "ettin_68m": (68_457_664, 68),
            "ettin_150m": (149_655_232, 150),
            "ettin_400m": (395_881_664, 400),
            "ettin_1b": (1_031_314_112, 1030),
        },
    ),
    # Le Breton et al. 2025, table 1; exact: tests/interop/goldens/references.py with the vocabulary of BERT
    "neobert": (30522, "masked_lm", {"base": (245_136_954, 250)}),
    # Charpentier and Samuel 2024, section 4: 30M and 119M; exact: tests/interop/goldens/references.py
    "gpt_bert": (8192, "masked_lm", {"small": (29_892_164, 30)}),
    # Nussbaum et al. 2024, section 1
    "nomic_bert": (30528, "masked_lm", {"base": (137_354_304, 137)}),
    # Zhang et al. 2024, table 1
    "gte": (250048, "masked_lm", {"base": (306_210_496, 305)}),
    # The names are Boizard et al. 2025's; without the output's table of 128,256 rows there are 212, 608 and 2,108 million
    "eurobert": (
        128256,
        "masked_lm",
        {"210m": (310_266_624, 310), "610m": (755_625_600, 756), "2.1b": (2_403_092_736, 2403)},
    ),
    # Yang et al. 2025, table 1 and the released models' cards: 0.6B, 1.7B, 4.0B, 8.2B, 14.8B, 32.8B
    "qwen3": (
        151936,
        "causal_lm",
        {
            "0.6b": (596_049_920, 600),
            "1.7b": (1_720_574_976, 1700),
            "4b": (4_022_468_096, 4000),
            "8b": (8_190_735_360, 8200),
            "14b": (14_768_307_200, 14_800),
            "32b": (32_762_123_264, 32_800),
        },
    ),
    # The released model's card: 3.08B
    "smollm3": (128256, "causal_lm", {"3b": (3_075_098_624, 3080)}),
    # The released model's card: 36B. Helium's preview: 2B. Exact: torch's count of their classes on the meta device
    "seed_oss": (155136, "causal_lm", {"36b": (36_151_104_512, 36_000)}),
    "helium": (48000, "causal_lm", {"2b": (2_172_643_840, 0)}),
    # The released models' cards: 1.48B, 7.3B, 13.7B, 32.2B
    "olmo2": (
        100352,
        "causal_lm",
        {
            "1b": (1_484_916_736, 1480),
            "7b": (7_298_617_344, 7300),
            "13b": (13_716_198_400, 13_700),
            "32b": (32_234_279_936, 32_200),
        },
    ),
    # OLMo 3's cards: 7B, 32B; Ministral's: 8,019,808,256 parameters
    "olmo3": (100278, "causal_lm", {"7b": (7_298_011_136, 7300), "32b": (32_233_522_176, 32_200)}),
    "ministral": (131072, "causal_lm", {"8b": (8_019_808_256, 8000)}),
    # The released models' cards: 2.5B, 8.1B
    "granite": (49155, "causal_lm", {"2b": (2_533_531_648, 2500), "8b": (8_170_848_256, 8100)}),
    # Lozhkov et al. 2024: 3B, 7B, 15B, here with its second table
    "starcoder2": (
        49152,
        "causal_lm",
        {"3b": (3_030_371_328, 3000), "7b": (7_173_923_840, 7000), "15b": (15_957_889_024, 16_000)},
    ),
    # Abdin et al. 2024, section 2: 3.8B, 14B
    "phi3": (32064, "causal_lm", {"mini": (3_821_079_552, 3800), "medium": (13_960_238_080, 14_000)}),
    # Li et al. 2023: 1.3B, without embeddings; Javaheripi et al. 2023: 2.7B
    "phi": (51200, "causal_lm", {"1.3b": (1_418_270_720, 1350), "2.7b": (2_779_683_840, 2700)}),
    # The names of the released models (Black et al. 2021)
    "gpt_neo": (
        50257,
        "causal_lm",
        {"125m": (125_198_592, 125), "1.3b": (1_315_575_808, 1300), "2.7b": (2_651_307_520, 2700)},
    ),
    # Wang and Komatsuzaki 2021, README: 6,053,381,344
    "gptj": (50400, "causal_lm", {"6b": (6_050_882_784, 6053)}),
    # Biderman et al. 2023, README of the models: the same numbers
    "gpt_neox": (
        50304,
        "causal_lm",
        {
            "pythia_70m": (70_426_624, 70.426624),
            "pythia_160m": (162_322_944, 162.322944),
            "pythia_410m": (405_334_016, 405.334016),
            "pythia_1b": (1_011_781_632, 1011.781632),
            "pythia_1.4b": (1_414_647_808, 1414.647808),
            "pythia_2.8b": (2_775_208_960, 2775.20896),
        },
    ),
    # Le Scao et al. 2022, table 3
    "bloom": (
        250880,
        "causal_lm",
        {
            "560m": (559_214_592, 559),
            "1b1": (1_065_314_304, 1065),
            "1b7": (1_722_408_960, 1722),
            "3b": (3_002_557_440, 3003),
            "7b1": (7_069_016_064, 7069),
            "176b": (176_247_271_424, 176_247),
        },
    ),
    # Zhang et al. 2022, table 1
    "opt": (
        50272,
        "causal_lm",
        {
            "125m": (125_239_296, 125),
            "350m": (331_196_416, 350),
            "1.3b": (1_315_758_080, 1300),
            "2.7b": (2_651_596_800, 2700),
            "6.7b": (6_658_473_984, 6700),
            "13b": (12_853_473_280, 13_000),
            "30b": (29_974_540_288, 30_000),
            "66b": (65_719_701_504, 66_000),
            "175b": (174_604_468_224, 175_000),
        },
    ),
    # Lin et al. 2021, table 2
    "xglm": (
        256008,
        "causal_lm",
        {
            "564m": (564_463_616, 564),
            "1.7b": (1_732_907_008, 1700),
            "2.9b": (2_941_505_536, 2900),
            "4.5b": (4_552_511_488, 4500),
            "7.5b": (7_492_771_840, 7500),
        },
    ),
    # The names of the released models (Almazrouei et al. 2023)
    "falcon": (
        65024,
        "causal_lm",
        {
            "7b": (6_921_720_704, 7000),
            "11b": (10_836_484_096, 11_000),
            "40b": (41_303_293_952, 40_000),
            "180b": (178_557_088_768, 180_000),
        },
    ),
    # The models' cards: 6.7B and 29.95B
    "mpt": (50432, "causal_lm", {"7b": (6_649_286_656, 6700), "30b": (29_957_200_896, 29_950)}),
    # Raffel et al. 2019, section 3.7: 60M, 220M, 770M, 3B, 11B
    "t5": (
        32128,
        "seq2seq_lm",
        {
            "small": (60_506_624, 60),
            "base": (222_903_552, 220),
            "large": (737_668_096, 770),
            "3b": (2_851_598_336, 2800),
            "11b": (11_307_321_344, 11_000),
            "v1.1_small": (76_961_152, 77),
            "v1.1_base": (247_577_856, 250),
            "v1.1_large": (783_150_080, 800),
            "v1.1_xl": (2_849_757_184, 3000),
            "v1.1_xxl": (11_135_332_352, 11_000),
        },
    ),
    # Xue et al. 2020, section 3.2: 300M, 580M, 1.2B, 3.7B, 13B
    "mt5": (
        250112,
        "seq2seq_lm",
        {
            "small": (300_176_768, 300),
            "base": (582_401_280, 580),
            "large": (1_229_581_312, 1200),
            "xl": (3_742_619_648, 3700),
            "xxl": (12_921_057_280, 13_000),
        },
    ),
    # Released checkpoints' README: 140M, 400M
    "bart": (50265, "seq2seq_lm", {"base": (139_470_681, 140), "large": (406_341_721, 400)}),
    # Liu et al. 2020, section 2.2: about 680M with a vocabulary of 250,000; the arithmetic gives 611M
    "mbart": (250027, "seq2seq_lm", {"large": (611_101_867, 680)}),
    # Zhang et al. 2019, section 6.1: 568M; its base is counted below, with another vocabulary
    "pegasus": (96103, "seq2seq_lm", {"base": (272_382_055, 0), "large": (568_796_007, 568)}),
    # Roller et al. 2020, section 4: 2.7B; the names of the others are those of models that they were distilled from
    "blenderbot": (
        8008,
        "seq2seq_lm",
        {"400m": (364_810_568, 0), "1b": (1_437_401_928, 0), "3b": (2_696_276_808, 2700)},
    ),
    "blenderbot_small": (54944, "seq2seq_lm", {"90m": (87_563_936, 90)}),
    # Fan et al. 2020: 1.2B; NLLB is counted below, with its vocabulary. The smallest released model has more than the 418M of its name.
    "m2m_100": (
        128112,
        "seq2seq_lm",
        {"418m": (483_905_536, 0), "1.2b": (1_239_470_080, 1200), "nllb_3.3b": (3_082_526_720, 0)},
    ),
    # Chung et al. 2023, whose names are mT5's: 300M, 580M, 3.7B, 13B
    "umt5": (
        256384,
        "seq2seq_lm",
        {
            "small": (306_601_984, 300),
            "base": (592_043_520, 580),
            "xl": (3_768_356_864, 3700),
            "xxl": (12_972_531_712, 13_000),
        },
    ),
    # Zaheer et al. 2020 print no totals: RoBERTa's 125M and 355M with 3,583 positions more, and a dense layer and a norm
    "big_bird": (50358, "pretraining", {"base": (128_112_824, 125), "large": (360_228_024, 355)}),
    # Guo et al. 2021, section 4.1: the shapes of T5 v1.1, and its numbers
    "longt5": (
        32128,
        "seq2seq_lm",
        {
            "local_base": (247_577_856, 250),
            "local_large": (783_150_080, 800),
            "tglobal_base": (247_587_456, 250),
            "tglobal_large": (783_175_168, 800),
            "tglobal_xl": (2_849_807_360, 3000),
        },
    ),
    "led": (50265, "seq2seq_lm", {"base": (161_894_745, 0), "large": (459_851_865, 0)}),
    # Ahmad et al. 2021, section 2.1: 140M; the large one's card, and Tang et al. 2022, section 3.3: 406M
    "plbart": (50005, "seq2seq_lm", {"base": (139_270_741, 140), "large": (406_075_221, 406)}),
    "mvp": (50267, "seq2seq_lm", {"large": (406_343_771, 406)}),
}
CASES = [
    pytest.param(family, size, marks=pytest.mark.slow if number else ())  # by default one size of each family
    for family, (_, _, sizes) in COUNTS.items()
    for number, size in enumerate(sizes)
]


def count(family: str, size: str, vocabulary: int, head: str) -> int:
    shape = dict(FAMILIES[family].sizes[size])
    shape.setdefault("max_length", 1024 if family == "gpt2" else 512)
    return define_model(FAMILIES.make(family, **shape), vocabulary, head).num_params


@pytest.mark.parametrize(("family", "size"), CASES)
def test_named_sizes_have_the_published_numbers_of_parameters(family: str, size: str) -> None:
    vocabulary, head, sizes = COUNTS[family]
    exact, millions = sizes[size]
    got = count(family, size, vocabulary, head)
    assert got == exact
    # mBART's paper is 10% above what its own layers, widths and vocabulary make; nothing else is off by more than 6%.
    assert not millions or got / 1e6 == pytest.approx(millions, rel=0.11 if family == "mbart" else 0.06)


def test_llama_3_has_its_number_with_its_vocabulary() -> None:
    # Meta-Llama-3-8B's index file: total_size 16,060,522,496 bytes in bfloat16.
    assert count("llama", "llama3_8b", 128256, "causal_lm") == 16_060_522_496 // 2


@pytest.mark.parametrize(("size", "d", "f"), [("base", 512, 2048), ("big", 1024, 4096)])
def test_the_original_transformer_counted_by_hand(size: str, d: int, f: int) -> None:
    # Vaswani et al. 2017: 4 d^2 an attention, 2 d f + f + d a feed-forward layer, 2 d a norm; two and three branches a
    # block; one table of 37,000. Its table 3 prints 65 and 213 million.
    attention, feed_forward, norm = 4 * d * d, 2 * d * f + f + d, 2 * d
    blocks = 6 * (attention + feed_forward + 2 * norm) + 6 * (2 * attention + feed_forward + 3 * norm)
    assert count("transformer", size, 37000, "seq2seq_lm") == blocks + 37000 * d
    assert (blocks + 37000 * d) / 1e6 == pytest.approx({"base": 65, "big": 213}[size], rel=0.04)


def test_gpt3_13b_by_hand() -> None:
    # Brown et al. 2020, table 2.1: 40 layers, width 5,140 with 40 heads of 128 (5,120 together), 13.0 billion.
    d, inner = 5140, 40 * 128
    attention = 3 * (d * inner + inner) + inner * d + d
    block = attention + (d * 4 * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    expected = 40 * block + (50257 + 2048) * d + 2 * d
    assert count("gpt3", "13b", 50257, "causal_lm") == expected
    assert expected / 1e9 == pytest.approx(13.0, rel=0.01)


def test_every_named_size_is_counted() -> None:
    elsewhere = {"bert": set(FAMILIES["bert"].sizes), "transformer": {"base", "big"}, "gpt3": {"13b"}}
    elsewhere |= {"llama": {"llama3_8b"}, "qwen2": {"7b"}}
    elsewhere |= {"gpt_neox": {"pythia_6.9b", "pythia_12b", "20b"}, "falcon": {"rw_1b"}}
    elsewhere["electra"] = {name for name in FAMILIES["electra"].sizes if name.endswith("generator")}
    elsewhere |= {"modernbert": {"mmbert_small", "mmbert_base"}, "gpt_bert": {"base"}}
    for family in COUNTS.keys() | elsewhere.keys():
        counted = set(COUNTS[family][2]) if family in COUNTS else set()
        assert set(FAMILIES[family].sizes) == counted | elsewhere.get(family, set()), family


@pytest.mark.parametrize(
    ("family", "size", "vocabulary", "head", "exact"),
    [
        ("electra", "small_generator", 30522, "masked_lm", 13_546_682),
        ("electra", "base_generator", 30522, "masked_lm", 33_740_602),
        ("electra", "large_generator", 30522, "masked_lm", 51_295_290),
        # The released model's index file: total_size 15,231,233,024 bytes in bfloat16.
        ("qwen2", "7b", 152064, "causal_lm", 15_231_233_024 // 2),
        ("gpt_bert", "base", 16384, "masked_lm", 119_454_532),
        # mmBERT with Gemma 2's vocabulary.
        ("modernbert", "mmbert_small", 256000, "masked_lm", 140_897_536),
        ("modernbert", "mmbert_base", 256000, "masked_lm", 307_786_240),
        # Pythia's README, as above, with larger vocabularies; Black et al. 2022 print 20B.
        ("gpt_neox", "pythia_6.9b", 50432, "causal_lm", 6_857_302_016),
        ("gpt_neox", "pythia_12b", 50688, "causal_lm", 11_846_072_320),
        ("gpt_neox", "20b", 50432, "causal_lm", 20_554_567_680),
        ("falcon", "rw_1b", 50304, "causal_lm", 1_311_625_216),
        # mBERT: base with its vocabularies, bert-base-multilingual-cased and -uncased.
        ("bert", "base", 119547, "masked_lm", 177_974_523),
        ("bert", "base", 105879, "masked_lm", 167_463_831),
        # Zhang et al. 2019, section 6.1: 223M, which is that of the smaller vocabulary of section 6.1.2.
        ("pegasus", "base", 32103, "seq2seq_lm", 223_166_055),
        # NLLB team 2022: 600M and 1.3B, as M2M-100 with its vocabulary; 3.3B.
        ("m2m_100", "418m", 256206, "seq2seq_lm", 615_073_792),
        ("m2m_100", "1.2b", 256206, "seq2seq_lm", 1_370_638_336),
        ("m2m_100", "nllb_3.3b", 256206, "seq2seq_lm", 3_344_863_232),
    ],
)
def test_other_published_counts(family: str, size: str, vocabulary: int, head: str, exact: int) -> None:
    assert count(family, size, vocabulary, head) == exact
