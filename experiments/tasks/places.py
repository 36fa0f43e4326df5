"""Where data lie that do not come with a package, and what is said when they are not there."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from optforge.experiments.errors import UserError

FOLDER = "OPTFORGE_DATA"
"""Environment variable that names the folder for all data."""

HUB = "https://huggingface.co"
PATIENCE = 0.7  # seconds to wait for the hub: whoever has no network is told so within a second


@dataclass(frozen=True)
class Place:
    """Where the data of one task are looked for.

    Attributes:
        task: name of the task.
        where: file or folder below `data_folder()`.
        wants: what has to be there, in words.
        hub: name of a data set of stories or articles on the Hugging Face hub that can take its place, if any; its
            rows have a field ``text``.
        rows: how many of its rows are taken.
    """

    task: str
    where: str
    wants: str
    hub: str | None = None
    rows: int = 50_000

    def find(self, path: Path | None = None) -> Path:
        """`path`, or the place below the data folder; downloads what is missing there if it can.

        Raises:
            UserError: if nothing is there, with what to put where.
        """
        place = data_folder() / self.where if path is None else path.expanduser()
        if place.exists():
            return place
        if path is not None:
            raise UserError(f"{path} does not exist; task {self.task} reads {self.wants}")
        reason = self._download(place) if self.hub else ""
        if not reason and place.exists():
            return place
        raise UserError(
            f"task {self.task} needs data{reason}: put {self.wants} at {place}, or say where it is by naming "
            f"the task {self.task}@PATH"
        )

    def _download(self, place: Path) -> str:
        """Write the hub's rows to `place`; returns what went wrong, to be put into a sentence."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            return " and HF_HUB_OFFLINE is set"
        if not reachable(HUB):
            return f" and {HUB} cannot be reached"
        try:
            from datasets import load_dataset
        except ImportError:
            return ", which are downloaded if you pip install 'optforge[text]'"
        try:
            rows = load_dataset(self.hub, split="train", streaming=True).take(self.rows)
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f"{place.name}.{os.getpid()}.part")
            try:
                part.write_text(f"\n{END}\n".join(row["text"] for row in rows), encoding="utf-8")
                part.replace(place)
            finally:
                part.unlink(missing_ok=True)
        except Exception as error:  # anything may go wrong between here and there
            return (
                f" and the download of {self.hub} failed ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            )
        return ""


_IDX = "the folder of its four IDX files (train-images-idx3-ubyte and so on, gzipped or not)"
LAYOUT = "arrays called inputs and targets (.npy files in a folder, or one .npz)"

PLACES: Mapping[str, Place] = MappingProxyType({
    place.task: place
    for place in (
        Place("mnist", "mnist", _IDX),
        Place("mnist-vit", "mnist", _IDX),
        Place("fashion-mnist", "fashion-mnist", _IDX),
        Place("cifar10", "cifar10", "the folder of its binary files (data_batch_1.bin and so on)"),
        Place("shakespeare", "tinyshakespeare/input.txt", "tiny-shakespeare's input.txt"),
        Place("tinystories", "tinystories/tinystories_train.txt",
              "a text file of stories with <|endoftext|> between them", hub="roneneldan/TinyStories"),
        Place("wikitext", "wikitext/wiki.train.raw", "the raw training text of WikiText-2, wiki.train.raw"),
        Place("text", "text/input.txt", "a text file of yours"),
        Place("arrays", "arrays", LAYOUT),
    )
})  # fmt: skip
"""Of every task whose data lie in files."""


def look_up(task: str, data: Path | None = None) -> None:
    """Find the data of a task, named as on the command line, if it has any in files: before anything slow is loaded.

    Raises:
        UserError: if there are none, as `Place.find`.
    """
    front, at, path = task.strip().partition("@")
    place = PLACES.get(front.partition(":")[0])
    if place is not None and not (at and (data or not path)):  # which is refused in other words
        place.find(Path(path) if at else data)


END = "<|endoftext|>"
"""What separates stories or articles in a text file."""


def data_folder() -> Path:
    """The folder in ``OPTFORGE_DATA``, or ``~/.cache/optforge``."""
    return Path(os.environ.get(FOLDER) or "~/.cache/optforge").expanduser().absolute()


def reachable(address: str, patience: float = PATIENCE) -> bool:
    """Whether a web server answers within `patience` seconds, in whatever words, through the proxy if there is one."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=patience).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return
        answered.set()

    threading.Thread(target=ask, daemon=True).start()  # looking up a name takes no time limit
    return answered.wait(patience)
