"""Made-up processors: what is chosen on each, and how many threads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from secondpass.engine import device, openvino
from secondpass.engine.cpu import threads as processor
from secondpass.engine.cpu.threads import Processor, from_capabilities, from_cpuinfo, num_physical_cores, num_threads
from secondpass.engine.device import cpu_dtype, pick_device, pick_dtype, pick_precision

AVX2 = "fpu sse2 avx fma f16c avx2"
AVX512 = AVX2 + " avx512f avx512dq avx512cd avx512bw avx512vl"
ARM_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm"
CPU = torch.device("cpu")
# name -> architecture, features in /proc/cpuinfo, precision, the kind of bytes that are fast
MACHINES = {
    "haswell": ("x86_64", AVX2, "float32", "AVX2"),
    "skylake-x": ("x86_64", AVX512, "float32", "AVX2"),
    "ice-lake": ("x86_64", AVX512 + " avx512_vnni", "float32", "AVX512-VNNI"),
    "alder-lake": ("x86_64", AVX2 + " avx_vnni", "float32", "AVX-VNNI"),
    "zen-5": ("x86_64", AVX512 + " avx_vnni avx512_bf16 avx512_vnni", "bfloat16", "AVX512-VNNI"),
    "sapphire-rapids": (
        "x86_64",
        AVX512 + " avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8",
        "bfloat16",
        "AMX",
    ),
    "sapphire-rapids, AMX hidden": (
        "x86_64",
        AVX512 + " avx_vnni avx512_bf16 avx512_vnni avx512_fp16",
        "float32",
        "AVX512-VNNI",
    ),
    "cooper-lake": ("x86_64", AVX512 + " avx512_bf16 avx512_vnni", "bfloat16", "AVX512-VNNI"),
    "zen-6": ("x86_64", AVX512 + " avx_vnni avx512_bf16 avx512_vnni avx512_fp16", "bfloat16", "AVX512-VNNI"),
    "windows": ("AMD64", AVX512 + " avx512_bf16 avx512_vnni", "bfloat16", "AVX512-VNNI"),
    "graviton-2": ("aarch64", ARM_V8 + " asimddp", "float32", None),
    "graviton-3": ("aarch64", ARM_V8 + " asimddp sve i8mm bf16", "bfloat16", None),
    "not-said": ("riscv64", "", "float32", None),
}
machines = pytest.mark.parametrize("name", MACHINES)


def machine(name: str) -> Processor:
    architecture, features, *_ = MACHINES[name]
    title = "Features" if architecture == "aarch64" else "flags\t"
    vendor = "AuthenticAMD" if name.startswith("zen") else "GenuineIntel"
    text = (
        f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: bf16 amx_bf16\n{title}\t: {features}\nbogomips\t: 1\n"
    )
    return from_cpuinfo(text, architecture)


@pytest.mark.promise("docs/scores.md", "takes bfloat16 only where the processor multiplies it natively")
@machines
def test_bfloat16_is_chosen_only_where_it_is_not_emulated(name: str) -> None:
    dtype, reason = cpu_dtype(machine(name), has_onednn=True)
    assert str(dtype) == f"torch.{MACHINES[name][2]}"
    assert ("emulated" in reason or "slower" in reason) == (dtype == torch.float32)


@machines
def test_bytes_are_fast_where_the_processor_multiplies_them(name: str) -> None:
    expected = MACHINES[name][3]
    assert machine(name).int8 == expected
    assert machine(name).vnni == (None if expected == "AVX2" else expected)


def test_without_onednn_bfloat16_is_emulated_whatever_the_processor() -> None:
    dtype, reason = cpu_dtype(machine("graviton-3"), has_onednn=False)
    assert dtype == torch.float32 and "oneDNN" in reason


def test_amx_is_named_before_what_it_replaces() -> None:
    assert cpu_dtype(machine("sapphire-rapids"), has_onednn=True)[1] == "the processor has AMX"


def test_torch_and_the_kernel_say_the_same() -> None:
    said = {"architecture": "x86_64", "avx512_bf16": True, "avx512_vnni": True, "amx_bf16": False, "cpu_name": "x"}
    found = from_capabilities(said)
    assert (found.bf16, found.int8) == ("AVX512-BF16", "AVX512-VNNI")
    hidden = from_capabilities(said | {"avx512_fp16": True, "cpu_name": "Intel Xeon"})
    assert hidden.hides_amx and hidden.bf16 is None


def test_openvino_follows_the_processor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prefers bfloat16 wherever the processor can, also where float32 is faster."""
    core = SimpleNamespace(get_property=lambda *_: SimpleNamespace(get_type_name=lambda: "bf16"))
    for name, expected in (("zen-6", "bf16"), ("cooper-lake", "bf16"), ("sapphire-rapids, AMX hidden", "f32")):
        monkeypatch.setattr(openvino, "processor_of_kernel", lambda name=name: machine(name))
        assert openvino._fastest_floats(core) == expected


