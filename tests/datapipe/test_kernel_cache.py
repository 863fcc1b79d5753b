"""The cache of compiled kernels: one place for all installations of a version, another for functions of others."""

import shutil
from pathlib import Path

from ropewalk.datapipe.text.compiled import cache_folder, kernels


def test_installations_at_different_paths_share_their_kernels(tmp_path: Path) -> None:
    module = kernels("ropewalk.datapipe.text.kernels")
    from ropewalk.datapipe.text.kernel_cache import KernelLocator

    function, file = module.split_words.py_func, Path(module.__file__)
    assert str(cache_folder()) in str(module.split_words.stats.cache_path), "numba asks for the place"
    places = []
    for copy in (file, Path(shutil.copy(file, tmp_path))):
        locator = KernelLocator.from_function(function, str(copy))
        places.append((locator.get_cache_path(), locator.get_source_stamp()))
    assert places[0] == places[1] == (module.split_words.stats.cache_path, places[0][1])
    (tmp_path / file.name).write_text("another version")
    assert KernelLocator.from_function(function, str(tmp_path / file.name)).get_source_stamp() != places[0][1]
    assert KernelLocator.from_function(test_installations_at_different_paths_share_their_kernels, __file__) is None
