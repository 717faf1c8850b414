"""Two servers at one turn of a session: one of them wins, whichever it is; the
other one's client is told, and both know the same conversation afterwards.

XCACHE_FLEET_RACE_ROUNDS (30) is how many races; a campaign takes 500."""

import collections
import random
import threading

import grpc
from xcache.v1 import common_pb2
from xcache.v1 import inference_pb2
from xcache.v1 import sessions_pb2 as spb

import harness
from fleet import Fleet
from talks import Talk, at_once, connect, reason

ROUNDS = int(harness.campaign("FLEET_RACE_ROUNDS", 30))
# Several sessions at once: the S3 server lets who meets another writer of a key
# wait for a second and more.
SESSIONS = 6
# Of a session, before another one is taken: contexts have an end.
TURNS = 20


class Race:
    """The races of one session after another."""

    def __init__(self, name, servers, seed):
        self.name_prefix = name
        self.clients = [connect(server.address) for server in servers]
        self.rng = random.Random(seed)
        self.count = collections.Counter()
        self.histories = {}  # by session's name

    def run(self, rounds):
        for number in range(rounds):
            if number % TURNS == 0:
                self._begin(f"{self.name_prefix}-{number}")
            self.one(number % TURNS)

    def _begin(self, name):
        self.talk = Talk(name, "You know the words.",
                         self.rng.randrange(1 << 30))
        self.clients[0].sessions.CreateSession(spb.CreateSessionRequest(
            id=name, system_prompt=self.talk.system_prompt))
        self.history = self.histories[name] = [
            (common_pb2.ROLE_SYSTEM, self.talk.system_prompt)]

    def one(self, turn):
        texts = [f"I am {i}. {self.talk.next_words()}" for i in range(2)]
        # Most races are to be lost at the store, not at the first look at it.
        params = harness.params(max_tokens=self.rng.choice([1, 4, 16]), seed=3,
                                temperature=0.8, ignore_eos=True)
        results = [None, None]
        start = threading.Barrier(2)

        def ask(i):
            deltas = []
            try:
                start.wait()
                for response in self.clients[i].inference.Chat(
                        inference_pb2.ChatRequest(
                            session_id=self.talk.name, expected_turn=turn,
                            messages=[harness.user(texts[i])], params=params),
                        timeout=60):
                    deltas.append(response.delta)
                results[i] = (response.final, "".join(deltas))
            except Exception as error:  # looked at below
                results[i] = (error, "".join(deltas))

        threads = [threading.Thread(target=ask, args=[i]) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [i for i, (end, _) in enumerate(results)
                   if isinstance(end, inference_pb2.Final)]
        assert len(winners) == 1, [end for end, _ in results]
        winner, = winners
        final, text = results[winner]
        assert final.turn == turn + 1
        assert final.durability == common_pb2.DURABILITY_SHARED
        error, heard = results[1 - winner]
        assert isinstance(error, grpc.RpcError), error
        assert error.code() == grpc.StatusCode.ABORTED, error
        assert reason(error) == "TURN_CONFLICT", error
        self.count[f"won by {winner}"] += 1
        # It had its answer, and lost the write.
        self.count["lost at the store"] += bool(heard)
        self.history += [(common_pb2.ROLE_USER, texts[winner]),
                         (common_pb2.ROLE_ASSISTANT, text)]
        for client in self.clients:
            session = client.sessions.GetSession(spb.GetSessionRequest(
                id=self.talk.name, with_messages=True))
            assert session.turn == turn + 1
            assert [(m.role, m.content) for m in session.messages] == (
                self.history)


def test_of_two_servers_one_wins(tiny_model, tmp_path, store, seed):
    rng = random.Random(seed)
    with Fleet(tiny_model, tmp_path, store=store, balanced=False) as fleet:
        servers = [fleet.add(), fleet.add()]
        races = [Race(f"race-{i}", servers if i % 2 else servers[::-1],
                      rng.randrange(1 << 30)) for i in range(SESSIONS)]
        at_once(SESSIONS, lambda race, rounds: race.run(rounds), races,
                [ROUNDS // SESSIONS + (i < ROUNDS % SESSIONS)
                 for i in range(SESSIONS)])
        count = sum((race.count for race in races), collections.Counter())
        print(f"\n{ROUNDS} races: {dict(count)}")
        assert count["won by 0"] + count["won by 1"] == ROUNDS
        assert count["lost at the store"] > 0
        # The history is the winner's at a server that took no part in it, too.
        third = connect(fleet.add().address)
        for race in races:
            for name, history in race.histories.items():
                session = third.sessions.GetSession(spb.GetSessionRequest(
                    id=name, with_messages=True))
                assert [(m.role, m.content)
                        for m in session.messages] == history
