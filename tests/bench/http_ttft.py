#!/usr/bin/env python3
"""Time to first token of the same prompts over gRPC and over HTTP, in turns, from
one client process: medians, and their ratios to gRPC's.

  R=build/release/integration
  XCACHE_BUILD=build/release XCACHE_SOURCE_DIR=. \\
    PYTHONPATH=$R/stubs:tests/integration \\
    $R/venv/bin/python tests/bench/http_ttft.py MODEL [ROUNDS] [WORDS]

Each prompt is new to the server, which computes all of it. The clients' own costs,
in Python, are a part of what is compared.
"""

import http.client
import json
import statistics
import sys
import tempfile
import time

import harness
from xcache.v1 import inference_pb2


def main():
    model = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    words = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    with tempfile.TemporaryDirectory() as folder, harness.Server(
            model, folder, "--http-listen", "127.0.0.1:0") as server:
        client = server.client()
        host, port = server.http_address.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port))

        def grpc(text):
            stream = client.inference.Chat(inference_pb2.ChatRequest(
                messages=[harness.user(text)],
                params=harness.params(max_tokens=8, ignore_eos=True)))
            next(stream)
            first = time.perf_counter()
            list(stream)
            return first

        def post(path, mark, body):
            connection.request(
                "POST", path,
                json.dumps({"temperature": 0, "stream": True,
                            "ignore_eos": True, **body}),
                {"Content-Type": "application/json"})
            response = connection.getresponse()
            while mark not in response.readline():
                assert response.status == 200 and not response.isclosed()
            first = time.perf_counter()
            response.read()
            return first

        def chat(text):
            return post("/v1/chat/completions", b'"content":"', {
                "max_tokens": 8,
                "messages": [{"role": "user", "content": text}]})

        def respond(text):
            return post("/v1/responses", b"output_text.d", {
                "max_output_tokens": 8, "input": text})

        doors = {"grpc Chat": grpc, "http chat/completions": chat,
                 "http responses": respond}
        times = {name: [] for name in doors}
        number = 0
        for i in range(-3, rounds):  # the first warm up
            for name, ask in doors.items():
                number += 1
                text = f"{number} " + " ".join(
                    f"word{(number * 7 + k) % 97}" for k in range(words))
                begin = time.perf_counter()
                first = ask(text)
                if i >= 0:
                    times[name].append((first - begin) * 1e3)
        base = statistics.median(times["grpc Chat"])
        for name, ms in times.items():
            median = statistics.median(ms)
            print(f"{name}: median {median:.2f} ms, least {min(ms):.2f} ms, "
                  f"{median / base - 1:+.1%} of gRPC's")


if __name__ == "__main__":
    main()
