#!/usr/bin/env python3
"""Tokenizes lines.jsonl with llama-cpp-python: the golden data of the
tokenizer tests.

    pip install llama-cpp-python gguf
    make_tokens.py MODEL_OR_VOCABULARY.gguf > tokens_NAME.txt

First line: the name of the file. Then a line for each text: digests of the ids
with the spellings of special tokens taken as text, and as special tokens.

llama.cpp takes some tokens for special ones that the file says are text, by
their spelling alone (</s> in Qwen's vocabulary, where it is a piece of HTML).
Where such a one turns up, the second digest is "-": there is nothing to compare
with."""
import hashlib
import json
import os
import sys

import gguf
import llama_cpp
from llama_cpp import Llama


def digest(ids):
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:8]


def overridden_tokens(path, llama):
    fields = gguf.GGUFReader(path).fields
    types = fields["tokenizer.ggml.token_type"].contents()
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    return {
        i for i, t in enumerate(types)
        if t == gguf.TokenType.NORMAL and llama_cpp.llama_vocab_is_control(vocab, i)
    }


def main():
    path = sys.argv[1]
    here = os.path.dirname(os.path.abspath(__file__))
    llama = Llama(path, vocab_only=True, verbose=False)
    with open(os.path.join(here, "lines.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(line) for line in f.read().split("\n")[:-1]]
    overridden = overridden_tokens(path, llama)
    print(os.path.basename(path))
    for line in lines:
        text = line.encode()
        plain = llama.tokenize(text, add_bos=False, special=False)
        special = llama.tokenize(text, add_bos=False, special=True)
        known = overridden.isdisjoint(special)
        print(digest(plain), digest(special) if known else "-")


if __name__ == "__main__":
    main()
