"""A fleet under test: one object store, servers that come and go, Envoy before
them. No tests here."""

import contextlib
import itertools
import os
import pathlib
import shutil

import harness
from balancer import Balancer
from fault_proxy import FaultProxy
from object_server import BUCKET, REGION, ObjectServer

# A test's credentials, not those of whoever runs it.
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]


class Replica:
    """One server of a fleet, at one address, with a disk of its own; it may be
    killed and started anew."""

    def __init__(self, model, folder, store_url, prefix, flags=(), env=None,
                 credentials=("replica", "replicas-secret"), policy="strict"):
        self.model = model
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.address = f"127.0.0.1:{harness.free_port()}"
        self.credentials_file = self.folder / "credentials"
        self.write_credentials(*credentials)
        self.env = env or {}
        self.flags = [
            "--listen", self.address, "--shared", f"s3://{BUCKET}/{prefix}",
            "--shared-endpoint", store_url, "--shared-region", REGION,
            "--shared-credentials-file", self.credentials_file,
            "--shared-policy", policy, *flags]
        self.server = None
        self.starts = 0

    def write_credentials(self, key_id, secret):
        """All at once, as a mounted secret changes."""
        new = self.credentials_file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(f"[default]\naws_access_key_id = {key_id}\n"
                       f"aws_secret_access_key = {secret}\n")
        new.rename(self.credentials_file)

    @property
    def name(self):
        return self.folder.name

    @property
    def is_up(self):
        return (self.server is not None and
                self.server.process.poll() is None)

    def start(self):
        self.starts += 1
        self.server = harness.Server(self.model, self.folder, *self.flags,
                                     env=self.env)
        return self

    def client(self):
        return self.server.client()

    def kill(self):
        """kill -9, and waits."""
        if self.server is not None:
            self.server.close_channels()
            self.server.kill()

    def drain(self):
        self.server.stop()

    def lose_disk(self):
        """Its machine is gone, with all that was on it."""
        assert not self.is_up
        shutil.rmtree(self.folder / "store")


class Fleet(contextlib.ExitStack):
    """Use as a context manager; what `with` gives has its store started, and
    no replica."""

    numbers = itertools.count()

    def __init__(self, model, folder, policy="strict", store=None,
                 balanced=True, proxied=False, flags=()):
        super().__init__()
        self.model = model
        self.folder = pathlib.Path(folder)
        self.policy = policy
        # Others may have the store as well.
        self.prefix = f"fleet-{next(self.numbers)}/"
        self.proxied = proxied
        self.flags = flags
        self.replicas = []
        self.proxies = {}  # by replica's name
        self.made = 0
        self.store = store
        self._is_balanced = balanced
        self.balancer = None

    def __enter__(self):
        super().__enter__()
        try:
            if self.store is None:
                self.store = self.enter_context(
                    ObjectServer(self.folder / "objects"))
            self.store.let_in("replica", "replicas-secret")
            if self._is_balanced:
                self.balancer = self.enter_context(
                    Balancer(self.folder / "balancer"))
        except BaseException:
            self.close()
            raise
        return self

    def new_replica(self, name=None, **more):
        """Not started, and not known to the balancer."""
        self.made += 1
        name = name or f"replica{self.made}"
        url = self.store.url
        if self.proxied:
            self.proxies[name] = self.enter_context(
                FaultProxy(self.store.port))
            url = self.proxies[name].url
        more.setdefault("flags", self.flags)
        replica = Replica(self.model, self.folder / name, url, self.prefix,
                          policy=self.policy, **more)
        self.callback(replica.kill)
        self.replicas.append(replica)
        return replica

    def add(self, **more):
        """A replica that serves."""
        replica = self.new_replica(**more).start()
        if self.balancer is not None:
            self.balancer.add(replica.address)
        return replica

    def retire(self, replica):
        """For good, as a StatefulSet scales down: no new calls, then SIGTERM."""
        self.balancer.remove(replica.address)
        self.replicas.remove(replica)
        replica.drain()

    def objects(self):
        """Key below the prefix -> bytes, of what the fleet has stored."""
        return {key.removeprefix(self.prefix): size for key, size in
                self.store.objects(self.prefix).items()}
