"""Flip bits in every kind of file that flatmin reads, and count what comes of it.

For each flip: *refused* (an error that names the file, or a flatmin checkpoint taken
from the file before), *recomputed* (with a warning), *right* (the value, bit for bit),
*wrong*, or *crashed* (anything else: another error, a hang, a dead process). The last
two have to be 0. Not part of the suite, since it may run for hours::

    python benchmarks/flip_bits.py --flips 10000 --seed 0 --output flips.json
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import pickle
import tarfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import numpy as np

from flatmin import NoisyDiffusionClassifier, compare_dynamics
from flatmin._runs.checkpoint_files import CheckpointFolder
from flatmin.comparison import ComparisonResult
from flatmin.datasets._cifar10_files import read_batches
from flatmin.datasets._idx import read_idx, write_idx

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3))
Y = np.arange(20) % 2
SECONDS = 60


def _model(**params):
    quick = {"max_iter": 4, "record_every": 2, "random_state": 0, "lr": 0.1}
    settings = {"module_params": {"hidden_layer_sizes": ()}} | quick | params
    return NoisyDiffusionClassifier(**settings)


class _Killed(BaseException):
    """Ends a fit in its midst."""


class Checkpoint:
    """The checkpoints of a fit that was killed."""

    def make(self, folder):
        self.right = self._value(_model().fit(X, Y))
        write, self.left = CheckpointFolder.write, 2

        def counted(own, content):
            write(own, content)
            self.left -= 1
            if not self.left:
                raise _Killed

        CheckpointFolder.write = counted
        try:
            _model(checkpoint_dir=str(folder)).fit(X, Y)
        except _Killed:
            CheckpointFolder.write = write
        return sorted(folder.glob("*.flatmin"))

    def read(self, folder):
        return self._value(_model(checkpoint_dir=str(folder)).fit(X, Y))

    def _value(self, model):
        return model.params_.tobytes(), model.history_["loss"].to_numpy().tobytes()


class Memory(Checkpoint):
    """What ``memory=`` keeps of a warm-up."""

    def make(self, folder):
        self.right = self.read(folder)
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def read(self, folder):
        joblib.memory._FUNCTION_HASHES.clear()  # as in a new process
        model = _model(memory=str(folder), warmup={"max_iter": 4})
        return self._value(model.fit(X, Y))


class Comparison:
    """The begin and end files of a comparison."""

    def _run(self, folder):
        found = compare_dynamics(
            ["gd", "gld_const"], X, Y, estimator=_model(), n_seeds=1, quench=2,
            random_state=0, checkpoint_dir=str(folder),
        )  # fmt: skip
        return found.table.to_json(double_precision=15)

    def make(self, folder):
        self.right = self._run(folder)
        return sorted(folder.rglob("*.flatmin"))

    read = _run


class Result:
    """The JSON of a comparison."""

    keep = None

    def make(self, folder):
        found = compare_dynamics(
            ["gd"], X, Y, estimator=_model(), n_seeds=1, quench=2, random_state=0,
            keep_params=True,
        )  # fmt: skip
        found.to_json(folder / "a.json")
        self.right = self.read(folder)
        return [folder / "a.json"]

    def read(self, folder):
        found = ComparisonResult.from_json(folder / "a.json")
        thetas = sorted((str(k), v.tobytes()) for k, v in found.end_points.items())
        return found.table.to_json(double_precision=15), str(found.protocol), thetas


class Params(Result):
    """The parameters beside that JSON."""

    def make(self, folder):
        super().make(folder)
        return [folder / "a.params.npz"]


class Idx:
    """An IDX file, as Fashion-MNIST's."""

    def make(self, folder):
        self.right = RNG.integers(256, size=(30, 8), dtype=np.uint8)
        write_idx(folder / "a.gz", self.right)
        self.right = self.right.tobytes()
        return [folder / "a.gz"]

    def read(self, folder):
        return read_idx(folder / "a.gz", (30, 8)).tobytes()


