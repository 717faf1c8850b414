#!/usr/bin/env python3
"""Writes a GGUF's model with all weights in FP32, the same numbers: XCache then
multiplies in FP32 too, where it rounds activations to 8 bits before quantized
weights. A codec's own loss is what is left there; the rounding's chaos, which
any change at all of the cache calls forth, is not.

    pip install gguf==0.19.0
    tests/eval/float_weights.py IN.gguf OUT.gguf
"""
import sys

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

ALL_F32 = 0  # general.file_type


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    reader = GGUFReader(sys.argv[1])
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(sys.argv[2], architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in (
                "general.architecture", "general.file_type",
                "general.quantization_version"):
            continue
        kind = field.types[0]
        of = (field.types[1],) if kind == GGUFValueType.ARRAY else ()
        writer.add_key_value(key, field.contents(), kind, *of)
    writer.add_file_type(ALL_F32)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name,
                          np.ascontiguousarray(values.astype(np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
