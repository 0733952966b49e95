"""A process that plays devices: one mutual-TLS connection each, packets made beforehand.

``python -m tests.benchmarks.reporters FOLDER PORT``: FOLDER holds `ca.pem`, `device.key`, a
certificate ``NAME.pem`` for each device, and stories: ``STORY.json`` maps a device to its messages,
[channel, JSON text] each. Reads commands from its input: ``STORY pub`` waits until the broker has
every message, ``STORY ack`` until every report was acknowledged by the gateway; answers with a
line of JSON.
"""

import json
import select
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_connection

from agent.protocol import topics
from tests.benchmarks import packets
from tests.benchmarks.packets import Publish, Reader

WAIT_S = 150.0
CONNECTING = 32  # at once
REPORTS = ("events", "bench")


class Reporter:
    """One connected device."""

    def __init__(self, folder: Path, name: str, port: int) -> None:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.load_cert_chain(folder / f"{name}.pem", folder / "device.key")
        plain = create_connection(("127.0.0.1", port))
        self.name = topics.DeviceId(name)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.reader = Reader()
        self.delivered = 0
        self.acknowledged: set[tuple[int, int]] = set()
        self.socket.send(packets.connect(name, 1200))
        self.socket.send(packets.subscribe(1, topics.all_down(self.name)))
        answered = 0
        while answered < 2:
            answered += len(self.reader.feed(self.socket.recv(65_536)))
        self.socket.settimeout(0)

    def say(self, data: bytes) -> None:
        while True:
            try:
                self.socket.send(data)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                select.poll().poll(1)
            else:
                return

    def hear(self) -> None:
        while True:
            try:
                data = self.socket.recv(65_536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            assert data, f"{self.name} was disconnected"
            for packet in self.reader.feed(data):
                if not isinstance(packet, Publish):
                    self.delivered += packet.kind == packets.PUBACK
                    continue
                if packet.topic.endswith(b"/down/ack"):
                    pairs = json.loads(packet.payload)["reports"]
                    self.acknowledged.update((boot, seq) for boot, seq in pairs)
                if packet.mid:
                    self.say(packets.pubacks([packet.mid]))


class Crowd:
    """All devices of one process."""

    def __init__(self, folder: Path, port: int, names: list[str]) -> None:
        self.folder = folder
        # Each waits for the broker's delayed ACKs, together they do not.
        with ThreadPoolExecutor(CONNECTING) as pool:
            made = pool.map(lambda name: Reporter(folder, name, port), names)
            self.all = dict(zip(names, made, strict=True))
        self.poll = select.poll()
        self.by_file = {one.socket.fileno(): one for one in self.all.values()}
        for file in self.by_file:
            self.poll.register(file, select.POLLIN)

    def tell(self, story: str, until: str) -> dict[str, float]:
        """Send a story round by round, as a fleet does: everybody's first message, second ..."""
        told = json.loads((self.folder / f"{story}.json").read_text())
        rounds: list[list[tuple[Reporter, bytes]]] = []
        messages = 0
        reports: set[tuple[str, int, int]] = set()
        for name, said in told.items():
            for turn, (channel, text) in enumerate(said):
                if turn == len(rounds):
                    rounds.append([])
                topic = topics.up(topics.DeviceId(name), channel)
                packet = packets.publish(topic, text.encode(), mid=turn + 1)
                rounds[turn].append((self.all[name], packet))
                messages += 1
                if channel in REPORTS:
                    body = json.loads(text)
                    reports.add((name, body["boot"], body["seq"]))
        for one in self.all.values():
            one.delivered = 0
            one.acknowledged.clear()
        began = time.monotonic()
        for turns in rounds:
            for reporter, packet in turns:
                reporter.say(packet)
            self.hear(0)
        sent = time.monotonic() - began
        while not self._done(until, messages, len(reports)):
            assert time.monotonic() - began < WAIT_S, f"{story}: {self._counts()} of {messages}"
            self.hear(100)
        return {"sent_s": sent, "done_s": time.monotonic() - began, "messages": messages}

    def _done(self, until: str, messages: int, reports: int) -> bool:
        delivered, acknowledged = self._counts()
        if until == "pub":
            return delivered >= messages
        return delivered >= messages and acknowledged >= reports

    def _counts(self) -> tuple[int, int]:
        all_of_them = self.all.values()
        delivered = sum(one.delivered for one in all_of_them)
        return delivered, sum(len(one.acknowledged) for one in all_of_them)

    def hear(self, timeout_ms: int) -> None:
        for file, _ in self.poll.poll(timeout_ms):
            self.by_file[file].hear()


def main() -> None:
    folder = Path(sys.argv[1])
    names = json.loads((folder / "names.json").read_text())
    crowd = Crowd(folder, int(sys.argv[2]), names)
    print(json.dumps({"connected": len(names)}), flush=True)
    for line in sys.stdin:
        story, until = line.split()
        print(json.dumps(crowd.tell(story, until)), flush=True)


if __name__ == "__main__":
    main()
