"""Give stored comparisons the names that the estimators' settings have now.

The protocol of a comparison lists the estimator's settings, and only results of one
protocol can be merged. Results of an earlier revision, or of a clone that still runs
it, are rewritten by::

    python benchmarks/rename_settings.py RESULT.json ...

``warmup_method``, ``warmup_optimizer``, ``warmup_iter`` and ``warmup_lr`` become one
``warmup``, without what has its default, and ``callbacks_params``, which must be None,
goes. The numbers stay what they are. A file that has been rewritten stays as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flatmin._runs.checkpoint_files import replace_file
from flatmin.comparison._files import checksum

DEFAULTS = {"max_iter": 0, "method": "gd", "optimizer": "sgd", "lr": None}


def rename_settings(path: Path) -> bool:
    """Rewrite one file, and say whether there was anything to rename.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If its checksum is wrong, or it has settings that no estimator takes now.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("sha256") != checksum(content):
        raise ValueError(f"{path} must be as it was written. Got another checksum.")
    protocol = content["protocol"]
    all_settings = [protocol["estimator"], *protocol["methods"].values()]
    renamed = [renamed_settings(settings) for settings in all_settings]
    if renamed == all_settings:
        return False
    labels = protocol["methods"]
    protocol["estimator"] = renamed[0]
    protocol["methods"] = dict(zip(labels, renamed[1:], strict=True))
    content["sha256"] = checksum(content)
    text = json.dumps(content, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))
    return True


def renamed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an estimator under their names of today.

    Parameters
    ----------
    settings : dict

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If ``callbacks_params`` has a value.
    """
    settings = dict(settings)
    if settings.pop("callbacks_params", None) is not None:
        raise ValueError("callbacks_params must be None; no estimator takes it now.")
    if "warmup_iter" in settings:
        old = {"max_iter": "warmup_iter", "method": "warmup_method"}
        old |= {"optimizer": "warmup_optimizer", "lr": "warmup_lr"}
        found = {name: settings.pop(key) for name, key in old.items()}
        warmup = {k: v for k, v in found.items() if v != DEFAULTS[k]}
        settings["warmup"] = warmup or None
    return settings


def main() -> None:
    """Convert the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="results to convert")
    for path in parser.parse_args().paths:
        print(f"{path}: {'renamed' if rename_settings(path) else 'as it was'}")


if __name__ == "__main__":
    main()
