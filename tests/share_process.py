"""One of two processes that share their gradients: apart from the test, so that it loads no more than it needs."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from vidllm.builtin import together


def with_its_own(part: int, folder: Path) -> None:
    """A gradient of 1 or 3 for one parameter, and for another none in the second; what came of them is in `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=part, world_size=2)
    both, one = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    both.grad = torch.full((2,), 1.0 + 2 * part)
    if part == 0:
        one.grad = torch.ones(1)
    together.share_gradients([both, one])
    agreed = together.agreed(part + 0.25)
    torch.save((both.grad, one.grad, agreed, together.part(), together.parts()), folder / f"{part}.pt")
    together.leave()
