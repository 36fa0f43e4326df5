"""Paths on two-dimensional surfaces: their numbers, the pictures, and the command."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.colours import curve_style
from optforge.experiments.programs import trajectories
from optforge.experiments.programs.surfaces import SURFACES
from optforge.experiments.programs.trajectories import LR_GRID, PALETTE, Picture, as_json, follow, trajectory
from optforge.primitives import Builder, Kind, ProgramError, print_program
from optforge.primitives.routing import route

SGD = BASELINES["sgd"].program


def rows_only():
    b = Builder()
    rows = b.slot("rows", Kind.ROW)
    rows.next = b.lerp(rows, b.row_mean(b.square(b.g)), 0.1)
    return b.build(b.g / b.sqrt(rows.next))


# surfaces


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_minima_are_lowest_and_flat(surface):
    left, right, bottom, top = surface.frame
    grid = torch.cartesian_prod(
        torch.linspace(left, right, 201, dtype=torch.float64), torch.linspace(bottom, top, 201, dtype=torch.float64)
    )
    assert surface.function(grid).min() >= surface.lowest - 1e-12
    for x, y in (surface.start, *surface.minima):
        assert left < x < right and bottom < y < top
    minima = torch.tensor(surface.minima, dtype=torch.float64)
    assert surface.function(minima).tolist() == [surface.lowest] * len(minima)
    assert surface.gradient(minima).abs().max() == 0


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_gradients_are_those_of_differences(surface):
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = 1e-5
    for axis in range(2):
        side = torch.zeros(2, dtype=torch.float64)
        side[axis] = h
        slope = (surface.function(points + side) - surface.function(points - side)) / (2 * h)
        torch.testing.assert_close(surface.gradient(points)[:, axis], slope, rtol=1e-6, atol=1e-6)


def test_only_the_noisy_surface_has_noise_and_it_depends_on_the_seed():
    for surface in SURFACES.values():
        noise = surface.noises(1000, 0)
        assert torch.equal(noise, surface.noises(1000, 0))
        assert torch.equal(noise, surface.noises(1000, 1)) == (surface.name != "noisy")
    deviations = SURFACES["noisy"].noises(10_000, 0).std(0)
    torch.testing.assert_close(deviations, torch.tensor([0.5, 0.5 * 10**0.5], dtype=torch.float64), rtol=0.03, atol=0)


# paths


def test_gradient_descent_follows_the_closed_form():
    powers = np.arange(21)
    (bowl,), (zigzag,) = (follow(SGD, SURFACES[name], [0.3], 20) for name in ("bowl", "zigzag"))
    np.testing.assert_allclose(bowl.T, [0.5 * (1 - 2 * 0.3) ** powers] * 2, rtol=1e-12)
    np.testing.assert_allclose(zigzag[:, 0], 0.5 * (1 - 2 * 0.3) ** powers, rtol=1e-12)
    np.testing.assert_allclose(zigzag[:, 1], 0.5 * (1 - 6 * 0.3) ** powers, rtol=1e-12)
    assert (np.diff(np.sign(zigzag[:, 1])) != 0).all(), "it should jump over the valley with each step"


@pytest.mark.parametrize("name", BASELINES)
def test_paths_are_those_of_the_hand_written_optimizers(name):
    row, surface, steps = BASELINES[name], SURFACES["noisy"], 25
    rates = (0.003, 0.02)
    noise = surface.noises(steps, 3)
    for lr, found in zip(rates, follow(row.program, surface, rates, steps, 3), strict=True):
        p = nn.Parameter(torch.tensor(surface.start, dtype=torch.float64))
        optimizer = row.optimizer([p], lr=lr)
        points = [p.tolist()]
        for t in range(steps):
            p.grad = surface.gradient(p.detach()) + noise[t]
            optimizer.step()
            points.append(p.tolist())
        np.testing.assert_allclose(found, points, rtol=0, atol=1e-10)


def test_all_signals_are_there():
    b = Builder()
    rule = b.build(b.g / b.global_norm * b.progress * b.step)
    points = follow(rule, SURFACES["rosenbrock"], [0.01, 0.1], 4)
    lengths = np.linalg.norm(np.diff(points, axis=1), axis=2)
    np.testing.assert_allclose(lengths, np.outer([0.01, 0.1], [t * t / 4 for t in range(1, 5)]))


@pytest.mark.parametrize("name", ["sgd", "adam", "lion"])
@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_the_chosen_rate_goes_down_and_stays_in_the_frame(surface, name):
    path = trajectory(name, BASELINES[name].program, surface)
    assert path.points.shape == (surface.steps + 1, 2)
    assert path.losses[-1] - surface.lowest < 0.3 * (path.losses[0] - surface.lowest)
    assert path.left is None
    assert path.lr in LR_GRID if surface.lr is None else path.lr == 0.3


def test_a_given_rate_and_length_win():
    path = trajectory("sgd", SGD, SURFACES["rosenbrock"], lr=1e-4, steps=7)
    assert path.lr == 1e-4 and len(path.points) == len(path.losses) == 8
    np.testing.assert_array_equal(path.points, follow(SGD, SURFACES["rosenbrock"], [1e-4], 7)[0])


def test_divergence_is_leaving_the_frame():
    swinging = trajectory("sgd", SGD, SURFACES["zigzag"], lr=0.4)  # w₂ = 0.5, -0.7, 0.98, …
    assert swinging.left == 1 and "leaves the frame at step 1" in swinging.label
    growing = trajectory("sgd", SGD, SURFACES["zigzag"], lr=0.34)  # by 4 % a step: over the edge at 0.6, then at 0.7
    size = 0.5 * 1.04 ** np.arange(21)
    outside = [size[t] > (0.7 if t % 2 == 0 else 0.6) for t in range(21)]
    last_inside = max(t for t in range(21) if not outside[t])
    assert growing.left == last_inside + 1 > 4
    gone = trajectory("sgd", SGD, SURFACES["rosenbrock"], lr=1.0)
    assert gone.left == 1 and not np.isfinite(gone.points).all()
    record = json.dumps(as_json(SURFACES["rosenbrock"], [gone]), allow_nan=False)
    assert None in json.loads(record)["paths"][0]["losses"]
    assert Picture(SURFACES["rosenbrock"], [gone]).png()[:4] == b"\x89PNG"


def test_matrix_rules_follow_their_fallback_and_say_so():
    row = BASELINES["adafactor"]
    path = trajectory("adafactor", row.program, SURFACES["bowl"])
    np.testing.assert_array_equal(path.points, follow(route(row.program, (2,)), SURFACES["bowl"], [0.3], 20)[0])
    assert path.fallback and "fallback for vectors" in path.label
    assert not trajectory("sgd", SGD, SURFACES["bowl"]).fallback
    with pytest.raises(ProgramError, match=r"^mine: this program works on rows and columns.*fallback"):
        trajectory("mine", rows_only(), SURFACES["bowl"])


# pictures


def paths(surface, names=("sgd", "lion"), **options):
    return [trajectory(name, BASELINES[name].program, SURFACES[surface], **options) for name in names]


def test_every_path_has_its_own_look():
    looks = [tuple(map(str, curve_style(i, PALETTE).values())) for i in range(20)]
    assert len(set(looks)) == 20
    assert len({colour for colour, *_ in looks[:8]}) == 8
    colour_and_dashes = [(colour, dashes) for colour, _, dashes in looks]
    assert len(set(colour_and_dashes)) == 20, "markers may lie outside of the frame"


def test_the_picture_shows_what_it_should():
    picture = Picture(SURFACES["zigzag"], paths("zigzag"))
    texts = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert texts == ["sgd, lr 0.3", "lion, lr 0.3", "start", "minimum"]
    assert picture.axes.get_xlim() == (-0.6, 0.7) and "w_2^2" in picture.axes.get_title("left")
    drawn = picture.lines[0].get_xydata()
    np.testing.assert_array_equal(drawn, follow(SGD, SURFACES["zigzag"], [0.3], 20)[0])
    with Image.open(io.BytesIO(picture.png())) as image:
        assert image.format == "PNG" and min(image.size) > 400
        colours = {colour for _, colour in image.convert("RGB").getcolors(1_000_000)}
    for path in range(2):
        hexadecimal = curve_style(path, PALETTE)["color"]
        assert tuple(int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)) in colours


def test_levels_are_evenly_spaced_in_the_logarithm():
    picture = Picture(SURFACES["beale"], paths("beale"))
    levels = np.log(picture.axes.collections[1].levels)
    np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0])


def test_the_animation_ends_with_the_picture_and_the_bar_is_told():
    surface, told = SURFACES["noisy"], []
    picture = Picture(surface, paths("noisy"))
    data = picture.gif(told.append)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == len(picture.frames()) == told[-1] == 60
        assert image.info["loop"] == 0
        first = np.asarray(image.convert("RGB")).astype(int)
        image.seek(59)
        last = np.asarray(image.convert("RGB")).astype(int)
    assert picture.frames()[0] == 0 and picture.frames()[-1] == surface.steps
    assert (np.abs(first - last).max(axis=2) > 60).sum() > 500, "the paths did not grow"
    assert last[0, 0].tolist() == [255, 255, 255]
    for path in range(2):
        colour = [int(curve_style(path, PALETTE)["color"][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(last - colour).max(axis=2).min() < 16, "a path lost its colour"
    assert told == list(range(1, 61)) and len(data) < 1_000_000


def test_pictures_are_the_same_for_the_same_seed():
    one, same, other = (Picture(SURFACES["noisy"], paths("noisy", seed=s, steps=5)) for s in (0, 0, 1))
    assert one.png() == same.png() != other.png()
    assert one.gif() == same.gif()


# the command


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(app, ["trajectories", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def test_the_command_writes_pictures_and_numbers(run, tmp_path):
    (tmp_path / "mine.txt").write_text(print_program(BASELINES["lion"].program))
    code, out, _ = run("sgd", "sgd", "mine.txt", "--surface", "bowl", "--lr", 0.1, "--lr", "mine.txt=0.01", "--lr",
                       "sgd (2)=0.2", "--steps", 4, "--out", "a/b", "--json", "paths.json")  # fmt: skip
    assert code == 0 and "written to a/b: bowl.png and .gif" in out
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["bowl.gif", "bowl.png"]
    (surface,) = json.loads((tmp_path / "paths.json").read_text())["surfaces"]
    assert [(p["optimizer"], p["lr"]) for p in surface["paths"]] == [("sgd", 0.1), ("sgd (2)", 0.2), ("mine", 0.01)]
    np.testing.assert_allclose(surface["paths"][1]["points"], [[0.5 * 0.6**t] * 2 for t in range(5)])
    np.testing.assert_allclose(surface["paths"][1]["losses"], [0.5 * 0.6 ** (2 * t) for t in range(5)])


def test_by_default_all_surfaces(run, tmp_path):
    code, out, _ = run("--no-gif", "--steps", 1)
    assert code == 0 and all(f"{name}, 1 steps from" in out for name in SURFACES)
    assert sorted(p.name for p in (tmp_path / "runs/trajectories").iterdir()) == sorted(f"{n}.png" for n in SURFACES)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--surface", "bowls"], ["unknown surface 'bowls'; did you mean bowl?", "rosenbrock"]),
        (["adamv"], ["unknown optimizer 'adamv'; did you mean"]),
        (["sgd", "--lr", "sdg=0.1"], ["--lr sdg=0.1: 'sdg' is not drawn; did you mean sgd?"]),
        (["sgd", "--lr", "x"], ["--lr takes a positive number, or NAME=NUMBER, got 'x'"]),
        (["sgd", "--lr", "nan"], ["got 'nan'"]),
        (["sgd", "--lr", "sgd=-1"], ["got 'sgd=-1'"]),
        (["sgd", "--json", "no/x"], ["--json no/x cannot be written"]),
        (["sgd", "--out", "file"], ["file cannot be written: File exists"]),
        (["rows.txt"], ["rows: this program works on rows and columns"]),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(run, tmp_path, arguments, parts):
    (tmp_path / "file").touch()
    (tmp_path / "rows.txt").write_text(print_program(rows_only()))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("optforge: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "rows.txt"], "nothing should have been written"


def test_files_are_written_whole(run, tmp_path, monkeypatch):
    assert run("sgd", "--surface", "bowl", "--out", "a", "--steps", 1)[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(trajectories.Picture, "gif", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = run("lion", "--surface", "bowl", "--out", "a", "--steps", 1)
    assert code == 130 and "interrupted" in err
    after = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert set(after) == {"bowl.gif", "bowl.png"}
    assert after["bowl.gif"] == before["bowl.gif"] and after["bowl.png"] != before["bowl.png"]


def test_help_has_examples(run):
    code, out, _ = run("--help")
    assert code == 0 and "optforge trajectories " in out.split("Usage:")[1].split("Examples")[1]
