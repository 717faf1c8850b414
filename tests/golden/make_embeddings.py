#!/usr/bin/env python3
"""Embeds texts with llama-cpp-python: the golden data of test_embeddings.py.

    pip install llama-cpp-python numpy
    make_embeddings.py MODEL.gguf TEXT > embeddings_NAME.json

The texts are the first so many bytes of TEXT, whole characters; each vector is of
unit length, FP16 in base64."""
import base64
import hashlib
import json
import sys

import llama_cpp
import numpy as np

LENGTHS = (1, 30, 250, 2000)
POOLING = {"mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
           "last": llama_cpp.LLAMA_POOLING_TYPE_LAST}


def main():
    model, path = sys.argv[1:3]
    with open(path, "rb") as f:
        text = f.read()
    with open(model, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    out = {"model_sha256": digest, "lengths": LENGTHS,
           "text_sha256": hashlib.sha256(text).hexdigest()}
    for name, pooling in POOLING.items():
        llama = llama_cpp.Llama(model, embedding=True, pooling_type=pooling,
                                n_ctx=2048, n_batch=2048, n_ubatch=2048,
                                verbose=False)
        vectors = [np.array(llama.embed(text[:n].decode(errors="ignore"),
                                        normalize=True), np.float16)
                   for n in LENGTHS]
        out[name] = [base64.b64encode(v.tobytes()).decode() for v in vectors]
    json.dump(out, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
