"""The report and its picture, made of files such as a study leaves behind."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from nas.cli import main
from nas.exit_codes import DONE, WRONG_INPUT
from nas.front_picture import HEIGHT, LEFT, RIGHT, WIDTH, front_picture, save_png, svg
from nas.report import command_line, page
from nas.settings import StudyFile


def finalist(trial, accuracy, latency, *, tier="measured", predicted=None, unfused=None, **known):
    predicted = predicted or latency

    def told(value, tier):
        return {"value": value, "low": 0.8 * value, "high": 1.3 * value, "tier": tier, "table": "board@0"}

    return {
        "trial": trial,
        "spec_id": f"s{trial}",
        "params": 1000 * trial,
        "macs": 5_000_000,
        "latency_ms": told(latency, tier),
        "predicted_latency_ms": told(predicted, "calibrated"),
        "unfused_latency_ms": unfused,
        "proxy": {"score": accuracy / 2, "loss": 3 - accuracy, "macs": 1.0, "on_front_of": ["loss"], **known},
        "accuracy": {"value": accuracy, "epochs": 3, "split": "validation", "images": 100},
        "test_accuracy": {"value": accuracy, "images": 90},
        "parity": {"max_abs": 1e-6, "max_rel": 1e-7},
        "certificate": {"kept": True, "why": "measured"},
    }


FINALISTS = [
    finalist(3, 0.5, 1.0, predicted=1.1, unfused=2.0),
    finalist(5, 0.9, 2.0, predicted=3.0, unfused=3.0),
    finalist(8, 0.8, 4.0, predicted=4.0),
]


def document(members=FINALISTS[:2]):
    return {
        "study": "mine",
        "target": "board",
        "budget_ms": 5.0,
        "data": "digits",
        "seed": 0,
        "created": "2026-11-20T08:00:00+00:00",
        "versions": {"python": "3.11.7"},
        "members": list(members),
    }


def record(**settings):
    return StudyFile(
        **{"study": "mine", "target": "board", "budget": "5ms"} | settings,
        created="2026-11-20T08:00:00+00:00",
        target_sha256="a" * 64,
        data_fingerprint="b" * 64,
        versions={},
    )


def run(finalists=FINALISTS):
    search = {"done": 40, "rejected": 7, "duplicates": 2, "failed": 1, "ended": "all trials done"}
    runs = [{"ended": "x", "seconds": {"search": 10.25, "finalists": 20.0}}, {"ended": "y", "seconds": {"search": 0.5}}]
    return {"finalists": list(finalists), "failures": ["finalist 9: it broke"], "search": search, "runs": runs}


def words(text):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


# The page


def test_it_holds_predictions_against_measurements():
    told = words(page(document(), record(), run()))
    assert "3 1.1 ms 1 ms +10 % yes 2 ms 2.00x" in told
    assert "5 3 ms 2 ms +50 % no 3 ms 1.50x" in told, "2 ms is below the interval from 2.4 to 3.9"
    assert "8 4 ms 4 ms +0 % yes - -" in told
    assert "off by 20 % on average" in told
    assert "they take 1.75 times as long on average" in told


def test_it_says_when_nothing_was_measured():
    only = [finalist(3, 0.5, 1.0, tier="calibrated")]
    told = words(page(document(only), record(), run(only)))
    assert "No finalist ran on the device" in told
    assert "its interval is the error seen on other networks" in told
    assert "1 trained network: too few to say anything about the scores" in told


def test_it_says_how_far_the_scores_agree_with_the_accuracy_and_on_how_few_points():
    told = words(page(document(), record(score="dispersion"), run()))
    assert "dispersion, which led +1.00 33.3 %" in told
    assert "early loss, lower is better +1.00 33.3 %" in told
    assert "macs - -" in told, "all the same"
    assert "3 points, chosen because a score favoured them" in told


def test_it_adds_up_what_the_runs_took():
    told = words(page(document(), record(), run()))
    assert "search 10.8 finalists 20.0" in told
    assert "the sum of 2 runs" in told
    assert "40 candidates were looked at, 7 proposals were turned down" in told
    assert "finalist 9: it broke" in told


def test_it_says_how_far_an_accuracy_may_be_off():
    # sqrt(0.9 * 0.1 / 100) = 0.03
    assert "On 100 validation images an accuracy of 90.0 % has a standard error of 3.0 points." in words(
        page(document(), record(), run())
    )


def test_it_can_be_typed_again():
    typed = command_line(record(data="my photos", trials=60, workers=7, storage="mysql://me:secret@db/x", epochs=3))
    assert typed == "nas search --study mine --target board --budget 5ms --data 'my photos' --trials 60 --epochs 3"
    with_genes = command_line(record(genes={"resolution": [32, 48]}))
    assert with_genes.startswith("nas search STUDY.yaml --study mine")
    assert "genes:\n  resolution:\n  - 32\n  - 48" in with_genes


# The picture


def test_points_lie_where_their_figures_say():
    drawn = svg(front_picture(FINALISTS, {3, 5}, 5.0), alone=True)
    root = ElementTree.fromstring(drawn)
    titled = {each[0].text: each for each in root if len(each) and each[0].tag.endswith("title")}
    assert set(titled) == {
        "trial 3: 0.500 at 1.00 ms",
        "trial 5: 0.900 at 2.00 ms",
        "trial 8: 0.800 at 4.00 ms",
    }
    ring = titled["trial 8: 0.800 at 4.00 ms"]
    assert ring.tag.endswith("circle"), "not on the front"
    # The axis ends at 6 ms: the longest interval ends at 5.2.
    assert float(ring.get("cx")) == pytest.approx(LEFT + 4 / 6 * (WIDTH - LEFT - RIGHT), abs=0.1)
    diamonds = [titled[name] for name in titled if not name.startswith("trial 8")]
    assert all(each.tag.endswith("path") for each in diamonds)
    (ticks,) = [[each.text for each in root if each.tag.endswith("text")]]
    assert {"0", "2", "4", "6", "budget 5 ms", "3", "5"} <= set(ticks)


def test_extremes_can_be_drawn():
    for finalists in ([], [finalist(1, 1.0, 0.001)], [finalist(1, 0.0, 1000.0), finalist(2, 0.0, 1000.0)]):
        ElementTree.fromstring(svg(front_picture(finalists, {1}, 0.01), alone=True))


def test_the_same_picture_in_pixels(tmp_path):
    save_png(front_picture(FINALISTS, {3, 5}, 5.0), tmp_path / "front.png", scale=2)
    image = Image.open(io.BytesIO((tmp_path / "front.png").read_bytes())).convert("RGB")
    assert image.size == (2 * WIDTH, 2 * HEIGHT)
    pixels = np.asarray(image).reshape(-1, 3)
    # The two colours of the marks, Okabe and Ito's vermillion and blue.
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):
        assert (pixels == colour).all(1).sum() > 50


# The command


@pytest.fixture
def study(tmp_path):
    import yaml

    folder = tmp_path / "studies" / "mine"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(record().model_dump()))
    (folder / "front.json").write_text(json.dumps(document()))
    (folder / "run.json").write_text(json.dumps(run()))
    return folder


def test_the_command_writes_what_was_asked_for_and_nothing_else(study, tmp_path, capsys):
    files = {kind: tmp_path / f"picture.{kind}" for kind in ("html", "svg", "png")}
    words = ["--out", files["html"], "--svg", files["svg"], "--png", files["png"], "--json"]
    assert main(["report", str(study), *map(str, words)]) == DONE
    assert json.loads(capsys.readouterr().out) == {kind: str(path) for kind, path in files.items()}
    assert files["html"].read_text(encoding="utf-8") == page(document(), record(), run())
    assert ElementTree.parse(files["svg"]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert not (study / "report.html").exists()
    assert main(["report", "mine", "--studies", str(study.parent)]) == DONE
    assert (study / "report.html").read_bytes() == files["html"].read_bytes()


@pytest.mark.parametrize(
    ("missing", "part"),
    [("front.json", "has no front yet"), ("run.json", "has no finished run on record"), ("study.yaml", "no study")],
)
def test_a_study_that_is_not_finished_is_told_how_to_go_on(study, capsys, missing, part):
    (study / missing).unlink()
    assert main(["report", str(study)]) == WRONG_INPUT
    told = capsys.readouterr().err
    assert part in told
    assert told.count("\n") == 1
    assert not (study / "report.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"finalists": []}'])
def test_a_damaged_record_is_named(study, capsys, content):
    (study / "run.json").write_text(content)
    assert main(["report", str(study)]) == WRONG_INPUT
    assert "run.json" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_first(study, tmp_path, capsys):
    assert main(["report", str(study), "--out", str(tmp_path / "no" / "r.html")]) == WRONG_INPUT
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", str(study), "--png", str(tmp_path)]) == WRONG_INPUT
    assert "is a folder" in capsys.readouterr().err
