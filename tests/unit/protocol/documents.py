"""One example of every document on the wire, every field set; the golden files are made of them."""

import msgspec

from agent.protocol import manifest as manifests
from agent.protocol.enrollment import Broker, EnrollReply, EnrollRequest
from agent.protocol.manifest import (
    File,
    Golden,
    GoldenPrompt,
    GoldenSet,
    Limits,
    Manifest,
    ModelIO,
    Runtime,
    Source,
)
from agent.protocol.messages import (
    Ack,
    ActivationWindow,
    BackOff,
    Bench,
    BundleRef,
    Command,
    Event,
    Hardware,
    Heartbeat,
    Hello,
    Metric,
    Order,
    Presence,
    State,
    TrialPolicy,
)
from agent.protocol.trust import TrustedKeys
from agent.protocol.words import Action, ExecutionState, Reason, Verdict

NEW, OLD = "a" * 64, "b" * 64
PEM = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
HARDWARE = Hardware(
    arch="aarch64",
    cpu="Cortex-A76",
    flags=["asimd", "asimddp"],
    cores=4,
    memory_mb=8192,
    disk_free_mb=20480,
    os="linux",
    board="Raspberry Pi 5 Model B",
    runtimes=["onnxruntime 1.31.1"],
)
DOCUMENTS = {
    "hello": Hello(
        boot=3,
        generation=7,
        digest=OLD,
        last_known_good=OLD,
        agent="0.1.0",
        capabilities=["trial.v1"],
        hardware=HARDWARE,
        blueprint="arm64-board",
    ),
    "presence": Presence(online=True, connection=12),
    "state": State(
        boot=3,
        seq=41,
        generation=8,
        digest=OLD,
        previous=NEW,
        last_known_good=OLD,
        candidate=NEW,
        state=ExecutionState.BENCHMARKING,
        reason=Reason.NONE,
    ),
    "event": Event(
        boot=3,
        seq=42,
        generation=8,
        execution="ex-1",
        state=ExecutionState.ROLLED_BACK,
        reason=Reason.TRIAL_REGRESSION,
        digest=OLD,
        at=1795300000.25,
    ),
    "bench": Bench(
        boot=3,
        seq=43,
        generation=8,
        execution="ex-1",
        candidate=NEW,
        incumbent=OLD,
        verdict=Verdict.REGRESSION,
        metrics=[
            Metric(
                name="token_ms",
                unit="ms",
                candidate=1.5,
                incumbent=0.75,
                ratio=2.0,
                ci_low=1.9,
                ci_high=2.1,
                tolerance=0.1,
                limit=4.0,
                n=5,
                verdict=Verdict.REGRESSION,
            )
        ],
        seconds=6.5,
        blocks={"looks": [5.0], "ratio.token_ms": [2.0, 1.9, 2.1, 2.0, 2.0]},
    ),
    "heartbeat": Heartbeat(boot=3, generation=8, digest=OLD, uptime_s=3600, healthy=True),
    "order": Order(
        order="or-1",
        device="edge-7",
        generation=8,
        issued=1795300000,
        expires=1795900000,
        action=Action.RUN,
        rollout="support-slm-1.1.0",
        execution="ex-1",
        bundle=BundleRef(NEW, "support-slm", "1.1.0", 2, 6100000),
        trial=TrialPolicy(tolerances={"token_ms": 0.1}),
        soak_s=30.0,
        max_tries=3,
    ),
    "order_in_a_window": Order(
        order="or-2",
        device="edge-7",
        generation=9,
        issued=1795300000,
        expires=1795900000,
        action=Action.RUN,
        rollout="support-slm-1.1.0",
        execution="ex-1",
        bundle=BundleRef(NEW, "support-slm", "1.1.0", 2, 6100000),
        trial=TrialPolicy(tolerances={"token_ms": 0.1}),
        soak_s=30.0,
        max_tries=3,
        activate=ActivationWindow(1795311000, 1795318200),
    ),
    "ack": Ack(reports=[(3, 41), (3, 42)]),
    "command": Command(id="co-1", name="hello", expires=1795300060),
    "back_off": BackOff(id="co-2", expires=1795300060, seconds=45),
    "enroll_request": EnrollRequest(
        token=f"flt1.{'c' * 64}.abcd1234.{'s' * 32}",
        csr="-----BEGIN CERTIFICATE REQUEST-----\nMIH\n-----END CERTIFICATE REQUEST-----\n",
        hardware=HARDWARE,
        blueprint="arm64-board",
        labels={"site": "vie"},
    ),
    "enroll_reply": EnrollReply(
        device="edge-7",
        certificate="-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        ca="-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n",
        secret="s" * 43,
        broker=Broker("fleet.example.org", 8883, tls=True),
        trust=TrustedKeys(bundle={"k1": PEM}, order={"k2": PEM}),
    ),
    "trusted_keys": TrustedKeys(bundle={"k1": PEM}, order={"k2": PEM}),
    "golden_set": GoldenSet([GoldenPrompt("p01", [5, 9, 2], [9, 2, 0])]),
    "manifest": Manifest(
        model="support-slm",
        version="1.1.0",
        release=2,
        blueprint="arm64-board",
        recipe="int8-dynamic",
        files=[File("model.onnx", 1600000, "d" * 64), File("golden.json", 4096, "e" * 64)],
        runtime=Runtime(),
        io=ModelIO("causal-lm", "model.onnx", 2048, 256, 0, 3, 3, 32),
        limits=Limits(first_token_ms=50.0, token_ms=8.0, memory_mb=256.0, load_ms=2000.0),
        golden=Golden("golden.json", 0.9),
        quality={"kl_mean": 0.0009, "top1_agreement": 0.97},
        source=Source("f" * 64, 6018264, {"onnxruntime": "1.31.1"}),
    ),
}


def encoded(name: str) -> bytes:
    """Return an example's bytes on the wire."""
    document = DOCUMENTS[name]
    if isinstance(document, Manifest):
        return manifests.encode(document)
    return msgspec.json.encode(document)
