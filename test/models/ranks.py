"""A worker of several processes: tells how many took part, and the pids of all.

With `tp` every rank gets the request, and they gather the pids together; with `pp` the first gets
it alone.
"""

import os

import torch
import torch.distributed as dist


def handle(data, context):
    if data is None:
        dist.init_process_group("gloo")
        return None
    texts = [bytes(row.get("data") or row.get("body") or b"").decode() for row in data]
    if texts == ["alone"]:
        return [f"rank {os.environ['LOCAL_RANK']} of {dist.get_world_size()}"]
    pids = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(pids, torch.tensor([os.getpid()]))
    return [" ".join(str(pid.item()) for pid in pids)] * len(data)
