"""The process in which one job's memory is measured: ``python -m subquad.bench.child JOB``.

JOB is JSON; each finding goes to standard output as one line of JSON. See ``memory``.
"""

import json
import sys
from typing import Any


def main(arguments: list[str]) -> None:
    """Do one job."""
    job: dict[str, Any] = json.loads(arguments[0])
    if job["kind"] == "train":
        from subquad.bench.train import memory_in_this_process
    elif job["kind"] == "lambda":
        from subquad.bench.lambda_forms import memory_in_this_process
    elif job["kind"] == "encoder":
        from subquad.bench.encoder_speed import memory_in_this_process
    elif job["kind"] == "image-network":
        from subquad.bench.image_networks import memory_in_this_process
    elif job["kind"] == "image-layer":
        from subquad.bench.image_layers import memory_in_this_process
    elif job["kind"] == "image-model":
        from subquad.bench.image_job import memory_in_this_process
    elif job["kind"] == "vit":
        from subquad.bench.vit import memory_in_this_process
    else:
        from subquad.bench.attention import memory_in_this_process
    memory_in_this_process(job, _tell)


def _tell(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
