"""Sampling, copying of weights, and the table of layers."""

import itertools

import torch


class InfiniteSampler(torch.utils.data.Sampler):
    def __init__(self, dataset, rank, num_replicas):
        super().__init__(dataset)
        self.indices = range(rank, len(dataset), num_replicas)

    def __iter__(self):
        return itertools.cycle(self.indices)


@torch.no_grad()
def copy_params_and_buffers(src_module, dst_module, require_all=False):
    known = src_module.state_dict()
    for name, value in dst_module.state_dict().items():
        if name in known or require_all:
            value.copy_(known[name])


def print_module_summary(module, inputs):
    return module(*inputs)
