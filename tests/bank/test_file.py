"""Banks in a single file: rows as they were written, also by another program; other files are refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_wscxr.bank.file import BankFile, save_rows
from monai_wscxr.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_and_safetensors_reads_them(tmp_path, dtype):
    path = tmp_path / "bank.safetensors"
    rows = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)).to(dtype).T  # not contiguous
    save_rows(path, rows)
    bank = BankFile(path)
    assert (bank.shape, bank.dtype) == ((20, 6), dtype)
    assert torch.equal(bank.read(0, torch.empty(20, 6, dtype=dtype)), rows)
    assert torch.equal(bank.gather(torch.tensor([19, 3, 3])), rows[[19, 3, 3]])
    assert torch.equal(load_file(path)["rows"], rows)
    assert os.listdir(tmp_path) == ["bank.safetensors"]


def test_a_matrix_of_another_program_is_read_by_name(tmp_path):
    tensors = {"counts": torch.arange(5), "first": torch.ones(4, 3), "second": torch.arange(12.0).reshape(6, 2)}
    save_file(tensors, tmp_path / "file")
    bank = BankFile(tmp_path / "file", "second")
    assert torch.equal(bank.read(0, torch.empty(6, 2)), tensors["second"])


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "name", "vector", "integers", "header"])
def test_what_is_no_bank_file_is_refused(tmp_path, damage):
    path = tmp_path / "bank.safetensors"
    if damage == "text":
        path.write_text("something else that is longer than eight bytes")
    elif damage == "cut":
        save_rows(path, torch.ones(30, 20))
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "name":
        save_file({"others": torch.ones(3, 2)}, path)
    elif damage == "vector":
        save_file({"rows": torch.ones(3)}, path)
    elif damage == "integers":
        save_file({"rows": torch.ones(3, 2).int()}, path)
    elif damage == "header":
        header = json.dumps({"rows": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(400))
    with pytest.raises(InputError, match=r"bank\.safetensors: cannot read a bank of rows"):
        BankFile(path)
