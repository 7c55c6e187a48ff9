"""What a schedule may change."""

import pytest
import torch

from flatmin.dynamics import make_schedule


class _ChangesDecay(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.1 * self.last_epoch
        return [group["lr"] for group in self.optimizer.param_groups]


def test_a_schedule_of_what_is_not_in_its_table_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    with pytest.raises(ValueError, match=r"Got _ChangesDecay, which changes weight_de"):
        make_schedule(_ChangesDecay, {}, optimizer, 4)