def test_without_torchs_word_the_kernels_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.this_processor() == Processor(architecture="x86_64", features=frozenset())
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16\n")
    assert processor.this_processor().bf16 == "AVX512-BF16"


def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "this_processor", lambda: machine("skylake-x"))
    assert pick_dtype("auto", CPU)[0] == torch.float32
    monkeypatch.setattr(device, "this_processor", lambda: machine("zen-5"))
    expected = torch.bfloat16 if torch.backends.mkldnn.is_available() else torch.float32
    assert pick_dtype("auto", CPU)[0] == expected


@pytest.mark.parametrize(("name", "inner"), [("ice-lake", torch.float32), ("zen-5", torch.bfloat16)])
def test_int8_only_when_asked_and_its_other_values_suit_the_processor(
    name: str, inner: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "this_processor", lambda: machine(name))
    assert not pick_precision("auto", CPU).is_int8
    asked = pick_precision("int8", CPU)
    assert (asked.name, asked.dtype) == ("int8", inner)
    assert "AVX512-VNNI" in asked.reason


def test_int8_says_where_bytes_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "this_processor", lambda: machine("graviton-2"))
    assert "slowly" in pick_precision("int8", CPU).reason


def test_int8_says_where_it_gains_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(device, "this_processor", lambda: machine("sapphire-rapids"))
    assert "AMX, on which bfloat16 is as fast" in pick_precision("int8", CPU).reason
    assert "saves memory alone" in caplog.text


def test_int8_is_refused_off_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"8 bits run on the CPU"):
        pick_precision("int8", torch.device("cuda"))


@pytest.mark.parametrize(
    ("current", "is_chosen", "usable", "physical", "expected"),
    [
        (64, False, 64, 32, 32),  # two threads a core
        (64, False, 3, 32, 3),  # a container's quota
        (64, True, 3, 32, 64),  # OMP_NUM_THREADS or torch.set_num_threads
        (1, False, 8, 8, 1),
        (4, False, 8, 8, 4),  # never more than torch has
        (1, False, 0, 0, 1),
    ],
)
def test_threads(current: int, is_chosen: bool, usable: int, physical: int, expected: int) -> None:
    assert num_threads(current, is_chosen=is_chosen, usable=usable, physical=physical) == expected


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for core in range(4):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 2},{core % 2 + 2}\n")
    assert num_physical_cores(tmp_path, frozenset(range(4))) == 2
    assert num_physical_cores(tmp_path, frozenset({0, 1, 2})) == 2
    assert num_physical_cores(tmp_path, frozenset({0, 9})) == 2  # core 9 is not described


def test_a_number_that_torch_would_not_start_with_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processor, "_bound_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr(processor, "num_physical_cores", lambda *_: 4)
    monkeypatch.setattr(processor, "num_cores", lambda: 2)
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 8)
    processor.usable_threads.cache_clear()
    assert processor.usable_threads(8) == 2
    assert processor.usable_threads(4) == 2
    assert processor.usable_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    processor.usable_threads.cache_clear()
    assert processor.usable_threads(8) == 8
    processor.usable_threads.cache_clear()


@pytest.mark.parametrize("device", [0, None, torch.device("cpu")])
def test_a_device_that_is_no_text_is_refused_in_words(device: Any) -> None:
    with pytest.raises(TypeError, match=r"device is .*; give 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', as text"):
        pick_device(device)


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", "cpu,cpu", "cuda:all"])
def test_several_devices_are_refused_by_what_to_do_instead(device: str) -> None:
    with pytest.raises(ValueError, match=r"an engine runs on one"):
        pick_device(device)
