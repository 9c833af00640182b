"""Stand-ins for packages that peers import but do not need here."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["stub_torchvision"]


class _Anything(ModuleType):
    """A module in which every name is a class that can be derived from."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stub_torchvision() -> str:
    """Where torchvision is missing or broken (its wheels need a torch for CUDA), put an empty one there; the remark for the table."""
    try:
        import_module("torchvision")
    except Exception:  # without torch for CUDA, torchvision raises RuntimeError
        pass
    else:
        return ""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = _Anything(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    return "torchvision stubbed"
