"""One set of weights for two models: a batch encoder to train and a recurrent one to decode."""

from collections import defaultdict

from torch import nn


def make_mirror(src_module: nn.Module, dst_module: nn.Module) -> None:
    """Make ``dst_module`` use the parameters of ``src_module``, from now on and for both.

    Works on any two modules whose parameters have the same names and shapes, such as a model that
    holds a built encoder and one that holds its recurrent twin. Buffers are not shared.

    Raises:
        ValueError: if the parameters differ; the error lists them all, and nothing is changed.
    """
    source, target = dict(src_module.named_parameters()), dict(dst_module.named_parameters())
    faults = [f"dst_module lacks {name}" for name in source if name not in target]
    faults += [f"src_module lacks {name}" for name in target if name not in source]
    faults += [
        f"{name} has shape {tuple(target[name].shape)} in place of {tuple(x.shape)}"
        for name, x in source.items()
        if name in target and target[name].shape != x.shape
    ]
    if faults:
        raise ValueError(f"both modules must have the same parameters, but {'; '.join(faults)}")
    names = defaultdict(list)  # a parameter that is tied within dst_module has several
    for name, parameter in dst_module.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    for first, parameter in source.items():
        for name in names[target[first]]:
            owner, _, leaf = name.rpartition(".")
            setattr(dst_module.get_submodule(owner), leaf, parameter)
