#!/usr/bin/env python3
"""Writes logits_smollm2.txt: for each position of logits_text.txt the 20 most
likely next tokens with their log-probabilities, by llama-cpp-python.

    pip install llama-cpp-python numpy
    make_logits.py SmolLM2-135M-Instruct.Q4_1.gguf > logits_smollm2.txt
    make_logits.py MODEL [TOKENS TOP]

of the text's first TOKENS tokens (all) the TOP (20) likeliest. First line: the SHA-256 of the model. Then a line for each position: its token,
then id:log-probability pairs, the likeliest first. K and V are kept in single
precision there, so that what is compared is the model, not a cache."""
import hashlib
import os
import sys

import llama_cpp
import numpy as np
from llama_cpp import Llama


def main():
    path = sys.argv[1]
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "logits_text.txt"), "rb") as f:
        text = f.read()
    with open(path, "rb") as f:
        print(hashlib.sha256(f.read()).hexdigest())
    llama = Llama(path, n_ctx=1024, n_batch=512, n_threads=2, logits_all=True, verbose=False,
                  type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    tokens = llama.tokenize(text, add_bos=False, special=False)
    num_tokens, top = map(int, sys.argv[2:]) if len(sys.argv) > 2 else (
        len(tokens), 20)
    tokens = tokens[:num_tokens]
    llama.eval(tokens)
    logits = np.array(llama.scores[:len(tokens)], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token, row in zip(tokens, logp):
        print(token, " ".join(f"{i}:{row[i]:.3f}" for i in
                              np.argsort(-row, kind="stable")[:top]))


if __name__ == "__main__":
    main()
