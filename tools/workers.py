"""Processes that work for another one, and end when it is gone, even if it was killed."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm


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


def do_all(
    work: Callable[..., None], jobs: Collection[tuple], n_processes: int, begin: Callable[[], None] = end_with_parent
) -> None:
    """Do work(*job) for every job, in as many processes, each of which calls `begin` first.

    A job that fails leaves the others alone, unless its process dies with it. Its traceback is printed at once, and
    when all have ended, SystemExit names those that failed.
    """
    failed = []
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"), begin)
    try:
        tasks = {pool.submit(work, *job): job for job in jobs}
        for task in tqdm(as_completed(tasks), total=len(tasks)):
            if error := task.exception():
                failed.append(" ".join(str(part) for part in tasks[task] if isinstance(part, (str, int))))
                print(f"{failed[-1]}:", *traceback.format_exception(error), sep="\n", file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts waits for what has begun, and no more
    if failed:
        raise SystemExit(f"not done: {', '.join(sorted(failed))}")
