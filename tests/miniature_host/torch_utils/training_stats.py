"""Means of what is reported, collected once a tick."""

import re

import torch
from dnnlib import EasyDict

_reported = {}


def init_multiprocessing(rank, sync_device):
    assert sync_device is None or sync_device.type == "cpu"


def report(name, value):
    _reported.setdefault(name, []).append(torch.as_tensor(value).detach().float().mean())
    return value


class Collector:
    def __init__(self, regex=".*"):
        self.regex, self.means = regex, {}

    def update(self):
        found = {name: v for name, v in _reported.items() if re.fullmatch(self.regex, name)}
        self.means = {name: float(torch.stack(values).mean()) for name, values in found.items()}
        _reported.clear()

    def as_dict(self):
        return {name: EasyDict(num=1, mean=mean, std=0.0) for name, mean in self.means.items()}
