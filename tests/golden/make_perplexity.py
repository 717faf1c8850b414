#!/usr/bin/env python3
"""Scores a text with llama-cpp-python: the golden data of the perplexity test.

    pip install llama-cpp-python numpy
    make_perplexity.py MODEL.gguf TEXT [WINDOWS] > perplexity_NAME.json

Windows of 1,024 tokens, one after another, each in an empty context, with BOS
before its text where the model wants that; the mean over all its positions but
the first."""
import hashlib
import json
import os
import sys

import llama_cpp
import numpy as np
from llama_cpp import Llama

WINDOW = 1024


def window_nll(llama, ids):
    llama.reset()
    llama.eval(ids)
    logits = np.array(llama.scores[:len(ids) - 1], dtype=np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    return float((log_sums - logits[np.arange(len(ids) - 1), ids[1:]]).mean())


def main():
    model, path = sys.argv[1:3]
    windows = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    with open(path, "rb") as f:
        text = f.read()
    llama = Llama(model, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True,
                  verbose=False)
    ids = llama.tokenize(text, add_bos=False, special=False)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    bos = ([llama.token_bos()] if llama_cpp.llama_vocab_get_add_bos(vocab)
           else [])
    size = WINDOW - len(bos)
    nll = [window_nll(llama, bos + ids[i * size:(i + 1) * size])
           for i in range(windows)]
    with open(model, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    json.dump({"model": os.path.basename(model), "model_sha256": digest,
               "text_sha256": hashlib.sha256(text).hexdigest(),
               "window": WINDOW, "nll": nll}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
