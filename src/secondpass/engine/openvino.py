"""The openvino engine: exported encoder graphs (OpenVINO IR or ONNX) on the CPU, without torch.

One graph with dynamic shapes is compiled once. Rows are sorted by length and padded to one of few shapes; several
batches are on their way at a time.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secondpass.checkpoint.checkpoint import Checkpoint
from secondpass.checkpoint.graph import check_graph, import_openvino
from secondpass.engine.compiled import Compiled, kept_or_compiled
from secondpass.engine.cpu.threads import cpu_quota, give_back, num_cores, processor_of_kernel
from secondpass.engine.engine import TURN_TOKENS, EngineFacts, Turns
from secondpass.errors import CheckpointError, EngineError
from secondpass.packed import rung
from secondpass.text.families import counted_after
from secondpass.types import Advance, Row, Run

# What one more call of a graph costs, in tokens: 1 ms, the time of 16 tokens of a MiniLM (2 cores, AVX512-BF16).
CALL_TOKENS = 16
# OpenVINO keeps what it made for each shape that it has seen, 1 to 2 MB, and for up to 5,000 of them. So there are
# few shapes: these numbers of rows, and the lengths of `rung`.
ROWS = (64, 16, 4, 1)


def plan_padded(lengths: Sequence[int], *, token_budget: int, num_parts: int = 1) -> list[list[int]]:
    """Batches of indices into `lengths`, longest first, each of one of ROWS many rows.

    A batch has at most `token_budget` tokens, padding included (or one row), and its rows are no shorter than is
    cheaper than more calls. Where there are enough rows, there are at least `num_parts` batches.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, it must be at least 1")
    budget = min(token_budget, -(-sum(map(rung, lengths)) // num_parts))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    while order:
        length = rung(lengths[order[0]])
        # as much as is padded more than by itself is what the calls cost that are saved
        count = next(
            n
            for n in ROWS
            if n == 1
            or (
                n <= len(order)
                and n * length <= budget
                and sum(length - rung(lengths[i]) for i in order[:n]) <= (n - 1) * CALL_TOKENS
            )
        )
        batches.append(order[:count])
        order = order[count:]
    return batches


def padded(rows: Sequence[Row], names: Collection[str], pad_id: int, longest: int) -> dict[str, NDArray[np.int64]]:
    """Of input_ids, attention_mask and token_type_ids those in `names`, each (N, L); L is at most `longest`."""
    length = min(rung(max(len(row) for row in rows)), longest)
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row.ids
        mask[index, : len(row)] = 1
        types[index, row.passage[0] : len(row)] = row.is_typed
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: values for name, values in every.items() if name in names}


# dtype -> OpenVINO's hint. "int8" computes in int8 what it can and the rest as "auto" does.
PRECISIONS = {"auto": None, "int8": None, "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "bf16": "bf16"}
NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# Requests at a time, each on its share of the cores, so that no thread waits for another after each layer.
MAX_STREAMS = 4
# Up to here int8 matrices are unpacked to floats once, when the graph is opened, and not in every call.
MAX_UNPACKED_BYTES = 64 << 20
# Activations become int8 as they come, with one scale for so many of them; 0: not at all.
_GROUP_SIZE, _NO_GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a graph is run: with its matrices unpacked or as they are, and OpenVINO's settings."""

    dtype: str
    unpacks: bool
    settings: Mapping[str, Any]
    reason: str


# The processes in which graphs that were let go of had been compiled. OpenVINO keeps their threads for the next one,
# and a forked process would wait for them for ever.
_LET_GO: set[int] = set()


def compile_graph(file: Path, dtype: str, output: str | None = None) -> Compiled:
    """The graph, of several outputs with `output` alone, or the first: what only others need is not computed.

    Raises CheckpointError for what OpenVINO cannot run, ValueError for a precision that there is not, EngineError in
    a forked process where that would hang.
    """
    if _LET_GO - {os.getpid()}:
        raise EngineError(
            "a model was closed in the process that this one was forked from, and OpenVINO would wait for its "
            "threads, which do not survive that; start the process with multiprocessing.get_context('spawn'), or "
            "close no model before the fork"
        )
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; the openvino engine takes {', '.join(map(repr, PRECISIONS))}")
    check_graph(file)
    core = _core_of(os.getpid())
    try:
        native = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        asked = {"dtype": dtype, "output": output, "native": native, "cores": num_cores(), **_threads()}
        compiled = kept_or_compiled(core, file, asked, lambda: _compiled(core, file, dtype, output))
    except (RuntimeError, UnicodeDecodeError) as error:  # a message may cut a letter in two
        raise CheckpointError(f"{file}: not a graph that OpenVINO can run: {error}") from error
    weakref.finalize(compiled, _LET_GO.add, os.getpid()).atexit = False
    return compiled


@cache
def _core_of(process: int) -> Any:
    """OpenVINO itself, once in a process and never given up.

    Its processor plugin gives the thread that makes it another stack for signals, and unmaps that when it goes. Where
    another thread lets go of the last model, the first one would die of its next signal.
    """
    return import_openvino().Core()


def _compiled(core: Any, file: Path, dtype: str, output: str | None) -> Compiled:
    graph = core.read_model(file)
    kept = graph.output(output) if output else graph.output(0)
    for result in graph.get_results():
        if result.output(0) != kept:
            graph.remove_result(result)
    plan = _plan(core, graph, dtype, file.name)
    if plan.unpacks:
        _unpack(graph)
    model = core.compile_model(graph, "CPU", dict(plan.settings))
    streams, threads = (int(model.get_property(name)) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
    reason = f"{file.name} has {plan.reason}, {streams} at a time on {threads} threads"
    return Compiled(model=model, settings=plan.settings, dtype=plan.dtype, reason=reason)


def _plan(core: Any, graph: Any, dtype: str, name: str) -> _Plan:
    matrices = [node.output(0) for node in _matrices(graph)]
    hint = PRECISIONS[dtype] or _fastest_floats(core)
    floats = NAMES.get(hint, hint)
    settings = {"INFERENCE_PRECISION_HINT": hint, **_threads()}
    one = settings | {"PERFORMANCE_HINT": "LATENCY"}
    if any(_is_int8(node) for node in graph.get_ops()):
        return _Plan(dtype="int8", unpacks=False, settings=one, reason="int8 weights and activations")
    if dtype == "int8" and not matrices:
        raise ValueError(f"dtype is 'int8', but {name} has float weights; `secondpass export` makes int8 ones")
    # where bfloat16 is not native, VNNI multiplies bytes twice as fast as floats; with AVX2 alone OpenVINO takes
    # longer over int8 matrices than over floats (100 passages, MiniLM-L6, AMD Zen 3: 3.99 and 3.03 s)
    if dtype == "int8" or (dtype == "auto" and matrices and floats == "float32" and _has_vnni()):
        return _Plan(dtype="int8", unpacks=False, settings=one, reason="int8 weights, int8 products")
    why = "as asked" if dtype != "auto" else "the fastest here"
    exact = {_GROUP_SIZE: _NO_GROUPS} if dtype != "auto" else {}
    if sum(output.get_shape()[0] * output.get_shape()[1] for output in matrices) > MAX_UNPACKED_BYTES:
        return _Plan(dtype=floats, unpacks=False, settings=one | exact, reason=f"int8 weights, {floats} {why}")
    # two threads divide an operator without waiting long: one candidate takes 43 ms and not 60 (AMD Zen 3, float32),
    # or 20 and not 28 (Zen 4, bfloat16), 20 of them 278 and not 330, 100 up to 8 % more; with AMX it was not measured
    divides = floats == "float32" or not processor_of_kernel().has_amx
    num_streams = _num_threads() // (2 if divides else 1)
    # OpenVINO 2026.4 gives wrong scores where several streams share int8 matrices and compute in bfloat16
    several = settings | exact | {"NUM_STREAMS": str(min(max(num_streams, 1), MAX_STREAMS))}
    kind = "int8 weights, unpacked once" if matrices else "float weights"
    return _Plan(dtype=floats, unpacks=bool(matrices), settings=several, reason=f"{kind}, {floats} {why}")


def _fastest_floats(core: Any) -> str:
    """OpenVINO's own choice, which is bfloat16 also where that is slower."""
    hint: str = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return "f32" if processor_of_kernel().hides_amx else hint


def _has_vnni() -> bool:
    """Also where the system does not say what the processor has."""
    processor = processor_of_kernel()
    return not processor.features or processor.vnni is not None


def _threads() -> dict[str, int | bool]:
    """OpenVINO sees which cores the process is bound to, but neither a quota nor OMP_NUM_THREADS.

    A process with a share of the cores is one of several. Each would bind its threads to the first cores, all to the
    same: two of one thread each ran at half of their speed on two cores.
    """
    is_limited = cpu_quota() is not None or _num_threads() < num_cores()
    return {"INFERENCE_NUM_THREADS": _num_threads(), "ENABLE_CPU_PINNING": False} if is_limited else {}


def _num_threads() -> int:
    """OMP_NUM_THREADS is a choice, as of Ray for each of its workers; more than there are cores would be no help."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return min(num_cores(), max(int(chosen), 1)) if chosen.isdecimal() else num_cores()


def _is_int8(node: Any) -> bool:
    """Whether a node makes int8 of what it is given, or multiplies whole numbers."""
    kind = node.get_type_name()
    return kind == "FakeQuantize" or (kind == "MatMul" and not node.input_value(0).get_element_type().is_real())


def _matrices(graph: Any) -> Iterator[Any]:
    """Nodes that make floats (out, in) of int8 constants for a matrix product."""
    for node in graph.get_ops():
        if node.get_type_name() == "MatMul":
            source = node.input_value(1).get_node()
            types = [constant.get_element_type().get_type_name() for constant in _constants(source) or []]
            if {"i8", "u8"} & set(types) and len(source.get_output_shape(0)) == 2:
                yield source


def _constants(node: Any) -> list[Any] | None:
    """The outputs of the constants that a node is computed from by FOLDED; None where there is more in it."""
    if node.get_type_name() == "Constant":
        return [node.output(0)]
    if node.get_type_name() not in FOLDED:
        return None
    parts = [_constants(port.get_source_output().get_node()) for port in node.inputs()]
    return None if None in parts else [constant for part in parts for constant in part or []]


FOLDED = ("Convert", "Multiply", "Subtract", "Reshape")


def _unpack(graph: Any) -> None:
    """Fold the matrices alone: with a graph of their own, which shares its nodes, the table of words stays int8."""
    openvino = import_openvino()
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(openvino.Model([node.output(0) for node in _matrices(graph)], [], "matrices"))


# Tokens in one call, padding included. More gain nothing: 67 us a token of a MiniLM with 512 tokens, 70 with 8192.
TOKEN_BUDGET = 1024


_OUT_OF_MEMORY = ("Failed to allocate", "can't alloc", "bad_alloc", "bad allocation")


class Requests:
    """Rows through a compiled graph with inputs (N, L); as many batches are on their way as it has streams.

    compiles makes the graph, and makes it anew after a failure: it takes shapes that it had no memory for as known.
    """

    def __init__(self, compiles: Callable[[], Compiled], pad_id: int, max_length: int) -> None:
        self._compiles = compiles
        self._pad_id, self._max_length = pad_id, max_length
        self._open()
        self._turns = Turns()  # one caller at a time: each uses all cores already
        _OPEN.add(self)

    def _open(self) -> None:
        self.compiled = self._compiles()
        self._seen: set[tuple[int, ...]] = set()  # shapes that it has kernels for
        self._inputs = {port.any_name for port in self.compiled.model.inputs}
        self._num_streams = int(self.compiled.model.get_property("NUM_STREAMS"))
        self._requests: list[Any] = [self.compiled.model.create_infer_request() for _ in range(self._num_streams)]

    def run(
        self, rows: Sequence[Row], token_budget: int, progress: Advance | None = None, *, num_first: int = 0
    ) -> Iterator[tuple[Sequence[int], NDArray[np.float32]]]:
        """Indices of rows with their outputs (N, ...), padded to one of few lengths, in any order but that the first
        `num_first` rows come before the others.
        """
        batches = deque[list[int]]()
        for some in (range(num_first), range(num_first, len(rows))):
            lengths = [len(rows[index]) for index in some]
            planned = plan_padded(lengths, token_budget=token_budget, num_parts=self._num_streams)
            batches += [[some[index] for index in batch] for batch in planned]
        while batches:
            with self._turns as turn, closing(self._computed(rows, batches)) as computed:
                for batch, values in computed:
                    yield batch, values
                    if progress is not None:
                        progress(len(batch), turn.lap())

    def _computed(
        self, rows: Sequence[Row], batches: deque[list[int]]
    ) -> Generator[tuple[Sequence[int], NDArray[np.float32]], None, None]:
        """Batches with their outputs, in order, taken from `batches` until all are or others want a turn.

        As many are on their way as there are requests.
        """
        if not self._requests:
            with suppress(AttributeError):  # it was not opened then either
                del self.compiled  # its memory is free for the new one; none of its requests is on its way any more
            try:
                self._open()
            except (CheckpointError, MemoryError, RuntimeError) as error:
                raise _failure(error) from error
        idle, busy = list(self._requests), deque[tuple[Any, Sequence[int]]]()
        num_seen, room = len(self._seen), TURN_TOKENS
        try:
            while batches and (room > 0 or not self._turns.is_wanted):
                if not idle:
                    yield busy[0][1], _finished(busy[0][0])
                    idle.append(busy.popleft()[0])
                batch = batches.popleft()
                request = idle.pop()
                inputs = padded([rows[index] for index in batch], self._inputs, self._pad_id, self._max_length)
                self._seen |= {values.shape for values in inputs.values()}
                busy.append((request, batch))  # first: Ctrl-C may come just as it has been started
                request.start_async(inputs)
                room -= sum(len(rows[index]) for index in batch)
            while busy:
                yield busy[0][1], _finished(busy[0][0])
                busy.popleft()
        except (MemoryError, RuntimeError) as error:
            self._requests = []  # the next call opens it anew
            raise _failure(error) from error
        finally:
            # Also after Ctrl-C, pressed twice too, or an error: the next call finds every request idle, and none is
            # taken down while it runs, which OpenVINO does not survive.
            with ExitStack() as waiting:
                for request, _ in busy:
                    waiting.callback(_waited, request)
            if len(self._seen) > num_seen:
                give_back()  # what kernels were made with: 30 MB of 400, as each of 45 shapes leaves some


def _failure(error: Exception) -> EngineError:
    said = str(error)
    if isinstance(error, MemoryError) or any(sign in said for sign in _OUT_OF_MEMORY):
        return EngineError("out of memory; lower token_budget or max_length")
    return EngineError(f"the graph fails: {said[:500]}; export it again, or use the torch engine")


class OpenVinoEngine:
    """A cross-encoder graph with inputs (N, L) and one output (N, 1)."""

    output: str | None = None  # of the graph's outputs; None: the first

    def __init__(
        self, checkpoint: Checkpoint, *, device: str = "auto", dtype: str = "auto", token_budget: int | None = None
    ) -> None:
        if device not in ("auto", "cpu"):
            raise ValueError(f"device is {device!r}; the openvino engine runs on the 'cpu'")
        graph = checkpoint.graph()
        if graph is None:
            raise CheckpointError(f"{checkpoint.folder}: no openvino_model.xml or model.onnx for the openvino engine")
        compiles = partial(compile_graph, graph, dtype, self.output)
        max_length = _max_length(checkpoint.config)
        self._requests = Requests(compiles, int(checkpoint.config.get("pad_token_id") or 0), max_length)
        self.facts = EngineFacts(
            name="openvino",
            device="cpu",
            dtype=self._requests.compiled.dtype,
            reason=self._requests.compiled.reason,
            max_length=max_length,
            token_budget=TOKEN_BUDGET if token_budget is None else token_budget,
        )

    def check(self, run: Run) -> None:
        if run != Run():
            raise ValueError("cutoff_layer, compress_* and early_exit need a layer-wise model on the torch engine")

    def run(self, rows: Sequence[Row], run: Run, progress: Advance | None = None) -> NDArray[np.float32]:
        self.check(run)
        scores = np.empty((len(rows), 1), np.float32)
        for batch, values in self._requests.run(rows, self.facts.token_budget, progress):
            if values.shape != (len(batch), 1):
                raise EngineError(
                    f"the graph gives {values.shape} for {len(batch)} rows; ({len(batch)}, 1) is needed"
                )
            scores[batch] = values
        if not np.isfinite(scores).all():
            raise EngineError(f"{int((~np.isfinite(scores)).sum())} of {len(rows)} scores are not finite")
        return scores


_OPEN: weakref.WeakSet[Requests] = weakref.WeakSet()


def _leave_open() -> None:
    """In a forked process: what is open is never taken down, at its end neither, which would wait for its threads."""
    for each in (*_OPEN, _core_of):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_open)


def _waited(request: Any) -> None:
    with suppress(RuntimeError):  # that it failed was said already
        request.wait()


def _finished(request: Any) -> NDArray[np.float32]:
    request.wait()
    values: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
    return values


def _max_length(config: Mapping[str, Any]) -> int:
    """Longest row in tokens."""
    num_positions = int(config.get("max_position_embeddings", 512))
    pad_id = counted_after(config)
    return num_positions if pad_id is None else num_positions - int(pad_id) - 1
