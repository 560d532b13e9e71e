"""One job at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class FIFOLock:
    def __init__(self) -> None:
        self._lock, self._inner_lock = threading.Lock(), threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def __enter__(self) -> bool:
        with self._inner_lock:
            if self._lock.acquire(False):
                return True
            turn = threading.Event()
            self._pending_threads.append(turn)
        turn.wait()
        return self._lock.acquire()

    def __exit__(self, *error: Any) -> None:
        with self._inner_lock:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()


queue_lock = FIFOLock()
