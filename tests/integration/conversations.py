"""What a server's sessions must be after anything that happened to it: whole,
at a known turn, and answering as if nothing had been stored. No tests here."""

import itertools

import grpc
from xcache.v1 import common_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from harness import params

Code = grpc.StatusCode

# A fork's deletion may be what a damaged log has lost: no name comes again.
FORKS = itertools.count()


class Conversation:
    """A session as its client knows it."""

    def __init__(self, name, system_prompt, codec=""):
        self.name = name
        self.codec = codec    # "": the server's default
        self.messages = [(common_pb2.ROLE_SYSTEM, system_prompt)]
        self.turn = 0         # acknowledged
        self.tokens = 0       # its length after that turn
        self.created = False  # acknowledged
        self.asked = None     # a turn that has been sent and not acknowledged
        self.heard = ""       # what has come of its answer

    def create(self, client, **more):
        client.sessions.CreateSession(spb.CreateSessionRequest(
            id=self.name, system_prompt=self.messages[0][1],
            codec=self.codec, **more))
        self.created = True

    def ask(self, client, text, request_params, timeout=300):
        """One turn. Where the call fails, `asked` says what was under way."""
        self.asked, self.heard = text, ""
        responses = []
        for response in client.inference.Chat(
                harness.inference_pb2.ChatRequest(
                    session_id=self.name, messages=[harness.user(text)],
                    expected_turn=self.turn, params=request_params),
                timeout=timeout):
            self.heard += response.delta
            responses.append(response)
        answer = harness.Answer(responses)
        assert answer.final.turn == self.turn + 1
        self._accept(answer.text)
        self.tokens = answer.final.prompt_tokens + answer.final.generated_tokens
        return answer

    def _accept(self, text):
        self.messages += [(common_pb2.ROLE_USER, self.asked),
                          (common_pb2.ROLE_ASSISTANT, text)]
        self.turn += 1
        self.asked, self.heard = None, ""

    def check_after_crash(self, client):
        """At the last acknowledged turn or the next one, whole. Takes over what
        the server has; False where it was never created."""
        try:
            session = client.sessions.GetSession(spb.GetSessionRequest(
                id=self.name, with_messages=True))
        except grpc.RpcError as error:
            if error.code() != Code.NOT_FOUND:
                raise
            assert not self.created, f"{self.name} is gone"
            return False
        self.created = True
        self.tokens = session.num_tokens
        have = [(m.role, m.content) for m in session.messages]
        known = len(self.messages)
        assert have[:known] == self.messages, self.name
        assert session.num_messages == len(have)
        if session.turn == self.turn:
            assert len(have) == known
        else:
            assert session.turn == self.turn + 1, (session.turn, self.turn)
            assert self.asked is not None, "a turn that nobody asked for"
            assert len(have) == known + 2
            assert have[known] == (common_pb2.ROLE_USER, self.asked)
            role, text = have[known + 1]
            assert role == common_pb2.ROLE_ASSISTANT
            assert text.startswith(self.heard), "another answer was kept"
            self._accept(text)
        self.asked, self.heard = None, ""
        return True

    def check_answer(self, client, request_params=None):
        """Its next answer has the bits of one that is computed from nothing.
        Leaves the session as it is. Returns what was reused."""
        request_params = request_params or params(
            max_tokens=8, ignore_eos=True, logprobs=1)
        names = [f"{self.name}-fork{next(FORKS)}" for _ in range(2)]
        for name in names:
            client.sessions.ForkSession(
                spb.ForkSessionRequest(id=self.name, new_id=name))
        try:
            stored = client.chat(names[0], "What now?", params=request_params)
            fresh = type(request_params)()
            fresh.CopyFrom(request_params)
            fresh.no_cache = True
            anew = client.chat(names[1], "What now?", params=fresh)
        finally:
            for name in names:
                client.sessions.DeleteSession(
                    spb.DeleteSessionRequest(id=name))
        assert anew.reused == 0
        assert stored.final.prompt_tokens == anew.final.prompt_tokens
        assert stored.bits == anew.bits, self.name
        return stored.reused
