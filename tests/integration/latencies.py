"""How long a client waits between the tokens of answers. No tests here."""

import time

import grpc
from xcache.v1 import inference_pb2 as pb

import harness


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def latencies(client, seconds, refusals=()):
    """Seconds between the tokens of answers, one after the other, a step each.
    Those that end with one of the codes `refusals` are asked for again."""
    out = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        last = None
        try:
            for _ in client.inference.Chat(pb.ChatRequest(
                    messages=[harness.user("Tell me of the river.")],
                    params=harness.params(max_tokens=200, ignore_eos=True,
                                          speculate="off"))):
                now = time.monotonic()
                if last is not None:
                    out.append(now - last)
                last = now
        except grpc.RpcError as error:
            if error.code() not in refusals:
                raise
            time.sleep(0.05)
    return out
