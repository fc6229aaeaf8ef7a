"""OpenVINO, imported so that nothing leaves the machine."""

from __future__ import annotations

import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """The module openvino.

    Importing it reports that to its maker over the network, unless its telemetry package cannot be imported; so it
    cannot while openvino is, and openvino falls back to its own stub. Where a program has imported openvino before,
    that program has decided.
    """
    is_blocked = _TELEMETRY not in sys.modules
    if is_blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if is_blocked:
            del sys.modules[_TELEMETRY]
    return openvino
