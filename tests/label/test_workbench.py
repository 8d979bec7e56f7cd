"""Labels, scores, ranking and retraining of a workbench, without a server."""

import io
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.errors import InputError
from monai_wscxr.label import workbench as workbench_module
from monai_wscxr.label.archive.folder import FolderStudies
from monai_wscxr.label.archive.studies import Refused, UnknownImage
from monai_wscxr.label.workbench import Workbench
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.system.atomic import DiskFullError
from tests.helpers.chest_checks import refuse_unlike

OPTIONS = {
    "image_size": 64,
    "neighbourhood": 3,
    "epochs": 2,
    "min_batches": 5,
    "device": "cpu",
    "backbone": "timm/test_resnet",
    "false_positive_rate": 0.3,
}


@pytest.fixture(scope="module")
def options(weights):
    return {**OPTIONS, "weights": str(weights)}


@pytest.fixture
def make(phantoms, studies_folder, tmp_path, options):
    """Function that opens a workbench on the studies and closes the previous one."""
    opened = []

    def open_bench(normals=phantoms / "train" / "normal", refresh=True, **named):
        for bench in opened:
            bench.close()
        bench = Workbench(
            FolderStudies(studies_folder, tmp_path / "work"), tmp_path / "work", normals, options=options, **named
        )
        opened.append(bench)
        if refresh:
            bench.refresh()
        return bench

    yield open_bench
    for bench in opened:
        bench.close()


def named(bench, part):
    return next(e["id"] for e in bench.queue("random") + bench.queue("labelled") if part in e["name"])


# ---- labels


def test_a_label_that_an_exact_copy_contradicts_is_refused(make, studies_folder, phantoms):
    first = sorted((studies_folder / "normal").iterdir())[0]
    shutil.copy(first, studies_folder / "copy.png")
    shutil.copy(sorted((phantoms / "train/normal").iterdir())[0], studies_folder / "known.png")
    bench = make()
    bench.set_label(named(bench, first.name), 0)
    with pytest.raises(Refused, match=f"exact copy of normal/{first.name}") as error:
        bench.set_label(named(bench, "copy.png"), 1)
    assert error.value.reason == "contradiction"
    assert bench.set_label(named(bench, "copy.png"), 0)["label"] == 0
    with pytest.raises(Refused, match="a known normal image"):
        bench.set_label(named(bench, "known.png"), 1)
    assert bench.set_label(named(bench, "copy.png"), None)["label"] is None


