"""Strategic-merge patch of a pod, as in kubectl: lists of named items are merged by name, other lists replaced."""

import copy
from typing import Any

# lists of a pod whose items are identified by a key; every other list is a single value
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "topologySpreadConstraints": "topologyKey",
}
DIRECTIVE = "$patch"  # delete or replace


def merge(target: Any, patch: Any) -> Any:
    """Return the target with a patch applied: null removes a key, `$patch: delete|replace` works as in kubectl.

    Changes neither argument. If a volume is patched to another kind, it keeps both sources unless the patch sets the old one to
    null.
    """
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return _plain(patch)
    if patch.get(DIRECTIVE) == "replace":
        return _plain({key: value for key, value in patch.items() if key != DIRECTIVE})
    merged = copy.deepcopy(target)
    for key, value in patch.items():
        if key == DIRECTIVE:
            continue
        if value is None:
            merged.pop(key, None)
        elif key in MERGE_KEYS and isinstance(value, list) and isinstance(merged.get(key), list):
            merged[key] = _merge_list(merged[key], value, MERGE_KEYS[key])
        elif key in merged:
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = _plain(value)
    return merged


def _merge_list(items: list[Any], patches: list[Any], key: str) -> list[Any]:
    if any(isinstance(patch, dict) and patch.get(DIRECTIVE) == "replace" for patch in patches):
        return [_plain(patch) for patch in patches if patch.get(DIRECTIVE) != "replace"]
    merged = list(items)
    for patch in patches:
        index = next((i for i, item in enumerate(merged) if item.get(key) == patch.get(key)), None)
        if patch.get(DIRECTIVE) == "delete":
            merged = [item for i, item in enumerate(merged) if i != index]
        elif index is None:
            merged.append(_plain(patch))
        else:
            merged[index] = merge(merged[index], patch)
    return merged


def _plain(value: Any) -> Any:
    """Copy a part of a patch without directives and nulls, which have no effect where there is nothing to patch."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key != DIRECTIVE and inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value if not (isinstance(inner, dict) and inner.get(DIRECTIVE) == "delete")]
    return copy.deepcopy(value)
