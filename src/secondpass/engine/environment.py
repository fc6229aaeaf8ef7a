"""What torch's libraries read from the environment, once, when they are loaded or first used."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# oneDNN keeps the kernels that it made for the last 1,024 shapes, half a megabyte each, and torch as many again in
# every thread. A forward pass needs two for each length among its rows and five for its layers: a batch of 4,096
# tokens in 80 short rows 165. oneDNN's alone are found as quickly as torch's, and all threads share them.
KEPT_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "16"}
# OpenMP's threads look so often whether the others are ready, some 30 us, before they sleep. By default they look
# 300,000 times, and where another program has the core of one, the others burn theirs meanwhile.
WAITING = {"GOMP_SPINCOUNT": "2000"}
# What says the same in other words.
SAME = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": ("DNNL_PRIMITIVE_CACHE_CAPACITY",),
    "GOMP_SPINCOUNT": ("OMP_WAIT_POLICY",),
}


def suit_torch(environment: MutableMapping[str, str] = os.environ) -> None:
    """Bound what oneDNN keeps, and how long threads wait actively, where the user has said nothing.

    Without effect on a torch that has been imported (waiting) or has multiplied on the CPU (kernels) before.
    """
    for name, value in (KEPT_KERNELS | WAITING).items():
        if not any(other in environment for other in (name, *SAME.get(name, ()))):
            environment[name] = value