def test_a_file_that_is_no_radiograph_is_listed_and_takes_no_label(make, studies_folder):
    (studies_folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    bench = make()
    assert bench.status()["rejected"] == 1
    assert bench.status()["scored"] == 8
    broken = next(i for i in bench.studies.ids() if bench.studies.name(i) == "broken.png")
    assert broken not in {e["id"] for e in bench.queue("random")}
    entry = bench.item(broken)
    assert entry["reason"] == "unreadable"
    assert "damaged" in entry["message"]
    for refused in (lambda: bench.set_label(broken, 1), lambda: bench.map_png(broken)):
        with pytest.raises(Refused) as error:
            refused()
        assert (error.value.reason, str(error.value)) == ("unreadable", entry["message"])
    for path in (str(studies_folder), "broken.png"):
        assert path not in entry["message"]


def test_an_image_unlike_a_chest_is_listed_with_its_reason_until_a_model_accepts_it(make, phantoms):
    bench = make()
    first = bench.studies.ids()[0]
    accepted = bench.scores.model
    folder = (bench.folder / "model").resolve()
    refuse_unlike(folder, None, 1e-9)
    bench = make()
    assert (bench.status()["scored"], bench.status()["rejected"]) == (0, 8)
    assert bench.queue("most_suspicious") == []
    entry = bench.item(first)
    assert (entry["reason"], entry["anomaly_score"]) == ("unlike_a_chest", None)
    with pytest.raises(Refused) as error:
        bench.map_png(first)
    assert (error.value.reason, str(error.value)) == ("unlike_a_chest", entry["message"])
    bench.scores.replace(accepted, bench.scores.score_all(accepted, lambda share: None))
    refuse_unlike(folder, None, 1e9)
    bench = make()
    assert (bench.status()["scored"], bench.status()["rejected"]) == (8, 0)


def test_a_labelled_image_that_is_deleted_affects_that_image_alone(make, studies_folder, phantoms, tmp_path):
    known = shutil.copytree(phantoms / "train" / "normal", tmp_path / "known")
    bench = make(normals=known)
    for part in ("consolidation", "effusion"):
        bench.set_label(named(bench, part), 1)
    gone = named(bench, "normal_0000")
    bench.set_label(gone, 0)
    bench.studies.file(gone).unlink()
    sorted(known.iterdir())[0].unlink()
    # no search since: the others are labelled, trained and scored
    assert bench.set_label(named(bench, "nodule"), 1)["label"] == 1
    assert bench.set_label(named(bench, "normal_0001"), 0)["label"] == 0
    bench.train()
    assert bench.status()["model"]["abnormal"] == 3
    with pytest.raises(UnknownImage):
        bench.set_label(gone, 1)
    bench.refresh()
    assert bench.status()["images"] == bench.status()["scored"] == 7
    assert bench.status()["labels"] == {"normal": 1, "abnormal": 3, "skipped": 0}
    bench.train()


# ---- ranking


def test_scores_from_cached_features_are_those_of_the_model_on_the_files(make):
    bench = make()
    for part, label in (("consolidation", 1), ("effusion", 1), ("normal_0000", 0)):
        bench.set_label(named(bench, part), label)
    bench.train()
    model = load_model(bench.folder / "model")
    entries = {str(bench.studies.file(e["id"])): e for e in map(bench.item, bench.studies.ids())}
    for prediction in predict_files(model, list(entries)):
        entry = entries[prediction.file]
        assert entry["anomaly_score"] == pytest.approx(prediction.anomaly_score, rel=1e-4, abs=1e-5)
        assert entry["p_value"] == prediction.p_value
        assert entry["abnormal"] == prediction.abnormal
        h, w = prediction.patch_scores.shape
        y, x = np.unravel_index(prediction.patch_scores.argmax(), (h, w))
        assert entry["peak"] == pytest.approx([(x + 0.5) / w, (y + 0.5) / h])


def test_before_the_first_abnormal_label_the_score_is_the_distance_to_the_normals(make):
    bench = make()
    assert bench.status()["model"]["abnormal"] == 0
    features = bench.trainer.extractor
    known = features.bank([{"image": i["image"]} for i in bench.labelled.normals])
    model = load_model(bench.folder / "model")
    # the squared length after whitening, computed independently in float64 from the same normal images
    held = {
        p
        for p in known.files
        if features.digest(p)
        not in json.loads((bench.folder / "model/artefact.json").read_text())["training"]["digests"]
    }
    assert not held
    image_id = bench.studies.ids()[0]
    _, rows, _ = features.usable([str(bench.studies.file(image_id))])
    whitened = (rows[0].double() - model.network.whitening.mean.double()) @ model.network.whitening.matrix.double()
    scores = (whitened**2).mean(1) + whitened @ model.network.discriminator.opacity.double()
    expected = anomaly_score(scores.reshape(1, 1, *features.grid), model.score_share)
    assert bench.item(image_id)["anomaly_score"] == pytest.approx(float(expected[0, 0]), rel=1e-4)


def test_without_normals_there_is_no_model_and_no_score(make):
    bench = make(normals=None)
    assert bench.status()["model"] is None
    entry = bench.queue("most_suspicious")[0]
    assert (entry["anomaly_score"], entry["rank"], entry["peak"]) == (None, None, None)
    with pytest.raises(Refused) as error:
        bench.map_png(entry["id"])
    assert error.value.reason == "no_model"
    for part in ("normal_0000", "normal_0001", "normal_0002"):
        bench.set_label(named(bench, part), 0)
    bench.refresh()
    assert bench.status()["model"]["abnormal"] == 0
    assert bench.status()["scored"] == 8


def test_a_file_that_changes_is_scored_again(make, studies_folder):
    bench = make()
    path = sorted((studies_folder / "normal").iterdir())[0]
    image_id = named(bench, path.name)
    before = bench.item(image_id)["anomaly_score"]
    picture = np.asarray(Image.open(path)).copy()
    picture[20:40, 20:40] = 255
    Image.fromarray(picture).save(path)
    os.utime(path, ns=(1, 1))
    bench.refresh()
    assert bench.item(image_id)["anomaly_score"] != before
    path.unlink()
    bench.refresh()
    assert bench.status()["images"] == bench.status()["scored"] == 7


# ---- queue and pictures


def test_the_queue_asks_for_varied_images_and_says_why(make):
    assert {e["why"] for e in make(normals=None).queue()} == {"Not scored yet"}
    bench = make()
    queue = bench.queue()
    assert queue == bench.queue("varied")
    assert queue[0]["why"].startswith("Suspicious, and ")
    directions = np.stack(
        [s.direction for s in bench.scores.score_all(bench.scores.model, lambda share: None).values()]
    )
    assert np.linalg.norm(directions.astype(np.float32), axis=1) == pytest.approx(np.ones(8), abs=2e-3)
    assert abs(np.corrcoef(directions.astype(np.float32))[0, 1:]).max() < 0.99  # images differ
    assert [e["why"] for e in bench.queue("random", 2)] == ["Drawn at random"] * 2


def test_the_queue_leaves_out_what_has_been_looked_at(make):
    bench = make()
    first, second, *_ = bench.queue("most_suspicious")
    assert (first["rank"], second["rank"]) == (1, 2)
    bench.set_label(first["id"], 1, "nodule")
    bench.set_label(second["id"], None, skipped=True)
    rest = bench.queue("most_suspicious")
    assert len(rest) == 6
    assert bench.queue("most_suspicious", 2, 2) == rest[2:4]
    labelled = bench.queue("labelled")
    assert [e["id"] for e in labelled] == [second["id"], first["id"]]
    assert {e["why"] for e in labelled} == {bench.item(first["id"])["why"]} == {None}
    assert labelled[0]["skipped"]
    assert labelled[1]["class"] == "nodule"
    assert bench.status()["labels"] == {"normal": 0, "abnormal": 1, "skipped": 1}
    assert bench.status()["classes"] == ["nodule"]
    for n, offset in ((0, 0), (1001, 0), (5, -1)):
        with pytest.raises(InputError):
            bench.queue("random", n, offset)


def test_pictures_have_one_size_and_the_aspect_of_the_image(make, studies_folder):
    wide = np.asarray(Image.open(next(studies_folder.rglob("*.png"))).resize((1500, 900)))
    Image.fromarray(wide).save(studies_folder / "wide.png")
    bench = make()
    image_id = named(bench, "wide.png")
    radiograph = Image.open(io.BytesIO(bench.radiograph_png(image_id)))
    overlaid = Image.open(io.BytesIO(bench.map_png(image_id)))
    assert radiograph.mode == "L"
    assert overlaid.mode == "RGBA"
    assert radiograph.size == overlaid.size == (1024, 614)
    alpha, model = np.asarray(overlaid)[..., 3], load_model(bench.folder / "model")
    values = bench.predict(image_id).anomaly_map
    assert (values.max() > model.calibration.colour_low) == (alpha.max() > 0)
    with pytest.raises(UnknownImage):
        bench.radiograph_png("nothing")


# ---- training


def test_training_is_refused_until_it_can_work(make):
    bench = make()
    with pytest.raises(Refused) as error:
        bench.start_training()
    assert error.value.reason == "no_abnormal"
    bench = make(normals=None)
    bench.set_label(named(bench, "effusion"), 1)
    with pytest.raises(Refused) as error:
        bench.start_training()
    assert error.value.reason == "no_normal"
    bench = make(read_only=True)
    for call in (bench.start_training, lambda: bench.set_label(bench.studies.ids()[0], 0)):
        with pytest.raises(Refused) as error:
            call()
        assert error.value.reason == "read_only"


def test_training_in_the_background_reports_its_stages_and_what_changed(make):
    bench = make()
    for part in ("consolidation", "effusion", "nodule"):
        bench.set_label(named(bench, part), 1, part)
    bench.set_label(named(bench, "normal_0000"), 0)
    before = {e["id"]: e for e in map(bench.item, bench.studies.ids())}
    assert bench.changes() is None
    bench.start_training()
    with pytest.raises(Refused) as error:
        bench.start_training()
    assert error.value.reason == "busy"
    stages = set()
    while (state := bench.training())["state"] == "running":
        stages.add(state["stage"])
        time.sleep(0.001)
    assert state["state"] == "done", state
    assert {"features", "training"} <= stages <= {"features", "mining", "training", "scoring"}
    changes = bench.changes()
    assert changes["new_labels"] == 4
    assert changes["model_before"] != changes["model_after"] == bench.status()["model"]["sha256"]
    assert bench.status()["model"]["normal"] + 1 < 21
    assert bench.status()["model"]["abnormal"] == 3
    assert len(changes["moved"]) == 8
    for move in changes["moved"]:
        assert move["rank_before"] == before[move["id"]]["rank"]
        assert move["score_after"] == bench.item(move["id"])["anomaly_score"]
        assert bench.item(move["id"])["rank_before"] == move["rank_before"]


def test_a_label_that_changes_while_the_training_lists_its_images_is_listed_once(make, monkeypatch):
    bench = make()
    bench.set_label(named(bench, "effusion"), 1)
    bench.set_label(changing := named(bench, "normal_0000"), 0)
    items = bench.labelled.items

    def changed_between(label, *given):
        found = items(label, *given)
        bench.set_label(changing, 1)
        return found

    monkeypatch.setattr(bench.labelled, "items", changed_between)
    bench._job.begin("features")
    bench._train()
    assert bench.status()["model"]["abnormal"] == 1
    assert bench.status()["new_labels"] == 1


def test_a_training_that_fails_leaves_the_old_model_at_work(make, monkeypatch):
    bench = make()
    old = bench.status()["model"]["sha256"]
    order = [e["id"] for e in bench.queue("most_suspicious")]
    bench.set_label(named(bench, "effusion"), 1)

    def fail(*_):
        raise RuntimeError("PATIENT NAME")

    monkeypatch.setattr("monai_wscxr.label.workbench.load_model", fail)
    bench._job.begin("features")
    bench._train_in_background()
    assert bench.training()["state"] == "failed"
    assert "PATIENT" not in bench.training()["message"]
    assert bench.status()["model"]["sha256"] == old == load_model(bench.folder / "model").sha256
    assert [e["id"] for e in bench.queue("most_suspicious")] == [i for i in order if i != named(bench, "effusion")]


def test_a_restart_finds_labels_and_model(make):
    bench = make()
    bench.set_label(named(bench, "effusion"), 1, "fluid")
    bench.train()
    sha256 = bench.status()["model"]["sha256"]
    scores = {i: bench.item(i)["anomaly_score"] for i in bench.studies.ids()}
    again = make()
    assert again.status()["model"]["sha256"] == sha256
    assert again.item(named(again, "effusion"))["class"] == "fluid"
    assert {i: again.item(i)["anomaly_score"] for i in scores} == pytest.approx(scores, rel=1e-5)


def test_a_work_folder_belongs_to_one_server_and_its_studies(make, tmp_path, phantoms, options):
    bench = make()
    studies = FolderStudies(phantoms / "test", tmp_path / "elsewhere")
    with pytest.raises(InputError, match="another server is working"):
        Workbench(studies, bench.folder, options=options)
    bench.close()
    with pytest.raises(InputError, match="belongs to the studies"):
        Workbench(studies, bench.folder, options=options)


def test_an_option_that_train_yaml_lacks_or_that_changes_features_is_refused(make, studies_folder, tmp_path):
    bench = make()
    bench.close()
    for options, words in (
        ({"image_sise": 64}, "did you mean image_size"),
        ({"k": 3}, "k cannot be set for all trainings"),
        ({"neighbourhood": 1}, "other options"),
    ):
        with pytest.raises(InputError, match=words):
            Workbench(FolderStudies(studies_folder, tmp_path / "work"), tmp_path / "work", options=options)
    # without options, those of the model apply
    Workbench(FolderStudies(studies_folder, tmp_path / "work"), tmp_path / "work", options={}).close()


def test_half_files_of_killed_servers_are_removed_at_the_start(make):
    bench = make()
    bench.close()
    left = [bench.folder / ".workbench.json.1a.partial", bench.models.models / ".000007.json.2b.partial"]
    for path in left:
        path.write_text("half")
    make()
    assert not any(path.exists() for path in left)


def test_a_training_ends_at_its_next_step_when_the_server_stops(make, monkeypatch):
    bench = make()
    bench.set_label(named(bench, "effusion"), 1)
    reached, inner = [], bench._job.report

    def report(stage, fraction):
        reached.append(stage)
        inner(stage, fraction)
        bench.stop()  # as a handler of Ctrl-C would, in the middle

    monkeypatch.setattr(bench._job, "report", report)
    before = bench.models.current()
    with pytest.raises(Refused, match="being stopped"):
        bench.train()
    assert len(reached) == 1
    assert bench.training()["state"] == "failed"
    assert bench.training()["message"] == "the server is being stopped"
    assert bench.close()
    with pytest.raises(Refused, match="being stopped"):
        bench.refresh()
    assert make().models.current() == before


def test_closing_tells_when_a_computation_has_not_ended(make, monkeypatch):
    monkeypatch.setattr(workbench_module, "_STOP_SECONDS", 0.05)
    bench = make()
    with bench._busy:
        assert not bench.close()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/tmp/secret/model"), DiskFullError("5 kB are missing")]
)
def test_a_training_on_a_full_disk_says_what_is_missing_and_leaves_nothing(make, monkeypatch, error):
    bench = make()
    bench.set_label(named(bench, "abnormal/"), 1)
    before = sorted(path.name for path in bench.models.models.iterdir())

    def fail(*_):
        raise error

    monkeypatch.setattr(bench.scores, "score_all", fail)  # the trained model is on the disk by then
    with pytest.raises(DiskFullError):
        bench.train()
    state = bench.training()
    assert state["state"] == "failed"
    assert " are missing" in state["message"]
    assert "/tmp" not in state["message"]
    assert sorted(path.name for path in bench.models.models.iterdir()) == before
    monkeypatch.undo()
    bench.train()
    assert bench.training()["state"] == "done"
