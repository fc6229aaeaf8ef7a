"""Serving on Ray: the server's own application as the ingress of Ray Serve, the models in replicas behind it.

A front is `create_app` as everywhere, over a service that has no model and hands each call to a replica. A replica is
the server's service of one model, in a process of its own, with its own batches; each model has its own replicas, and
Ray starts and stops them by the tokens that wait. What a replica takes with it when it dies is asked of another one
once, and refused as unavailable after that, in the form of the caller's dialect.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import queue
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import quote

from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from starlette.middleware import Middleware

from secondpass.checkpoint.checkpoint import MULTILINGUAL
from secondpass.errors import SecondpassError
from secondpass.scale.ray import Actors, import_ray, start_ray
from secondpass.scoring.open import is_auto
from secondpass.server import dialects
from secondpass.server.api import Scope, Send, send_reply
from secondpass.server.app import create_app
from secondpass.server.batching import Batch
from secondpass.server.body import Receive
from secondpass.server.logs import set_up_logs
from secondpass.server.metrics import MULTIPROCESS_DIR
from secondpass.server.registry import OnBatch, find_name
from secondpass.server.security import Asgi, read_keys
from secondpass.server.service import CallContext, Health, Service, card_of, too_late
from secondpass.server.settings import PREFIX, ModelSource, Settings, SettingsError, load_settings, open_socket
from secondpass.server.workers import OK, check_tls
from secondpass.wire.calls import Answer, Call, EmbedCall, Fault, ModelCard, Refusal, ServerCard

log = logging.getLogger(__name__)

NAME = "secondpass"  # of the application
# One replica more where each has more to do than this, or is at work for more of the time.
QUEUE_S, BUSY = 0.5, 0.8
UPSCALE_S, DOWNSCALE_S, LOOK_BACK_S = 5.0, 300.0, 15.0
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S, DEAD_S = (
    5.0,
    10.0,
    30.0,
)  # an engine that is not ready for so long is not opened anew any more
HOLD_S = 0.5
TRIES = 2  # a call that ends processes ends no more than these
MARGIN_S = 2.0  # a replica's own refusal of what is late comes first
POLL_S, STALE_S = 2.0, 60.0
LEARN_S = 60.0


Load: TypeAlias = "tuple[int, int, int]"  # waiting requests, waiting tokens, restarts


def _sum(loads: Sequence[Load]) -> Load:
    return sum(load[0] for load in loads), sum(load[1] for load in loads), sum(load[2] for load in loads)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a replica says to a call, and of itself: what waits there, and its batches since it last spoke.

    By model: beside one that is "auto" there is the multilingual one.
    """

    answer: Answer | Refusal
    replica: str
    loads: Mapping[str, Load]
    batches: tuple[tuple[str, Batch], ...]


