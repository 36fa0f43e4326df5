"""Tasks from files: what is read is what was written, and what is missing or damaged is told in one sentence."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import train
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import TASKS, get_task, places, user_tasks, with_data
from optforge.experiments.tasks.arrays import arrays
from optforge.experiments.tasks.file_tasks import FILE_TASKS, file_task
from optforge.experiments.tasks.images import cifar10, idx_images
from optforge.experiments.tasks.text_files import text_bytes, text_tokens
from optforge.search.training.task import Splits, initial_model
from optforge.search.training.trial import Status


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTFORGE_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file_task.cache_clear()  # of tasks on data that other tests found
    yield
    file_task.cache_clear()


@pytest.fixture
def run():
    def call(*words):
        result = CliRunner().invoke(app, [str(w) for w in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def write_idx(folder, examples=60, side=28, zipped=False):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (examples, side, side), np.uint8)
        labels = np.arange(examples, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            name = f"{part}-{kind}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(tmp_path, zipped):
    splits = idx_images(write_idx(tmp_path / f"idx{zipped}", 100, zipped=zipped))
    assert [len(s) for s in splits] == [98, 2, 100]
    images, classes = splits.train.batch(torch.arange(98))
    assert images.shape == (98, 1, 28, 28) and classes[:11].tolist() == [*range(10), 0]
    assert images.mean().abs() < 1e-5 and abs(images.std(unbiased=False) - 1) < 1e-5
    assert splits.valid.classes.tolist() == [9, 9]  # images 49 and 99


def test_real_mnist(real_data):
    splits = idx_images(real_data("mnist"))
    assert [len(s) for s in splits] == [58_800, 1200, 10_000]
    assert splits.test.classes[:5].tolist() == [7, 2, 1, 0, 4]
    assert (splits.train.mean.item() / 255, splits.train.std.item() / 255) == pytest.approx((0.1307, 0.3081), abs=5e-4)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lambda c: c[:-1], "copy it again"), (lambda c: b"\0\0\x0d\x03" + c[4:], "not an IDX file"),
     (lambda c: b"", "not an IDX file")],
)  # fmt: skip
def test_damaged_idx_files(tmp_path, damage, words):
    folder = write_idx(tmp_path / "idx")
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=words):
        idx_images(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"lacks train-images-idx3-ubyte \(or"):
        idx_images(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08 no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        idx_images(folder)


def test_cifar_files(tmp_path):
    folder = tmp_path / "c" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)
    rows[:, 0] = np.arange(20) % 10
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    splits = cifar10(tmp_path / "c")
    assert [len(s) for s in splits] == [98, 2, 20]
    assert torch.equal(splits.test.pixels.flatten(1), torch.from_numpy(rows[:, 1:]))
    images, _ = splits.test.batch(torch.arange(20))
    assert images.shape == (20, 3, 32, 32)
    assert initial_model(get_task(f"cifar10@{tmp_path / 'c'}"), 0)(images).shape == (20, 10)
    (folder / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="no records"):
        cifar10.__wrapped__(tmp_path / "c")


def test_text_by_bytes(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("ábc " * 500)
    splits = text_bytes(file, 16)
    assert splits.train.classes == 5  # á is two bytes
    content = np.frombuffer(file.read_bytes(), np.uint8)
    back = np.unique(content)[torch.cat([s.text for s in splits]).numpy()]
    assert np.array_equal(back, content)
    assert len(splits.train) == int(0.9 * len(content)) - 16


def test_text_by_tokens_is_the_text(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    file = tmp_path / "t.txt"
    file.write_text("<|endoftext|>".join(f"Once there were {k} cats and a naïve dog." for k in range(400)))
    splits = text_tokens(file, 8, 300)
    assert 257 <= splits.train.classes <= 300 and int(splits.train.text.max()) < splits.train.classes
    assert len(splits.train.text) < 0.6 * 0.9 * len(file.read_bytes())  # pairs were merged
    ends = sum(int((s.text == 0).sum()) for s in splits)  # the separator is the first token
    assert ends == 400  # no story is cut by the split


def test_real_texts(real_data):
    real_data("tinyshakespeare")
    assert get_task("shakespeare").data().train.classes == 65


@pytest.mark.parametrize("content", [None, "", "short"])
def test_texts_that_cannot_be(tmp_path, content):
    file = tmp_path / "x.txt"
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"cannot be read|too short"):
        get_task(f"text@{file}")


def test_arrays_of_classes_and_of_numbers(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 5, (50, 2, 3)), rng.integers(0, 4, 50)
    np.save(tmp_path / "inputs.npy", x)
    np.save(tmp_path / "targets.npy", y)
    classes = get_task(f"arrays@{tmp_path}")
    assert classes.accuracy and "nats" in classes.metric and [len(s) for s in classes.data()] == [30, 10, 10]
    assert classes.data().train.inputs.mean(0).abs().max() < 1e-6
    rows = torch.cat([s.targets for s in classes.data()])
    assert rows.bincount().tolist() == np.bincount(y).tolist()
    file = tmp_path / "a.npz"
    np.savez(file, inputs=x, targets=x.sum((1, 2)), test_inputs=x[:5], test_targets=x[:5].sum((1, 2)))
    numbers = get_task(f"arrays@{file}")
    assert not numbers.accuracy and [len(s) for s in numbers.data()] == [40, 10, 5]
    inputs, targets = numbers.data().train.batch(torch.arange(40))
    loss = numbers.loss(torch.zeros_like(targets), targets)
    assert initial_model(numbers, 0)(inputs).shape == (40, 1) and loss.item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("found", "words"),
    [({"inputs": np.zeros((4, 2))}, "has no array 'targets'"), ({}, "has no array 'inputs'"),
     ({"inputs": np.zeros((4, 2)), "targets": np.zeros(3)}, "4 rows of inputs and 3"),
     ({"inputs": np.full((9, 2), np.nan), "targets": np.zeros(9)}, "not finite"),
     ({"inputs": np.array(["a"] * 9), "targets": np.zeros(9)}, "not numbers"),
     ({"inputs": np.zeros((9, 2)), "targets": np.full(9, -1)}, "so classes"),
     ({"inputs": np.zeros((3, 2)), "targets": np.zeros(3)}, "too few rows"),
     ({"inputs": np.zeros((0, 2)), "targets": np.zeros(0)}, "has no rows")],
)  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path, found, words):
    np.savez(tmp_path / "a.npz", **found)
    with pytest.raises(UserError, match=words):
        arrays(tmp_path / "a.npz")


def test_arrays_never_run_code(tmp_path):
    np.save(tmp_path / "inputs.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read as arrays"):
        arrays(tmp_path)


def test_what_is_missing_is_told_at_once(run, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(places, "HUB", "http://127.0.0.1:9")  # nobody listens there
    begin = time.perf_counter()
    code, _, err = run("train", "--task", "tinystories")
    assert code == 2 and time.perf_counter() - begin < 5  # with imports
    begin = time.perf_counter()
    with pytest.raises(UserError) as caught:
        get_task("tinystories")
    assert time.perf_counter() - begin < 1
    place = str(tmp_path / "none" / "tinystories" / "tinystories_train.txt")
    for said in (err, str(caught.value)):
        assert (
            place in said
            and "naming the task tinystories@PATH" in said
            and "cannot be reached" in said
            and said.strip().count("\n") == 0
        )


def test_what_is_missing_is_told_before_torch_is_loaded(tmp_path):
    """Which alone takes longer than the second within which it should be said."""
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom optforge.experiments.cli import app\n"
        "for words in ('train --task text@no', 'compare --tasks digits,mnist', 'search --task mnist',\n"
        "              'train --task wikitext:nano --data no'):\n"
        "    print(CliRunner().invoke(app, words.split()).output)\n"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"OPTFORGE_DATA": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.count("no does not exist") == 2 and "--data" not in done.stdout  # which compare has not
    assert done.stdout.count("needs data: put the folder of its four IDX files") == 2
    assert " ".join(done.stdout.split()).count("by naming the task mnist@PATH") == 2


def test_a_name_that_cannot_be_looked_up_does_not_take_longer(monkeypatch):
    over = threading.Event()

    def look_up(*args, **options):
        over.wait(3)
        raise OSError("unknown")

    monkeypatch.setattr(places.urllib.request, "urlopen", look_up)
    begin = time.perf_counter()
    assert not places.reachable("https://huggingface.co", 0.2) and time.perf_counter() - begin < 1
    over.set()


def test_offline_is_respected(monkeypatch):
    monkeypatch.setattr(places, "reachable", lambda *a: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        get_task("tinystories")


@pytest.mark.parametrize("breaks", [False, True])
def test_download_is_kept_whole_or_not_at_all(tmp_path, monkeypatch, breaks):
    class Rows:
        def take(self, count):
            yield {"text": "One day."}
            if breaks:
                raise ConnectionError("the line went dead")
            yield {"text": "The end."}

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(places, "reachable", lambda *a: True)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *a, **k: Rows()))
    place = places.Place("tinystories", "t/x.txt", "stories", hub="someone/stories")
    if breaks:
        with pytest.raises(UserError, match="the line went dead"):
            place.find()
        assert not list((tmp_path / "none" / "t").iterdir())
    else:
        assert place.find().read_text() == "One day.\n<|endoftext|>\nThe end."


@pytest.mark.parametrize(
    ("text", "words"),
    [("digits@x", "its own data and one size"), ("digits:micro", "leave out :micro"), ("mnist:micro", "in one size"),
     ("shakespeare:big", "unknown size 'big'"), ("mnist@", "a path is expected"), ("mnist@no", "does not exist"),
     ("mnst", "did you mean mnist"), ("no.py", "no file"), ("mnist", "put the folder of its four IDX files")],
)  # fmt: skip
def test_names_that_do_not_fit(text, words):
    with pytest.raises(UserError, match=words):
        get_task(text)


def test_paths_and_sizes_complete_a_name(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("to be or not to be " * 200)
    assert with_data("text", file) == f"text@{file}" and with_data("text", None) == "text"
    micro = get_task(f"text:micro@{file}")
    assert micro.name == "text-micro" and "t.txt" in micro.summary and micro.target is None
    assert initial_model(micro, 0).position.shape == (128, 128)
    for text in ("text@a", "mine.py"):
        with pytest.raises(UserError, match="leave --data out"):
            with_data(text, file)


def test_train_on_a_file(run, tmp_path):
    write_idx(tmp_path / "images")
    code, out, _ = run("train", "--task", "mnist", "--data", "images", "--steps", 2)
    assert code == 0 and "adamw on mnist" in out and (tmp_path / "runs" / "train-mnist-1" / "result.json").exists()


def example_data(name, folder):
    """A little of what each task reads."""
    if name in ("mnist", "mnist-vit", "fashion-mnist"):
        return write_idx(folder)
    if name == "arrays":
        np.savez(folder / "a.npz", inputs=np.eye(30), targets=np.arange(30) % 3)
        return folder / "a.npz"
    if name == "cifar10":
        for part in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
            rows = np.arange(20 * 3073, dtype=np.uint8).reshape(20, 3073)
            rows[:, 0] = np.arange(20) % 10
            (folder / f"{part}.bin").write_bytes(rows.tobytes())
        return folder
    if name in ("tinystories", "wikitext"):
        pytest.importorskip("tokenizers", reason="the extra text is not installed")
    (folder / "t.txt").write_text("".join(f"Tale {k} of {k * k}.<|endoftext|>" for k in range(2000)))
    return folder / "t.txt"


@pytest.mark.parametrize("name", FILE_TASKS)
def test_every_row_trains_on_what_it_reads(name, tmp_path):
    task = get_task(f"{name}@{example_data(name, tmp_path)}")
    small = replace(task, batch_size=4, data=lambda: Splits(*(Few(split) for split in task.data())))
    result = train(small, BASELINES["adamw"].program, 1e-3, steps=2)
    assert result.outcome.status is Status.OK and result.steps == 2


class Few:
    """The first examples of a split."""

    def __init__(self, split):
        self.batch, self.count = split.batch, min(8, len(split))

    def __len__(self):
        return self.count


MINE = """
import torch
from optforge.search.training.trial import Status
from optforge.search.training import Splits, Task, TensorSplit

