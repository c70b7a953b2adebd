"""Further decoders with Llama's layout: biases of queries, keys and values alone, and rotated pairs that are adjacent."""

from case import Case, merged
from cases_llamas import SIZES, TEXTS, THETA, WIDE

SEED_OSS = dict(WIDE, rope_parameters=THETA, attention_dropout=0.0, residual_dropout=0.0)
HELIUM = dict(SIZES, hidden_size=36, head_dim=6, rope_parameters=THETA)
BIASES = dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)

CASES = [
    Case("seed_oss_causal", "SeedOssForCausalLM", SEED_OSS, "causal", length=11),
    Case("seed_oss_texts", "SeedOssForCausalLM", SEED_OSS, **TEXTS),
    Case(
        "seed_oss_causal_biases",
        "SeedOssForCausalLM",
        merged(SEED_OSS, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "causal",
        slow=True,
    ),
    Case("seed_oss_causal_plain", "SeedOssForCausalLM", merged(SEED_OSS, attention_bias=False), "causal", slow=True),
    Case("seed_oss_losses", "SeedOssForCausalLM", SEED_OSS, "causal", steps=0.02, slow=True),
    Case("seed_oss_model", "SeedOssModel", SEED_OSS, slow=True),
    Case(
        "seed_oss_sequence", "SeedOssForSequenceClassification", merged(SEED_OSS, num_labels=3), "sequence", slow=True
    ),
    Case("seed_oss_token", "SeedOssForTokenClassification", merged(SEED_OSS, num_labels=3), "classes", slow=True),
    Case("seed_oss_question", "SeedOssForQuestionAnswering", SEED_OSS, "span", masks="right right", slow=True),
    Case("helium_causal", "HeliumForCausalLM", HELIUM, "causal", length=11),
    Case("helium_texts", "HeliumForCausalLM", HELIUM, **TEXTS),
    Case("helium_causal_biases", "HeliumForCausalLM", merged(HELIUM, **BIASES), "causal", slow=True),
    Case("helium_losses", "HeliumForCausalLM", HELIUM, "causal", steps=0.02, slow=True),
    Case("helium_model", "HeliumModel", HELIUM, slow=True),
    Case("helium_sequence", "HeliumForSequenceClassification", merged(HELIUM, num_labels=3), "sequence", slow=True),
    Case("helium_token", "HeliumForTokenClassification", merged(HELIUM, num_labels=3), "classes", slow=True),
]
