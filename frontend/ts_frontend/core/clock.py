"""The one clock of the core: seconds that never go back, replaceable in tests."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]

monotonic: Clock = time.monotonic