class Replica:
    """The service of one model, as Ray Serve calls it."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logs(log_format=settings.log_format, level=settings.log_level)
        self._name = str(import_ray().get_runtime_context().get_actor_id())
        self._batches: list[tuple[str, Batch]] = []
        self._busy_s = 0.0
        self._service = Service(settings, on_batch=self._observe)
        await self._service.start()
        self._was_ready = self._recorded = time.monotonic()

    def _observe(self, model: str, batch: Batch) -> None:
        self._batches.append((model, batch))
        self._busy_s += batch.seconds

    async def cards(self) -> list[ModelCard]:
        """Of the model, and of its companion."""
        return self._service.models()

    async def answer(self, call: Call, context: CallContext, seconds: float | None) -> Answered:
        """The answer or the refusal. seconds are left for it; the context's deadline is of another clock."""
        deadline = None if seconds is None else time.monotonic() + seconds
        answer: Answer | Refusal
        try:
            answer = await self._service.answer(call, replace(context, deadline=deadline))
        except Refusal as refusal:
            answer = refusal
            if refusal.fault is Fault.unavailable:
                await asyncio.sleep(HOLD_S)  # what refuses at once has the least to do, and would get all calls
        batches, self._batches = self._batches, []
        loads: dict[str, Load] = {
            name: (waiting, tokens, again) for name, waiting, tokens, again in self._service.loads()
        }
        return Answered(answer=answer, replica=self._name, loads=loads, batches=tuple(batches))

    def check_health(self) -> None:
        """End the process where the engine is stuck, or could not be opened anew: Ray replaces the replica.

        To an error Ray would listen at the third time alone, and then wait for calls that are never answered.
        """
        found, now = self._service.health(), time.monotonic()
        if found.is_ready:
            self._was_ready = now
        if not found.is_alive or now - self._was_ready > DEAD_S:
            log.error("the engine is dead: %s", found.models)
            os._exit(1)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Seconds of work that wait, and the share of time that the engine was at work since the last call."""
        now = time.monotonic()
        busy, elapsed = self._busy_s, max(now - self._recorded, 1e-3)
        self._busy_s, self._recorded = 0.0, now
        statuses = [hosted.batches.status() for hosted in self._service.registry.all()]
        queued_s = sum(status.waiting_s for status in statuses)
        return {"queued_s": queued_s, "busy": min(busy / elapsed, 1.0)}

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be made
            self._service.close()


def wanted_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """How many replicas have no more than QUEUE_S waiting each and are at work for BUSY of the time, for Ray."""
    queued_s = sum((context.aggregated_metrics or {}).get("queued_s", {}).values())
    busy = sum((context.aggregated_metrics or {}).get("busy", {}).values())
    return max(math.ceil(queued_s / QUEUE_S), math.ceil(busy / BUSY), 1), {}


@dataclass
class _Model:
    """A model as the front sees it: the replicas' handle, and what they said of themselves last, and when."""

    source: ModelSource
    handle: Any
    cards: list[ModelCard] = field(default_factory=list)  # its own, and its companion's
    num_replicas: int = 0
    loads: dict[str, tuple[float, Mapping[str, Load]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [card.name for card in self.cards] or [self.source.name]

    def load(self, name: str) -> Load:
        """Of all replicas; one that has not spoken for long is gone."""
        recent = time.monotonic() - STALE_S
        return _sum([loads[name] for at, loads in self.loads.values() if at > recent and name in loads])


class ReplicaService:
    """A service whose calls are answered by replicas. handles are Ray's, by the names of the models."""

    def __init__(self, settings: Settings, handles: Mapping[str, Any]) -> None:
        self.settings = settings
        self.on_batch: OnBatch | None = None
        self._models = {source.name: _Model(source, handles[source.name]) for source in settings.models}
        self._watching: asyncio.Task[None] | None = None
        self._is_known = asyncio.Event()

    async def start(self) -> None:
        """Return when each model has said what it is, or after LEARN_S: its calls are refused as unavailable then.

        In an update the front before this one answers until then.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._is_known.wait(), LEARN_S)

    def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if MULTIPROCESS_DIR in os.environ:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]

    async def answer(self, call: Call, context: CallContext) -> Answer:
        served = self._served()
        kinds = {name: model.source.kind for name, model in served.items()}
        companions = [name for name in served if name not in self._models]
        kind = "embedder" if isinstance(call, EmbedCall) else "reranker"
        name = find_name(kinds, call.model or "", kind, self.settings, companions=companions)
        model = served[name]
        if not model.cards:
            raise Refusal(Fault.unavailable, "the server is loading its models", retry_after=2.0)
        refusal = Refusal(Fault.unavailable, "the replica ended that was at work on this", retry_after=1.0)
        for _ in range(TRIES):
            said = await self._asked(model, replace(call, model=name), context)
            if said is None:
                continue
            if not isinstance(said.answer, Refusal):
                return said.answer
            if said.answer.fault is not Fault.unavailable:
                raise said.answer
            refusal = said.answer
        raise refusal

    async def _asked(self, model: _Model, call: Call, context: CallContext) -> Answered | None:
        """What a replica says; None where it died meanwhile. Raises Refusal where none has room or time."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        seconds = None if context.deadline is None else max(context.deadline - time.monotonic(), 0.0)
        timeout = None if seconds is None else seconds + MARGIN_S
        try:
            said: Answered = await asyncio.wait_for(model.handle.answer.remote(call, context, seconds), timeout)
        except BackPressureError as error:
            raise Refusal(Fault.overloaded, "the queue is full", retry_after=1.0) from error
        except asyncio.TimeoutError as error:
            if not model.num_replicas:
                raise Refusal(Fault.unavailable, "no replica of the model is running", retry_after=5.0) from error
            raise too_late() from error
        except RayTaskError:
            raise  # a fault of the replica's code
        except (RayError, RayServeException) as error:
            log.warning("a replica ended with a call: %s", str(error).partition("\n")[0])
            return None
        model.loads[said.replica] = (time.monotonic(), said.loads)
        if self.on_batch is not None:
            for name, batch in said.batches:
                self.on_batch(name, batch)
        return said

    def _served(self) -> dict[str, _Model]:
        """By name, companions last."""
        others = {name: model for model in self._models.values() for name in model.names}
        return self._models | {name: model for name, model in others.items() if name not in self._models}

    def models(self) -> list[ModelCard]:
        return [card for name, model in self._served().items() for card in model.cards if card.name == name]

    def card(self) -> ServerCard:
        return card_of(self)

    def loads(self) -> list[tuple[str, int, int, int]]:
        return [(name, *model.load(name)) for name, model in self._served().items()]

    def health(self) -> Health:
        """Ready when every model has a replica."""
        is_ready = all(model.cards and model.num_replicas for model in self._models.values())
        models = {name: _said_of(model, name) for name, model in self._served().items()}
        return Health(is_ready=is_ready, is_alive=True, models=models)

    async def _watch(self) -> None:
        """Count the replicas, and learn what each model is, again and again."""
        from ray.exceptions import RayError

        while True:
            try:
                running = await asyncio.to_thread(_running)
                for name, model in self._models.items():
                    model.num_replicas = running.get(deployment_name(name), 0)
                    if model.num_replicas and not model.cards:
                        model.cards = await model.handle.cards.remote()
                if all(model.cards for model in self._models.values()):
                    self._is_known.set()
            except RayError as error:  # a replica that died, or a controller that is being restarted
                log.warning("the replicas cannot be counted: %s", error)
            await asyncio.sleep(POLL_S if self._is_known.is_set() else HOLD_S)


def _said_of(model: _Model, name: str) -> dict[str, object]:
    requests, tokens, restarts = model.load(name)
    state = "starting" if not model.cards else "ready" if model.num_replicas else "restarting"
    facts = {"waiting_requests": requests, "waiting_tokens": tokens, "restarts": restarts, "last_error": None}
    return {"state": state, "replicas": model.num_replicas, **facts}


def _running() -> dict[str, int]:
    """Running replicas by deployment."""
    from ray import serve

    return {
        name: status.replica_states.get("RUNNING", 0)
        for application, found in serve.status().applications.items()
        if application == NAME or application.startswith(NAME + "-")
        for name, status in found.deployments.items()
    }


def deployment_name(model: str) -> str:
    """Ray's name for a model's replicas, which is also that of log files."""
    return "model-" + quote(model, safe="")


def _apart(model: str) -> str:
    """The application of a model's own."""
    return f"{NAME}-{deployment_name(model)}"


def application(settings: Settings, keys: tuple[str, ...] | None, actors: Actors) -> Any:
    """What Ray Serve runs under NAME. keys None: of the key file and the environment where the front runs.

    Raises SettingsError for settings that hold for one process.
    """
    return _front(settings, keys, actors, lambda model: NAME).bind(*_engines(settings, actors).values())


def applications(settings: Settings, keys: tuple[str, ...], actors: Actors) -> dict[str, Any]:
    """The same as several applications by name, the front's being NAME, so that it can be ended before the models.

    Of one application Ray stops all deployments at once, and what the front has yet to ask finds no model any more.
    """
    engines = {_apart(model): engine for model, engine in _engines(settings, actors).items()}
    return {NAME: _front(settings, keys, actors, _apart).bind(), **engines}


def _engines(settings: Settings, actors: Actors) -> dict[str, Any]:
    """Ray's deployment of each model."""
    from ray import serve

    if settings.allow_model_changes:
        raise SettingsError("allow_model_changes is set; on Ray all models are named at the start")
    engine = serve.deployment(Replica).options(
        ray_actor_options={"num_cpus": actors.cpus, "num_gpus": actors.gpus},
        max_ongoing_requests=settings.max_queue_requests + 1,  # the batcher's own refusal comes first
        max_queued_requests=settings.max_queue_requests,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.grace_s + MARGIN_S,
        max_constructor_retry_count=3,
        logging_config={"enable_access_log": False},
        **_number(actors),
    )
    return {
        each.name: engine.options(name=deployment_name(each.name)).bind(_alone(settings, each))
        for each in settings.models
    }


def _front(
    settings: Settings, keys: tuple[str, ...] | None, actors: Actors, application_of: Callable[[str], str]
) -> Any:
    """Ray's deployment of the front. application_of says where a model's replicas are."""
    from ray import serve

    room = settings.max_queue_requests * actors.max_size
    whole = replace(settings, max_queue_requests=room, max_queue_tokens=settings.max_queue_tokens * actors.max_size)
    places = {each.name: (deployment_name(each.name), application_of(each.name)) for each in settings.models}

    def build_front() -> Starlette:
        if folder := os.environ.get(MULTIPROCESS_DIR):
            os.makedirs(folder, exist_ok=True)
        set_up_logs(log_format=settings.log_format, level=settings.log_level)
        handles = {model: serve.get_deployment_handle(*place) for model, place in places.items()}
        return create_app(ReplicaService(whole, handles), whole, keys)

    return serve.deployment(serve.ingress(build_front)()).options(
        name="front",
        num_replicas=settings.workers,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": _metrics_folder(settings)}},
        max_ongoing_requests=2 * room + settings.max_connections,  # the server's own limits come first
        graceful_shutdown_timeout_s=settings.grace_s + MARGIN_S,
        max_surge_percent=100,  # an update waits for the new one
        logging_config={"enable_access_log": False},
    )


def _metrics_folder(settings: Settings) -> dict[str, str]:
    """Where several fronts of a machine keep their figures together."""
    folder = os.path.join(tempfile.gettempdir(), f"secondpass-metrics-{uuid.uuid4().hex}")
    return {MULTIPROCESS_DIR: folder} if settings.workers > 1 else {}


def _number(actors: Actors) -> dict[str, Any]:
    if actors.min_size == actors.max_size:
        return {"num_replicas": actors.min_size}
    scaling = {
        "min_replicas": actors.min_size,
        "max_replicas": actors.max_size,
        "upscale_delay_s": UPSCALE_S,
        "downscale_delay_s": DOWNSCALE_S,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {"policy_function": wanted_replicas},
    }
    return {"autoscaling_config": scaling}


def _alone(settings: Settings, source: ModelSource) -> Settings:
    """What a replica of one model is told."""
    named = [(other.path, other.kind) for other in settings.models if other.name == MULTILINGUAL]
    is_taken = named not in ([], [(MULTILINGUAL, "reranker")])
    path = "default" if is_auto(source.path) and is_taken else source.path  # a companion of another's name is none
    calibrated = replace(source, path=path, calibration=settings.calibration_of(source))
    aliases = {alias: name for alias, name in settings.aliases.items() if name == source.name}
    return replace(settings, models=(calibrated,), calibration=(), aliases=aliases, index=None, mcp=False)


def build(arguments: Mapping[str, str]) -> Any:
    """The application, for KubeRay and `serve run secondpass.scale.serving:build config=FILE replicas=2..8 gpus=1`.

    Keys are read where the front runs. Raises SettingsError.
    """
    known = ("config", "replicas", "cpus", "gpus")
    if unknown := [name for name in arguments if name not in known]:
        raise SettingsError(f"{unknown[0]} is no argument; there are {', '.join(known)}")
    settings = load_settings({}, os.environ, arguments.get("config"))
    cpus, gpus = (float(arguments.get(name, usual)) for name, usual in (("cpus", 1.0), ("gpus", 0.0)))
    return application(settings, None, Actors.of(str(arguments.get("replicas", "1")), cpus=cpus, gpus=gpus))


def run(
    settings: Settings, keys: tuple[str, ...], actors: Actors, address: str | None, on_ready: Callable[[int], None]
) -> int:
    """Serve on Ray; the exit code. on_ready is called with the port once requests are answered.

    A Ray that is started here ends with the command: on SIGTERM and SIGINT, after what was accepted; SIGHUP reads the
    keys anew. A cluster at `address` keeps the application, and what was there is replaced replica by replica.
    Raises SecondpassError where it cannot be started.
    """
    check_tls(settings)
    if address is None:
        with open_socket(settings.host, settings.port) as free:
            settings = replace(settings, port=free.getsockname()[1])
    ray = start_ray(address)
    _check_resources(ray.cluster_resources(), settings, actors)
    from ray import serve

    logging.getLogger("ray.serve").setLevel("WARNING")
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": settings.host.strip("[]"),
            "port": settings.port,
            "keep_alive_timeout_s": int(settings.keep_alive_s),
            "ssl_certfile": settings.tls_certificate,
            "ssl_keyfile": settings.tls_key,
        },
        logging_config={"enable_access_log": False},
    )
    _deploy(applications(settings, keys, actors) if address is None else {NAME: application(settings, keys, actors)})
    on_ready(settings.port)
    if address is not None:
        return OK
    for number in _signals():
        if number != signal.SIGHUP:
            break
        try:
            read = read_keys(settings, os.environ.get(PREFIX + "API_KEYS"))
            _deploy({NAME: applications(settings, read, actors)[NAME]})
        except SecondpassError as error:
            log.error("it stays as it was: %s", error)
    serve.delete(NAME)  # returns when the front has answered, for at most grace_s; no call is with a model then
    ray.shutdown()
    return OK


