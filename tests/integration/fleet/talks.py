"""Conversations as a chat backend holds them in front of a fleet: it asks until
it has an answer, and knows what it was told. And the twin that nothing happened
to. No tests here."""

import collections
import concurrent.futures
import dataclasses
import random
import threading
import time

import grpc
from xcache.v1 import common_pb2
from xcache.v1 import errors_pb2
from xcache.v1 import inference_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from balancer import UPSTREAM

Code = grpc.StatusCode

# What a call may end with while servers, and what is between, come and go. All
# else is a finding.
PASSING = {Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED,
           Code.DEADLINE_EXCEEDED}
# What is made of a stream that is cut off; never with a reason of ours.
CUT_OFF = {Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED}
WORDS = ("apple river stone cloud lamp paper seven green never after window "
         "music train bread quiet north").split()


def reason(error):
    """ErrorInfo's reason of an error; empty where a server gave none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = errors_pb2.ErrorStatus.FromString(value)
            for detail in status.details:
                if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                    return errors_pb2.ErrorInfo.FromString(detail.value).reason
    return ""


def retry_hint(error):
    """Seconds, or None."""
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after-ms":
            return int(value) / 1000
    return None


class _SessionHeader(grpc.UnaryUnaryClientInterceptor,
                     grpc.UnaryStreamClientInterceptor):
    """Tells Envoy the session, as our client library does."""

    def _details(self, details, request):
        name = (getattr(request, "session_id", "") or
                getattr(request, "id", ""))
        if not name:
            return details
        return details._replace(metadata=list(details.metadata or []) +
                                [("x-session-id", name)])

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._details(details, request), request)

    def intercept_unary_stream(self, continuation, details, request):
        return continuation(self._details(details, request), request)


def connect(address, token=None):
    """A client of the fleet at Envoy's address, or of one server at its own."""
    channel = grpc.insecure_channel(address, [
        ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0),
        # A backend goes on soon after Envoy or a server is back.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200)])
    more = [harness.BearerToken(token)] if token is not None else []
    return harness.Client(
        grpc.intercept_channel(channel, _SessionHeader(), *more))


@dataclasses.dataclass
class Turn:
    """One that a client knows to be in its session."""
    text: str
    params: inference_pb2.GenerationParams
    answer: str
    # Of an answer that came whole: (token id, log-probability) of each; None
    # where the call failed and the session had the turn.
    bits: list | None = None
    before: int = 0        # tokens of the session before it
    reused: int = 0
    remote: int = 0        # of these, from the shared tier
    server: str = ""       # its address
    durability: int = 0
    at: float = 0          # time.monotonic() of its end


class Talk:
    """A session as its client knows it. One thread at a time."""

    def __init__(self, name, system_prompt, seed):
        self.name = name
        self.system_prompt = system_prompt
        self.rng = random.Random(seed)
        self.turns = []
        self.tokens = 0
        self.is_created = False

    @property
    def messages(self):
        out = [(common_pb2.ROLE_SYSTEM, self.system_prompt)]
        for turn in self.turns:
            out += [(common_pb2.ROLE_USER, turn.text),
                    (common_pb2.ROLE_ASSISTANT, turn.answer)]
        return out

    def next_words(self, least=4, most=40):
        return " ".join(self.rng.choices(WORDS,
                                         k=self.rng.randint(least, most)))

    def next_params(self, max_tokens=24):
        """Sampled, so that an error would show in what comes after it."""
        return harness.params(
            max_tokens=self.rng.randint(1, max_tokens), temperature=0.8,
            seed=self.rng.randrange(1 << 30), logprobs=1, ignore_eos=True)


class GaveUp(AssertionError):
    """No answer in all the time there was."""


class Backend:
    """A chat backend: calls that are tried again, for `patience` seconds. They
    wait for a connection, without which gRPC looks for one only now and
    then."""

    def __init__(self, client, patience=60, deadline=30):
        self.client = client
        self.patience = patience
        self.deadline = deadline  # of one try
        self.seen = collections.Counter()  # (code, reason) of failed tries
        self.told = set()  # what they said
        self.learned = 0   # turns whose answer was lost, and that were applied
        self.no_hint = []  # refusals of a server without a word of when to try

    def create(self, talk, **more):
        def call():
            self.client.sessions.CreateSession(
                spb.CreateSessionRequest(
                    id=talk.name, system_prompt=talk.system_prompt, **more),
                timeout=self.deadline, wait_for_ready=True)
            return True

        def failed(error):
            # By a try whose answer was lost.
            return error.code() == Code.ALREADY_EXISTS or None

        self._until_answered(call, failed, talk.name)
        talk.is_created = True

    def ask(self, talk, text, request_params):
        """One turn, once: the Turn, also where its answer was lost."""
        heard = []

        def call():
            heard.clear()
            return self._try_turn(talk, text, request_params, heard)

        def failed(error):
            if (error.code() == Code.ABORTED and
                    reason(error) == "TURN_CONFLICT"):
                return self._learn(talk, text, request_params, "".join(heard))
            return None

        turn = self._until_answered(call, failed, talk.name)
        talk.turns.append(turn)
        return turn

    def get(self, talk):
        """The session, with its messages."""
        return self._until_answered(
            lambda: self.client.sessions.GetSession(
                spb.GetSessionRequest(id=talk.name, with_messages=True),
                timeout=self.deadline, wait_for_ready=True),
            lambda error: None, talk.name)

    def check(self, talk):
        """The session is what its client was told, no less and no more."""
        session = self.get(talk)
        have = [(m.role, m.content) for m in session.messages]
        assert have == talk.messages, f"{talk.name}: {have} {talk.messages}"
        assert session.turn == len(talk.turns)
        return session

    def _try_turn(self, talk, text, request_params, heard):
        call = self.client.inference.Chat(inference_pb2.ChatRequest(
            session_id=talk.name, messages=[harness.user(text)],
            expected_turn=len(talk.turns), params=request_params),
            timeout=self.deadline, wait_for_ready=True)
        responses = []
        for response in call:
            heard.append(response.delta)
            responses.append(response)
        answer = harness.Answer(responses)
        assert answer.final.turn == len(talk.turns) + 1
        turn = Turn(text, request_params, answer.text, answer.bits,
                    talk.tokens, answer.reused, answer.final.reused.remote,
                    dict(call.initial_metadata()).get(UPSTREAM, ""),
                    answer.final.durability, time.monotonic())
        talk.tokens = (answer.final.prompt_tokens +
                       answer.final.generated_tokens)
        return turn

    def _learn(self, talk, text, request_params, heard):
        """Somebody's turn came first: ours, by a try that was not answered. Of
        anybody else's none knows."""
        session = self.get(talk)
        have = [(m.role, m.content) for m in session.messages]
        known = len(talk.messages)
        assert have[:known] == talk.messages, talk.name
        assert session.turn == len(talk.turns) + 1, (
            f"{talk.name}: turn {session.turn} after {len(talk.turns)} of ours")
        assert len(have) == known + 2 and have[known][1] == text, talk.name
        answer = have[known + 1][1]
        assert answer.startswith(heard), f"{talk.name}: another answer was kept"
        self.learned += 1
        before, talk.tokens = talk.tokens, session.num_tokens
        return Turn(text, request_params, answer, before=before,
                    at=time.monotonic())

    def _until_answered(self, call, failed, what):
        """call()'s value; or failed()'s of its error, where that is not None."""
        end = time.monotonic() + self.patience
        pause = 0.05
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                value = failed(error)
                if value is not None:
                    return value
                why = reason(error)
                self.seen[error.code().name, why] += 1
                self.told.add(error.details())
                passes = (error.code() in PASSING or
                          error.code() in CUT_OFF and not why)
                if not passes or why == "TURN_CONFLICT":
                    raise
                hint = retry_hint(error)
                if error.code() == Code.UNAVAILABLE and why and hint is None:
                    self.no_hint.append(error.details())
                if time.monotonic() > end:
                    raise GaveUp(f"{what}: {self.patience} s long: {error}")
                # Not all at once, nor later than they are told to.
                time.sleep(min(hint if hint is not None else pause, 2) *
                           random.uniform(0.8, 1.2))
                pause = min(2 * pause, 0.5)


class Talker(threading.Thread):
    """Goes on in its talks, one after the other, until it is stopped. One of
    `longest` tokens is over, and another takes its place."""

    def __init__(self, backend, talks, long_prompt=0, think=0.03,
                 longest=2800):
        super().__init__()
        self.backend = backend
        self.talks = talks
        self.names = [talk.name for talk in talks]
        self.over = []
        self.long_prompt = long_prompt  # words of a talk's first message
        self.think = think              # seconds at most, between turns
        self.longest = longest
        self.rng = random.Random(talks[0].name)
        self.stop = threading.Event()
        self.asked = 0
        self.problem = None

    @property
    def all_talks(self):
        return self.over + [talk for talk in self.talks if talk.is_created]

    def run(self):
        try:
            while not self.stop.is_set():
                for i, talk in enumerate(self.talks):
                    self._step(talk)
                    if talk.tokens > self.longest:
                        self.over.append(talk)
                        self.talks[i] = Talk(
                            f"{self.names[i]}.{len(self.over)}",
                            talk.system_prompt, self.rng.randrange(1 << 30))
                    if self.stop.wait(self.rng.uniform(0, self.think)):
                        return
        except Exception as error:  # shown by finish()
            self.problem = error

    def _step(self, talk):
        if not talk.is_created:
            self.backend.create(talk)
        words = self.long_prompt if not talk.turns else 0
        text = talk.next_words(words or 4, words or 40)
        self.backend.ask(talk, text, talk.next_params())
        self.asked += 1

    def finish(self):
        self.stop.set()
        self.join()
        if self.problem is not None:
            raise self.problem


def at_once(most, call, *arguments):
    """Calls it with each of the arguments, so many at a time; the first that
    fails is raised."""
    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        list(pool.map(call, *arguments))


def check_twins(model, folder, talks):
    """Each talk once more, on one server that has no fleet and that nothing
    happens to: the same tokens with the same log-probabilities."""
    folder.mkdir()
    with harness.Server(model, folder) as server:
        def one(mine):
            client = server.client()
            for talk in mine:
                check_twin(client, talk)

        at_once(4, one, [talks[i::4] for i in range(4)])


def check_twin(client, talk):
    """Of one talk."""
    client.sessions.CreateSession(spb.CreateSessionRequest(
        id=talk.name, system_prompt=talk.system_prompt))
    for number, turn in enumerate(talk.turns):
        twin = client.chat(talk.name, turn.text, params=turn.params)
        where = f"{talk.name}, turn {number + 1}, by {turn.server}"
        assert twin.text == turn.answer, where
        assert turn.bits is None or twin.bits == turn.bits, where
