"""Processes that work for another one, and end when it is gone, even if it was killed."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Called once in a worker that multiprocessing started: from then on it ends as soon as its parent has ended.

    Otherwise a worker that was told to train for an hour would go on for an hour after its study was killed, and write
    into the folder of the study that took its place. An interrupt, too, ends it at once, unless a job takes it for
    itself: else it would be one job's result, and the next job would begin.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
