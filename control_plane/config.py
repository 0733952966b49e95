"""Settings, from the environment (`FLOTILLA_*`) with working defaults for one machine."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting of every server process."""

    model_config = SettingsConfigDict(env_prefix="FLOTILLA_", extra="forbid", frozen=True)

    data: Path = Field(default=Path(".flotilla"), description="Folder for everything local.")
    database_url: str = Field(default="", description="Empty: SQLite in the data folder.")
    queue_url: str = Field(default="memory://", description="Celery's broker.")
    blobs_url: str = Field(default="", description="fsspec URL; empty: a folder under data.")
    keys: Path | None = Field(default=None, description="Key folder; empty: data/keys.")

    broker: str = Field(default="auto", description="Embedded: auto, mosquitto or amqtt.")
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = 1883
    mqtt_tls: bool = False
    mqtt_username: str = Field(default="", description="Of the gateway, where no TLS names it.")
    mqtt_password: str = ""
    mqtt_public_host: str = Field(default="", description="What devices are told; empty: host.")
    mqtt_public_port: int = 0
    gateway_name: str = Field(
        default="flotilla-gateway",
        description="Certificate name and client id; each gateway that runs needs its own.",
    )
    share_group: str = Field(default="", description="Secret group name when gateways share.")

    api_host: str = "127.0.0.1"
    api_port: int = 8080
    api_tls: bool = False
    public_url: str = Field(default="", description="What people and devices are told.")

    upload_limit_bytes: int = 8 * 1024**3
    build_time_limit_s: int = 1800
    build_memory_limit_mb: int = 8192
    build_lease_s: float = Field(default=60.0, description="A silent build worker is given up.")
    build_eval_windows: int = Field(default=16, description="Pieces of held-out text to judge by.")
    build_eval_tokens: int = Field(default=256, description="Most tokens in a piece.")
    tick_s: float = 1.0
    order_ttl_s: int = 30 * 86400
    report_memory_s: int = Field(
        default=30 * 86400, description="A report is known as a repeat for so long."
    )
    # How long after the end of its rollout; 0: for ever. docs/capacity.md says what each costs.
    trial_series_memory_s: int = Field(
        default=90 * 86400, description="Raw series of a trial; its numbers stay."
    )
    trial_memory_s: int = Field(default=730 * 86400, description="A trial with its numbers.")
    event_memory_s: int = Field(
        default=180 * 86400, description="The steps of one device in a rollout; its end stays."
    )
    decision_memory_s: int = Field(
        default=1095 * 86400, description="A decision with its inputs, for explain and simulate."
    )
    history_memory_s: int = Field(
        default=730 * 86400, description="A line of a device's history; what it runs now stays."
    )
    read_limit_s: float = Field(
        default=5.0, description="The database ends what only reads and takes longer; 0: never."
    )
    last_seen_s: float = Field(
        default=60.0,
        description="A device's signs of life are written at most this often; timeouts err by it.",
    )
    silent_after_s: float = Field(
        default=2700.0, description="No sign of life for three heartbeats of 900 s: offline."
    )
    log_level: str = "INFO"
    log_json: bool = False

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data.resolve() / 'flotilla.db'}"

    @property
    def blobs(self) -> str:
        return self.blobs_url or str(self.data.resolve() / "blobs")

    @property
    def keys_folder(self) -> Path:
        return self.keys or self.data.resolve() / "keys"

    @property
    def url(self) -> str:
        scheme = "https" if self.api_tls else "http"
        return self.public_url or f"{scheme}://{self.api_host}:{self.api_port}"