def _deploy(made: Mapping[str, Any]) -> None:
    """Run the applications, in place of what ran. Raises SecondpassError where they do not start."""
    from ray import serve

    try:
        serve.run_many([serve.RunTarget(each, name, "/" if name == NAME else None) for name, each in made.items()])
    except RuntimeError as error:  # Ray's word for a replica that cannot be made, with its traceback
        raise SecondpassError(f"Ray could not start it: {str(error).strip().splitlines()[-1]}") from error


def _check_resources(found: Mapping[str, float], settings: Settings, actors: Actors) -> None:
    """Raises SecondpassError where the fewest replicas find no place: Ray would wait for more machines."""
    number = actors.min_size * len(settings.models)
    for name, each in (("CPU", actors.cpus), ("GPU", actors.gpus)):
        if number * each > found.get(name, 0.0):
            there = f"{found.get(name, 0.0):g}"
            raise SecondpassError(
                f"{number} replicas of {each:g} {name} need {number * each:g}, and Ray has {there}; give fewer "
                f"replicas or a smaller --{name.lower()}s"
            )


def _signals() -> Iterator[int]:
    """What the process is told, one after the other."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: told.put(number))
    while True:
        yield told.get()


class RefusedInDialect:
    """Around Ray's proxy: its own answers, where no front is or one dies, as refusals in the form of the dialect."""

    def __init__(self, app: Asgi) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own addresses
            await self.app(scope, receive, send)
            return
        is_answered = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                ids = [pair for pair in message["headers"] if pair[0].lower() == b"x-request-id"]
                is_answered = len(ids) > 1  # the proxy adds one; the application has one of its own
                message["headers"] = [pair for pair in message["headers"] if pair not in ids] + ids[:1]
            if is_answered:
                await send(message)

        await self.app(scope, receive, sending)
        if not is_answered:
            refusal = Refusal(Fault.unavailable, "the server is being started, stopped or replaced", retry_after=1.0)
            request_id = uuid.uuid4().hex
            dialect = dialects.usual(scope["path"], scope["method"])
            await send_reply(send, dialect.refuse(refusal, request_id), request_id)


def around_proxy() -> list[Middleware]:
    """For RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which `start_ray` sets."""
    return [Middleware(RefusedInDialect)]
