"""Whose turn it is: one job at a time."""

import threading

queue_lock = threading.Lock()
