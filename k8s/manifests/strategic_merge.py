"""Strategic-merge patch of a pod, as kubectl does it: lists of named things are merged by name, other lists replaced."""

import copy
from typing import Any

# lists of a pod whose items are told apart by a key; every other list is one value
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
    """Apply a patch to a target, and return the result: null removes a key, `$patch: delete|replace` does as in kubectl.

    Neither the target nor the patch is changed. A volume that becomes one of another kind keeps both sources: set the old one
    to null.
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
        place = next((i for i, item in enumerate(merged) if item.get(key) == patch.get(key)), None)
        if patch.get(DIRECTIVE) == "delete":
            merged = [item for i, item in enumerate(merged) if i != place]
        elif place is None:
            merged.append(_plain(patch))
        else:
            merged[place] = merge(merged[place], patch)
    return merged


def _plain(value: Any) -> Any:
    """Copy a part of a patch without its directives and nulls: there is nothing for them to patch."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key != DIRECTIVE and inner is not None}
    if isinstance(value, list):
        return [_plain(inner) for inner in value if not (isinstance(inner, dict) and inner.get(DIRECTIVE) == "delete")]
    return copy.deepcopy(value)
