"""Losses that read padded positions: PyTorch gives the row of the pad token no gradient from the input (`padding_idx`), in most families."""

from case import Case, merged
from make_goldens import BART, BERT, DISTILBERT, GPT2, LLAMA, MARIAN, NO_DROPOUT, ROBERTA, T5

OPT = dict(
    vocab_size=61, hidden_size=20, num_hidden_layers=2, num_attention_heads=5, ffn_dim=37, max_position_embeddings=17
)
MODERN = dict(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=37)


def question(name: str, kind: str, config: dict, **more) -> Case:
    return Case(f"{name}_question_losses", f"{kind}ForQuestionAnswering", config, "span", steps=4e-3, **more)


CASES = [
    question("bert", "Bert", merged(BERT, **NO_DROPOUT), slow=True),
    question("roberta", "Roberta", merged(ROBERTA, **NO_DROPOUT)),
    question("xlm_roberta", "XLMRoberta", merged(ROBERTA, pad_token_id=3, **NO_DROPOUT), slow=True),
    question("bart", "Bart", merged(BART, dropout=0.0)),
    question("qwen2", "Qwen2", merged(LLAMA, pad_token_id=7), masks="right right"),
    question("opt", "OPT", merged(OPT, dropout=0.0), masks="right right", slow=True),
    question("t5", "T5", merged(T5, dropout_rate=0.0), slow=True),
    question(
        "distilbert", "DistilBert", merged(DISTILBERT, dropout=0.0, attention_dropout=0.0, qa_dropout=0.0), slow=True
    ),
    question("gpt2", "GPT2", merged(GPT2, pad_token_id=7, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), slow=True),
    question("mpnet", "MPNet", merged(ROBERTA, pad_token_id=5, **NO_DROPOUT), slow=True),
    question("modernbert", "ModernBert", merged(MODERN, pad_token_id=5), slow=True),
    # The decoder begins with padding.
    Case("marian_losses", "MarianMTModel", merged(MARIAN, dropout=0.0), "target", steps=4e-3, slow=True),
]
