"""Health, readiness and metrics."""

import socket
from collections.abc import Callable, Iterator

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from control_plane.bootstrap import Application
from control_plane.services import inventory

BROKER_TIMEOUT_S = 0.5
_NOWHERE = "0" * 64


class FleetCollector(Collector):
    """The fleet in numbers, read when asked; labels are states and blueprints, never devices."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._application.reading("metrics") as scope:
            fleet = inventory.fleet_summary(scope)
        yield GaugeMetricFamily("flotilla_devices", "Enrolled devices.", fleet.total)
        yield GaugeMetricFamily("flotilla_devices_online", "Connected devices.", fleet.online)
        yield GaugeMetricFamily("flotilla_devices_healthy", "Healthy devices.", fleet.healthy)
        by_blueprint = GaugeMetricFamily(
            "flotilla_devices_by_blueprint", "Devices of each blueprint.", labels=["blueprint"]
        )
        for name, count in fleet.by_blueprint.items():
            by_blueprint.add_metric([name or "none"], count)
        yield by_blueprint

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Name nothing up front: registering must not need a database."""
        return iter(())


def router(application: Application, registry: CollectorRegistry) -> APIRouter:
    """Return the routes for whoever watches this process."""
    routes = APIRouter(tags=["health"])
    registry.register(FleetCollector(application))

    @routes.get("/healthz")
    def healthz() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz() -> Response:
        """Say whether requests can be served.

        The broker is only reported: without it the database still takes orders, and devices get
        them later.
        """
        checks = {
            "database": _check(application.database.ping),
            "blobs": _check(lambda: application.blobs.exists(_NOWHERE)),
            "broker": _check(lambda: _connect(application)),
        }
        ready = checks["database"] == checks["blobs"] == "ok"
        body = {"status": "ok" if ready else "unavailable", "checks": checks}
        return JSONResponse(body, 200 if ready else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _check(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"failed: {type(error).__name__}"
    return "ok"


def _connect(application: Application) -> None:
    settings = application.settings
    address = (settings.mqtt_host, settings.mqtt_port)
    with socket.create_connection(address, timeout=BROKER_TIMEOUT_S):
        pass