class Archive:
    """CIFAR-10's archive, with one batch of a few images."""

    def make(self, folder):
        data = RNG.integers(256, size=(4, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": [1, 2, 3, 4]}
        self.right = data.tobytes(), bytes([1, 2, 3, 4])
        content = pickle.dumps(batch, 2)
        return self._write(folder, content)

    def _write(self, folder, content):
        with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return [folder / "a.tar.gz"]

    def read(self, folder):
        (batch,) = read_batches(folder / "a.tar.gz", ["data_batch_1"]).values()
        return batch.pixels.tobytes(), batch.labels.tobytes()


KINDS = {
    "checkpoint of a fit": Checkpoint,
    "memory of a warm-up": Memory,
    "units of a comparison": Comparison,
    "result": Result,
    "params of a result": Params,
    "IDX": Idx,
    "CIFAR-10 archive": Archive,
}


def _files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _restore(folder, whole):
    for name in _files(folder).keys() - whole.keys():
        (folder / name).unlink()
    for name, content in whole.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def outcome(kind, folder, right):
    """Read a folder, and return in a word what came of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = kind.read(folder)
        except (ValueError, OSError) as error:
            names = str(folder) in str(error)
            return "refused" if names else f"crashed: {type(error).__name__}: {error}"
        except Exception as error:
            return f"crashed: {type(error).__name__}: {error}"
    if found != right:
        return "wrong"
    return "recomputed" if said else "right"


def run_kind(name, n_flips, seed):
    """Return the counts of a kind, and the flips that did not end well."""
    kind, counts, bad = KINDS[name](), Counter(), []
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = kind.make(folder)
        whole = _files(folder)
        for _ in range(n_flips):
            path = paths[rng.integers(len(paths))].relative_to(folder)
            place, bit = int(rng.integers(len(whole[path]))), int(rng.integers(8))
            altered = bytearray(whole[path])
            altered[place] ^= 1 << bit
            (folder / path).write_bytes(altered)
            word = outcome(kind, folder, kind.right)
            counts[word.partition(":")[0]] += 1
            if word.startswith(("wrong", "crashed")):
                bad.append([str(path), place, bit, word[:300]])
            _restore(folder, whole)
    return {"counts": dict(counts), "bad": bad[:100]}


def _send(pipe, *arguments):
    logging.disable(logging.WARNING)  # joblib's
    pipe.send(run_kind(*arguments))


def in_process(name, n_flips, seed):
    """Return what :func:`run_kind` does, or that its process died or hung."""
    here, there = multiprocessing.Pipe(duplex=False)
    arguments = (there, name, n_flips, seed)
    process = multiprocessing.get_context("spawn").Process(target=_send, args=arguments)
    process.start()
    there.close()
    found = {"counts": {"crashed": n_flips}, "bad": [[name, seed, "died or hung"]]}
    if here.poll(SECONDS + 5 * n_flips):
        with suppress(EOFError):
            found = here.recv()
    process.kill()
    process.join()
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=70, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    start, kinds = time.perf_counter(), {}
    for i, name in enumerate(arguments.kinds):
        share = len(range(i, arguments.flips, len(arguments.kinds)))
        kinds[name] = {"counts": {}, "bad": []}
        for part in range(0, share, 100):  # a dead process loses so many at most
            seed = arguments.seed * 10**6 + part
            found = in_process(name, min(100, share - part), seed)
            total = Counter(kinds[name]["counts"]) + Counter(found["counts"])
            kinds[name] = {"counts": dict(total), "bad": kinds[name]["bad"]}
            kinds[name]["bad"] += found["bad"]
        print(name, kinds[name]["counts"], flush=True)
    result = {"seed": arguments.seed, "flips": arguments.flips, "kinds": kinds}
    result["seconds"] = round(time.perf_counter() - start, 1)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
