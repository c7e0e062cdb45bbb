"""A Jupyter kernel that computes nothing: it puts out, cell after cell, the texts of a JSON list in $REPLAY.

So nbval, which compares what a kernel puts out with what a notebook holds, compares what papermill has executed before.
"""

import json
import os
from pathlib import Path
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel


class ReplayKernel(Kernel):
    implementation = banner = "replay"
    implementation_version = "1"
    language_info = {"name": "python", "mimetype": "text/x-python", "file_extension": ".py"}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.texts = iter(json.loads(Path(os.environ["REPLAY"]).read_text(encoding="utf-8")))

    def do_execute(self, code: str, silent: bool, *args: Any, **options: Any) -> dict[str, Any]:
        if text := next(self.texts):
            self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": text})
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}


if __name__ == "__main__":
    IPKernelApp.launch_instance(kernel_class=ReplayKernel)
