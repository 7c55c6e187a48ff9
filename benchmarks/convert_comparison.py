"""Convert comparisons that an earlier revision of flatmin has stored.

``ComparisonResult.from_json`` reads the last format only::

    python benchmarks/convert_comparison.py RESULT.json ...

The numbers stay what they are. From format 1 to 2 a file gets a checksum, since nothing
told whether somebody had edited it: convert it if you know that nobody has. Of the
machine only the operating system stays, and not its build. From format 2 to 3 the
columns of the test data are called ``test_loss`` and ``test_score``, and no longer
``valid_loss`` and ``valid_score``. So are those of the units of
``plot_rmsprop_then_sgd.py``, whose files have no format.

Also in format 3 the protocol may have settings under earlier names, and only results of
one protocol can be merged: ``warmup_method``, ``warmup_optimizer``, ``warmup_iter`` and
``warmup_lr`` become one ``warmup``, without what has its default, and
``callbacks_params``, which must be None, goes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flatmin._runs.checkpoint_files import replace_file
from flatmin.comparison._files import checksum
from flatmin.comparison._fits import TEST_COLUMNS

WARMUP = {
    "max_iter": ("warmup_iter", 0),
    "method": ("warmup_method", "gd"),
    "optimizer": ("warmup_optimizer", "sgd"),
    "lr": ("warmup_lr", None),
}

FORMATS = [f"flatmin.comparison/{version}" for version in (1, 2, 3)]


def convert(path: Path) -> None:
    """Rewrite one file in the last format.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    ValueError
        If it holds something else or a setting that nothing takes now, was edited, or a
        column lacks an entry.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content.get("format")
    if found is None and {"optimizer", "rows"} <= content.keys():
        content["rows"] = rename(content["rows"])
    elif found in FORMATS:
        for part in ("table", "units"):
            lengths = {name: len(column) for name, column in content[part].items()}
            if len(set(lengths.values())) > 1:
                raise ValueError(
                    f"The columns of {part} in {path} must be of one length. "
                    f"Got {lengths}."
                )
        if found == FORMATS[0]:
            for origin in content["provenance"]:
                machine = origin["machine"]
                machine["platform"] = machine["platform"].partition("-")[0]
        elif content.get("sha256") != checksum(content):
            raise ValueError(f"{path} was edited, or damaged: its checksum is wrong.")
        content["table"] = rename(content["table"])
        protocol = content["protocol"]
        protocol["estimator"] = rename_settings(protocol["estimator"])
        protocol["methods"] = {
            label: rename_settings(settings)
            for label, settings in protocol["methods"].items()
        }
        content["format"] = FORMATS[-1]
        content["sha256"] = checksum(content)
    else:
        raise ValueError(
            f"{path} must be of the format {' or '.join(map(repr, FORMATS))}. "
            f"Got {found!r}."
        )
    text = json.dumps(content, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def rename(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns under the names that they have now."""
    return {TEST_COLUMNS.get(name, name): column for name, column in columns.items()}


def rename_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an estimator under the names that they have now."""
    settings = dict(settings)
    if settings.pop("callbacks_params", None) is not None:
        raise ValueError("callbacks_params must be None; no estimator takes it now.")
    if "warmup_iter" in settings:
        found = {new: settings.pop(old) for new, (old, _) in WARMUP.items()}
        changed = {new: v for new, v in found.items() if v != WARMUP[new][1]}
        settings["warmup"] = changed or None
    return settings


def main() -> None:
    """Convert the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="results to convert")
    for path in parser.parse_args().paths:
        convert(path)
        print(f"{path}: converted")


if __name__ == "__main__":
    main()
