"""The benchmark of GPUs where there is none: it says so, and what it would run runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.experiments.bench import gpu
from optforge.search.training.population.gradients import PRECISIONS
from optforge.search.training.population.replay import Replay

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_device_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--json", str(tmp_path / "figures.json")])
    gpu.main()
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="population and loop would run on different devices")
def test_every_precision_is_measured_and_compared_with_one_candidate() -> None:
    figures = gpu.throughput([BASELINES["adamw"].program], (1, 2), 2, "cpu")
    assert len(figures) == 1 + 2 * 2 * len(PRECISIONS)
    single = figures[0].value
    for rate, ratio in zip(figures[1::2], figures[2::2], strict=True):
        assert ratio.value == pytest.approx(rate.value / single)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("waits", [False, True])
def test_replay_calls_its_function_each_time(device: str, waits: bool) -> None:
    x = torch.zeros(3, device=device)

    def add(y: Tensor, z: Tensor) -> Tensor:
        assert not waits or y.sum().item() > 0  # which no graph can record
        return x.add_(y).mul(z)

    replay, results = Replay(add, x.device), []
    for i in range(1, 5):
        results.append(replay(torch.full((3,), float(i), device=device), torch.tensor(i, device=device)).tolist())
    assert x.tolist() == [10, 10, 10]
    assert results == [[1] * 3, [6] * 3, [18] * 3, [40] * 3]
    assert replay.records == (device == "cuda" and not waits)
