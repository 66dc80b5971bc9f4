"""Dictionaries, construction by name, and files."""

import importlib


class EasyDict(dict):
    """A dictionary whose keys are attributes too."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


def construct_class_by_name(*args, class_name, **kwargs):
    module, _, name = class_name.rpartition(".")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def open_url(url, return_filename=False):
    return url if return_filename else open(url, "rb")