x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
PART = TensorSplit(x, x.sum(1, keepdim=True))
TASK = Task(name="mine", summary="sums", model=lambda: torch.nn.Linear(3, 1), data=lambda: Splits(PART, PART, PART),
            loss=torch.nn.functional.mse_loss, metric="squared error", steps=3, batch_size=8, licence="mine")
"""


@pytest.mark.parametrize("command", ["train", "compare", "search"])
def test_tasks_of_yours(run, tmp_path, command):
    (tmp_path / "mine.py").write_text(MINE)
    few = {
        "train": [],
        "compare": ["--seeds", 2, "--tune-seeds", 1],
        "search": ["--programs", 4, "--workers", 0, "--steps", 3],
    }
    code, out, err = run(command, "--task", "mine.py", *few[command])
    assert code == 0, err
    assert "mine" in out and (tmp_path / "runs" / f"{command}-mine-1").is_dir()


@pytest.mark.parametrize(
    ("source", "words"),
    [("x = 1", "has nothing where TASK"), ("TASK = 3", "has a int"), ("import nowhere", "No module named"),
     ("\n1 / 0", "at line 2: ZeroDivisionError"), ("raise SystemExit(3)", "at line 1: SystemExit: 3"),
     ("def", "at line 1: SyntaxError"),
     (MINE.replace('name="mine"', 'name="digits"'), "as a task of optforge"),
     (MINE.replace('name="mine"', 'name="a/b"'), "letters, digits and hyphens"),
     (MINE.replace("steps=3", "steps=0"), "must be at least 1"),
     (MINE.replace("Splits(PART, PART, PART)", "None"), "has no attribute 'train'"),
     (MINE.replace("torch.nn.functional.mse_loss", "lambda a, b: a - b"), "is a tensor [2, 1]; one number is expected"),
     (MINE.replace("torch.nn.functional.mse_loss", "lambda a, b: (a * float('nan')).mean()"), "is nan before training"),
     (MINE.replace("Linear(3, 1)", "Linear(4, 1)"), "failed: RuntimeError: mat1 and mat2"),
     (MINE.replace("Linear(3, 1)", "Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout())"), "has Dropout")],
)  # fmt: skip
def test_files_without_a_task(run, tmp_path, source, words):
    (tmp_path / "bad.py").write_text(source)
    code, out, err = run("train", "--task", "bad.py")
    assert (code, out) == (2, "") and words in err and err.strip().count("\n") == 0
    assert not (tmp_path / "runs").exists()


def test_a_file_is_not_run_unasked(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemError")
    with pytest.raises(UserError, match="not run unasked"):
        get_task("evil.py", ready=False)
    assert get_task("mnist", ready=False) == TASKS["mnist"] or get_task("mnist", ready=False).steps == 500


def test_tasks_of_distributions(run, monkeypatch):
    module = types.ModuleType("optforge_test_tasks")
    exec(MINE, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    points = [EntryPoint("theirs", f"{module.__name__}:TASK", user_tasks.GROUP),
              EntryPoint("broken", "optforge_no_such:TASK", user_tasks.GROUP)]  # fmt: skip
    monkeypatch.setattr(
        user_tasks, "entry_points", lambda group, name=None: [p for p in points if name in (None, p.name)]
    )
    user_tasks.from_entry_point.cache_clear()
    good = module.TASK
    assert get_task("theirs").loss is good.loss
    for change, words in (
        ({"loss": lambda a, b: a - b}, r"the loss of task theirs \(.*:TASK\) is a tensor \[2, 1\]; one number"),
        ({"model": lambda: torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.BatchNorm1d(1))}, "has BatchNorm1d"),
        ({"model": lambda: torch.nn.Linear(4, 1)}, r"a batch of task theirs \(.*\) failed: RuntimeError"),
    ):
        monkeypatch.setattr(module, "TASK", replace(good, **change))
        user_tasks.from_entry_point.cache_clear()
        assert get_task("theirs", ready=False) is module.TASK, "nothing is tried"
        with pytest.raises(UserError, match=words):
            get_task("theirs")
    with pytest.raises(UserError, match=r"broken \(optforge_no_such:TASK\) cannot be loaded: ModuleNotFoundError"):
        get_task("broken")
    with pytest.raises(UserError, match="theirs"):
        get_task("their")
    assert user_tasks.installed() == ("broken", "theirs")
