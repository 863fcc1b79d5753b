"""Parameters that are one tensor under several names, such as embedding and head."""

from collections import defaultdict

from torch import nn


def ties(model: nn.Module) -> list[list[str]]:
    """Return groups of parameter names that are one tensor."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]


def tie(model: nn.Module, groups: list[list[str]]) -> None:
    """Make the parameters of each group one tensor: the one of the first name."""
    for first, *others in groups:
        parameter = model.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)
