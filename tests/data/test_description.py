"""Findings, sex, age band, view, site and device: from datalists and DICOM headers, and what is not said."""

import json

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.datalist import DatalistError, load_datalist
from monai_wscxr.data.description import age_band, findings_of_item, groups_of_items
from tests.helpers.radiograph_files import dicom


@pytest.mark.parametrize(
    ("age", "band"),
    [
        *(("0", "0-17"), ("17", "0-17"), ("17.9", "0-17"), ("18", "18-39"), ("040Y", "40-64"), ("64", "40-64")),
        *(("65", "65+"), ("120", "65+"), ("006M", "0-17"), ("099D", "0-17"), ("480m", "40-64"), (" 70 ", "65+")),
        *((text, "unknown") for text in ("", "414", "-3", "old", "nan", "12 Y", "1e2")),
    ],
)
def test_age_bands(age, band):
    assert age_band(age) == band


@pytest.mark.parametrize(
    ("said", "cls", "found"),
    [
        (["Mass", "Nodule", "Mass"], "Mass", ("Mass", "Nodule")),
        (["No Finding"], "bacteria", ("bacteria",)),
        ([], "abnormal", ("unknown",)),
        (None, "virus", ("virus",)),
    ],
)
def test_findings(said, cls, found):
    item = {"class": cls} if said is None else {"class": cls, "findings": said}
    assert findings_of_item(item) == found


def test_columns_and_keys_of_a_datalist(tmp_path):
    for name in "abc":
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    table = (
        "image,split,label,class,findings,sex,age,view,site,device\n"
        "a.png,train,0,normal,No Finding,F,50,PA,north,\nb.png,test,1,Mass,Mass|Nodule,M,,AP,,D1\n"
    )
    (tmp_path / "list.csv").write_text(table)
    [ill] = load_datalist(tmp_path / "list.csv")["test"]
    assert ill["findings"] == ["Mass", "Nodule"]
    assert {name: ill[name] for name in ("sex", "view", "device")} == {"sex": "M", "view": "AP", "device": "D1"}
    assert not {"age", "site"} & set(ill)
    entry = {"image": "a.png", "label": 0, "sex": "F", "age": 50, "findings": ["No Finding"]}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    [normal] = load_datalist(tmp_path / "list.json")["training"]
    assert (normal["age"], normal["findings"]) == ("50", ["No Finding"])


def test_a_column_that_comes_close_is_named(tmp_path, caplog):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,split,label,Age,device_id,boxes\na.png,train,0,3,4,5\n")
    load_datalist(tmp_path / "list.csv")
    [line] = [r.getMessage() for r in caplog.records if "additional" in r.getMessage()]
    assert "'Age' (did you mean 'age'?), 'device_id' (did you mean 'device'?), 'boxes'" in line


@pytest.mark.parametrize(("name", "value"), [("sex", ["F"]), ("findings", [1]), ("findings", {"a": 1}), ("age", True)])
def test_wrong_types_are_named(tmp_path, name, value):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    entry = {"image": "a.png", "label": 0, name: value}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(DatalistError, match=f"{name} is (list|dict|bool); expected a"):
        load_datalist(tmp_path / "list.json")


def test_headers_say_what_the_datalist_does_not(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    header = {
        "PatientSex": "F",
        "PatientAge": "045Y",
        "ViewPosition": "PA",
        "Manufacturer": "Maker",
        "ManufacturerModelName": "One",
    }
    dicom(tmp_path / "a.dcm", pixels, **header)
    dicom(tmp_path / "b.dcm", pixels, PatientSex="X", PatientAge="999Y", ViewPosition="A NAME")
    Image.new("L", (8, 8)).save(tmp_path / "c.png")
    (tmp_path / "torn.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:180])
    items = [{"image": str(tmp_path / name)} for name in ("a.dcm", "b.dcm", "c.png", "torn.dcm", "missing.dcm")]
    items.append({"image": items[0]["image"], "sex": "M", "age": "3", "site": "north", "view": "unknown"})
    assert groups_of_items(items) == {
        "sex": ["female", *["unknown"] * 4, "male"],
        "age": ["40-64", *["unknown"] * 4, "0-17"],
        "view": ["PA", *["unknown"] * 5],
        "site": [*["unknown"] * 5, "north"],
        "device": ["Maker One", *["unknown"] * 4, "Maker One"],
    }
