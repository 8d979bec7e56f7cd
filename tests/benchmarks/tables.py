"""Operators beside their peers: one table each, measured in one process, interleaved, best read on a quiet machine.

    python tests/benchmarks/tables.py min_distance mine_top_r mixup streamed --threads 1,2
    python tests/benchmarks/tables.py min_distance --sizes 12288x86336x1024,4096x300000x512 --kinds features --threads 1,2
    python tests/benchmarks/tables.py min_distance mine_top_r --dataset_dir DIR --images 500

Inputs are made up, easy and adversarial (`kinds`), and with --dataset_dir real: features of the training images there, the
abnormal ones asking, the normal ones as bank. Each method runs `--rounds` times in shuffled order; the median counts. CPU
time is that of the whole process, so it means something on a shared machine as well. "recall" is the share of queries whose
nearest row is the true one, errors are those of the distances, both against float64. Tables are printed and saved as Markdown
and JSON under --output. A peer that is not installed (extra "bench") is left out, and the tables say so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from monai_wscxr import ops
from monai_wscxr.bank.file import BankFile, save_rows
from monai_wscxr.bank.search import nearest, plan_search
from monai_wscxr.ops import PackedBank, min_distance, mine_top_r, mixup

SMALL = {"min_distance": "64x1000x256,1024x20000x320", "mine_top_r": "2048x20000x320", "mixup": "512x432,65536x1024"}
CHECKED = 256  # queries whose result is compared with float64
CHUNK = 8192
PEERS = {
    "faiss": "faiss-cpu",
    "usearch": "usearch",
    "numkong": "numkong",
}  # module and package, all in the extra "bench"


def missing_peers() -> list[str]:
    """A sentence for every peer that is not installed; its row is left out of the tables."""
    return [
        f"{module} is not installed, its row is left out: `pip install {package}`"
        for module, package in PEERS.items()
        if importlib.util.find_spec(module) is None
    ]


@dataclass
class Method:
    """One way to do the work. `share` is the part of the work that `run` does, where all would take too long."""

    name: str
    run: Callable
    share: float = 1.0


def status(key: str) -> float:
    """A memory figure of this process in MB (Linux), NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(key))
    except OSError:
        return float("nan")


def evaluated_so_far() -> int:
    """Pairs that compiled searches of this process evaluated exactly."""
    return ops.EXTENSION.search_counts()["evaluated"] if ops.EXTENSION else 0


def measure(run: Callable) -> dict:
    """Wall and CPU seconds and additional resident memory in MB of one call."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    counted = evaluated_so_far()
    before, cpu, wall = status("VmRSS"), time.process_time(), time.perf_counter()
    result = run()
    return {
        "evaluated": evaluated_so_far() - counted,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "memory": max(0.0, status("VmHWM") - before),
        "result": result,
    }


def interleave(methods: list[Method], rounds: int) -> dict[str, dict]:
    """Median figures of every method, scaled to the whole work, and its last result."""
    found: dict[str, list[dict]] = {m.name: [] for m in methods}
    while rounds:
        for method in random.sample(methods, len(methods)):
            found[method.name].append(measure(method.run))
        rounds -= 1
        if all(len(runs) == 1 and runs[0]["wall"] < 0.1 for runs in found.values()):
            rounds *= 10  # such short runs vary
    table = {}
    for method in methods:
        runs = found[method.name]
        row = {key: float(np.median([r[key] for r in runs])) for key in ("wall", "cpu", "memory", "evaluated")}
        row["wall"], row["cpu"] = row["wall"] / method.share, row["cpu"] / method.share
        row["result"], row["share"] = runs[-1]["result"], method.share
        table[method.name] = row
    return table


def kinds(kind: str, n_query: int, n_bank: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one kind: "gaussian", "features" (like them: clustered, sparse, none negative), "near_copies", "constant"."""
    g = torch.Generator().manual_seed(0)
    if kind == "gaussian":
        return torch.randn(n_query, channels, generator=g), torch.randn(n_bank, channels, generator=g)
    if kind == "constant":
        bank = torch.ones(n_bank, channels) * torch.arange(1, 9).repeat(n_bank)[:n_bank, None]
        return torch.randn(n_query, channels, generator=g), bank
    if kind == "near_copies":  # sixteen of each row, 1e-3 apart
        rows = torch.randn(-(-n_bank // 16), channels, generator=g).repeat_interleave(16, 0)[:n_bank]
        bank = rows * (1 + 1e-3 * torch.randn(n_bank, channels, generator=g))
        query = bank[torch.randint(n_bank, (n_query,), generator=g)]
        return query * (1 + 1e-3 * torch.randn(n_query, channels, generator=g)), bank
    centres, directions = torch.randn(200, 40, generator=g), torch.randn(40, channels, generator=g)

    def rows(n: int) -> torch.Tensor:
        latent = centres[torch.randint(200, (n,), generator=g)] + 0.3 * torch.randn(n, 40, generator=g)
        return torch.relu(latent @ directions + 0.3 * torch.randn(n, channels, generator=g))

    return rows(n_query), rows(n_bank)


def real_features(folder: str, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features of at most so many training images of each class: abnormal ones ask, normal ones are the bank."""
    from monai_wscxr.data.preprocessing import Preprocessing
    from monai_wscxr.data.split import training_split
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.extraction import PatchExtractor
    from monai_wscxr.features.patches import PatchFeatures

    backbone = create_backbone("efficientnet_lite0")
    features = PatchFeatures(backbone, align_to="coarsest")
    extractor = PatchExtractor(features, Preprocessing(256, backbone.mean, backbone.std), device="cpu", progress=True)
    split = training_split(folder, k=images, holdout=0.0001, strict=False)
    parts = ("abnormal", split.abnormal), ("normal", split.normal)
    query, bank = (extractor.bank(items[:images], name).rows for name, items in parts)
    return query, bank


def expansion(query: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    norms, found = bank.square().sum(1), []
    for part in query.split(1024):
        least = torch.full((len(part),), torch.inf)
        index = torch.zeros(len(part), dtype=torch.int64)
        for start in range(0, len(bank), CHUNK):
            block = slice(start, start + CHUNK)
            squared = torch.addmm(norms[block], part, bank[block].T, alpha=-2)
            value, at = squared.min(1)
            index = torch.where(value < least, at + start, index)
            least = torch.minimum(least, value)
        found.append(((least + part.square().sum(1)).clamp_min(0).sqrt(), index))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def cdist_min(query: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    least, index = torch.full((len(query),), torch.inf), torch.zeros(len(query), dtype=torch.int64)
    for start in range(0, len(bank), CHUNK):
        value, at = torch.cdist(query, bank[start : start + CHUNK]).min(1)
        index = torch.where(value < least, at + start, index)
        least = torch.minimum(least, value)
    return least, index


def product(query: torch.Tensor, bank: torch.Tensor) -> None:
    for start in range(0, len(bank), CHUNK):
        query @ bank[start : start + CHUNK].T


def faiss_search(query: torch.Tensor, bank: torch.Tensor) -> Method:
    """Exhaustive search in float32: norms and one matrix product."""
    import faiss

    part = min(len(query), 4096)
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatL2(bank.shape[1])
    flat.add(bank.numpy())

    def search():
        squared, index = flat.search(query[:part].numpy(), 1)
        return torch.from_numpy(squared[:, 0]).clamp_min(0).sqrt(), torch.from_numpy(index[:, 0])

    return Method("faiss IndexFlatL2", search, part / len(query))


def usearch_search(query: torch.Tensor, bank: torch.Tensor) -> Method:
    """Exhaustive search in float32, one pair of rows at a time."""
    from usearch.index import MetricKind, search

    part, threads = min(len(query), 256), torch.get_num_threads()

    def run():
        found = search(bank.numpy(), query[:part].numpy(), 1, MetricKind.L2sq, exact=True, threads=threads)
        squared, index = (torch.from_numpy(x.reshape(part, -1)[:, 0].copy()) for x in (found.distances, found.keys))
        return squared.float().clamp_min(0).sqrt(), index.long()

    return Method("usearch, exact", run, part / len(query))


def numkong_search(query: torch.Tensor, bank: torch.Tensor) -> Method:
    """All distances of rows that were centred and rounded to int8 with one scale, and their minima: not exact.

    The bank is packed before the clock starts; queries are rounded while it runs. NumKong uses one thread.
    """
    import numkong

    part = min(len(query), 1024)
    centre = bank.mean(0)
    step = float(max((rows - centre).abs().max() for rows in bank.split(CHUNK))) / 127 or 1.0

    def rounded(rows: torch.Tensor) -> np.ndarray:
        return ((rows - centre) / step).round().clamp(-127, 127).to(torch.int8).numpy()

    packed = [numkong.dots_pack(rounded(rows)) for rows in bank.split(CHUNK)]

    def run():
        codes = rounded(query[:part])
        least, index = torch.full((part,), torch.inf), torch.zeros(part, dtype=torch.int64)
        for number, block in enumerate(packed):
            value, at = torch.from_numpy(np.asarray(numkong.euclideans_packed(codes, block))).min(1)
            index = torch.where(value < least, at + number * CHUNK, index)
            least = torch.minimum(least, value.float())
        return least * step, index

    return Method("NumKong euclideans_packed, int8, inexact", run, part / len(query))


def searches(query: torch.Tensor, bank: torch.Tensor) -> list[Method]:
    """The operator and its peers on the same rows."""
    n = len(query)
    part = min(n, 1024)  # queries of the methods that would take long
    packed = PackedBank.pack(bank)
    methods = [
        Method("min_distance", lambda: min_distance(query, bank)),
        Method("min_distance, packed bank", lambda: min_distance(query, packed)),
        Method("float32 product alone", lambda: product(query[:part], bank), part / n),
        Method("torch expansion, blocks", lambda: expansion(query[:part], bank), part / n),
        Method("torch.cdist, blocks", lambda: cdist_min(query[:part], bank), part / n),
    ]
    for module, peer in (("faiss", faiss_search), ("usearch", usearch_search), ("numkong", numkong_search)):
        if importlib.util.find_spec(module) is not None:
            methods.append(peer(query, bank))
    few = min(n, 256)
    from sklearn.metrics import pairwise_distances_argmin_min

    def sklearn_search():
        index, distance = pairwise_distances_argmin_min(query[:few].numpy(), bank.numpy())
        return torch.from_numpy(distance), torch.from_numpy(index)

    methods.append(Method("scikit-learn argmin_min", sklearn_search, few / n))
    return methods


def truth(query: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest rows of the first queries: float64 products find all that come near, float64 differences decide."""
    query = query[:CHECKED].double()
    squared = torch.empty(len(query), len(bank), dtype=torch.float64)
    for start in range(0, len(bank), CHUNK):
        block = bank[start : start + CHUNK].double()
        squared[:, start : start + CHUNK] = block.square().sum(1) - 2 * query @ block.T
    slack = 1e-12 * (bank.double().norm(dim=1).max() + query.norm(dim=1)).square()
    found = []
    for q, row, wide in zip(query, squared, slack, strict=True):
        near = torch.nonzero(row <= row.min() + wide).squeeze(1)
        least, at = (q - bank[near].double()).square().sum(1).min(0)
        found.append((least.sqrt(), near[at]))
    return torch.stack([least for least, _ in found]), torch.stack([at for _, at in found])


def search_table(query: torch.Tensor, bank: torch.Tensor, rounds: int) -> list[dict]:
    pairs = len(query) * len(bank)
    table = interleave(searches(query, bank), rounds)
    rate = table["float32 product alone"]["cpu"]
    exact = truth(query, bank)
    rows = []
    for name, row in table.items():
        recall, error, mean = "", "", ""
        if row["result"] is not None:
            n = min(CHECKED, len(row["result"][1]))
            recall = float((row["result"][1][:n] == exact[1][:n]).double().mean())
            errors = (row["result"][0][:n].double() - exact[0][:n]).abs() / exact[0][:n].clamp_min(1e-30)
            error, mean = float(errors.max()), float(errors.mean())
        rows.append(
            {
                "method": name,
                "wall s": row["wall"],
                "CPU s": row["cpu"],
                "Gpairs / CPU s": pairs / row["cpu"] / 1e9,
                "x product rate": rate / row["cpu"],
                "memory MB": row["memory"],
                "x faiss": table["faiss IndexFlatL2"]["cpu"] / row["cpu"] if "faiss IndexFlatL2" in table else "",
                "recall": recall,
                "mean rel. error": mean,
                "max rel. error": error,
                "evaluated / query": row["evaluated"] / len(query) or "",
            }
        )
    return rows


def mining_table(query: torch.Tensor, bank: torch.Tensor, rounds: int) -> list[dict]:
    packed, part = PackedBank.pack(bank), min(len(query), 1024)

    def sorted_distances(found):
        return found[0].sort(descending=True, stable=True)

    methods = [
        Method("min_distance + stable sort", lambda: sorted_distances(min_distance(query, packed))),
        Method(
            "torch.cdist, blocks, + sort", lambda: sorted_distances(cdist_min(query[:part], bank)), part / len(query)
        ),
    ]
    for r in (0.02, 0.05, 0.1, 0.2, 0.5):
        methods.append(Method(f"mine_top_r, r = {r}", lambda r=r: mine_top_r(query, packed, r)))
    table = interleave(methods, rounds)
    whole, pairs = table["min_distance + stable sort"]["cpu"], len(query) * len(bank)
    return [
        {
            "method": name,
            "wall s": row["wall"],
            "CPU s": row["cpu"],
            "Gpairs / CPU s": pairs / row["cpu"] / 1e9,
            "x min_distance": whole / row["cpu"],
            "memory MB": row["memory"],
            "evaluated / query": row["evaluated"] / len(query) or "",
        }
        for name, row in table.items()
    ]


def mixup_table(n: int, channels: int, dtype: torch.dtype, rounds: int) -> list[dict]:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(n, channels, generator=g).to(dtype)
    abnormal = torch.randn(max(n // 5, 100), channels, generator=g).to(dtype)
    kept = torch.zeros_like(normal)
    repeat = max(1, int(2e7 / normal.numel()))

    def eager():
        alpha = (torch.rand(n, 1) * 0.9 + 0.1).to(dtype)
        source = torch.randint(len(abnormal), (n,))
        return alpha * abnormal[source] + (1 - alpha) * normal

    def several(f):
        def run():
            for _ in range(repeat):
                f()

        return run

    methods = [
        Method("mixup, out=", several(lambda: mixup(normal, abnormal, 1, out=kept)), repeat),
        Method("copy into kept memory", several(lambda: kept.copy_(normal)), repeat),
        Method("mixup", several(lambda: mixup(normal, abnormal, 1)), repeat),
        Method("copy into new memory", several(normal.clone), repeat),
        Method("eager torch", several(eager), repeat),
    ]
    table = interleave(methods, rounds)
    rows = []
    for name, row in table.items():
        copy = "copy into kept memory" if "kept" in name or "out=" in name else "copy into new memory"
        moved = 2 if "copy" in name else 3  # a mixture is made of two rows
        rows.append(
            {
                "method": name,
                "wall ms": 1e3 * row["wall"],
                "CPU ms": 1e3 * row["cpu"],
                "x eager": table["eager torch"]["cpu"] / row["cpu"],
                "GB / CPU s": moved * normal.nbytes / row["cpu"] / 1e9,
                "x copy rate": moved / 2 * table[copy]["cpu"] / row["cpu"],
                "memory MB": row["memory"],
            }
        )
    return rows


def streamed_table(rounds: int) -> list[dict]:
    """A bank file four times as large as the budget."""
    query, bank = kinds("features", 1024, 200_000, 512)
    budget = bank.nbytes // 4
    with tempfile.TemporaryDirectory() as folder:
        save_rows(Path(folder) / "bank.safetensors", bank)
        source = BankFile(Path(folder) / "bank.safetensors")
        methods = [
            Method("in memory", lambda: min_distance(query, bank)),
            Method("file, a quarter of it held", lambda: nearest(query, source, budget)),
        ]
        table = interleave(methods, rounds)
    same = all(map(torch.equal, table["in memory"]["result"], table["file, a quarter of it held"]["result"]))
    predicted = plan_search(len(query), *bank.shape, bank.dtype, budget).peak_bytes / 1e6
    return [
        {
            "method": name,
            "wall s": row["wall"],
            "CPU s": row["cpu"],
            "memory MB": row["memory"],
            "predicted MB": predicted if name.startswith("file") else "",
            "same result": same,
        }
        for name, row in table.items()
    ]


def as_markdown(rows: list[dict]) -> str:
    def text(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(text(row[name]) for name in names) + " |" for row in rows])


def machine() -> dict:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "kernels": ops.EXTENSION.search_kernels() if ops.EXTENSION else "reference",
        "torch": torch.__version__,
        **{module: installed_version(package) for module, package in PEERS.items()},
        "python": platform.python_version(),
    }


def installed_version(package: str) -> str:
    """Version of a peer, or that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def sizes_of(text: str) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in size.split("x")) for size in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operators", nargs="+", choices=["min_distance", "mine_top_r", "mixup", "streamed"])
    parser.add_argument("--sizes", default="small", help="small, or QUERIESxBANKxCHANNELS (mixup: ROWSxCHANNELS), ...")
    parser.add_argument("--kinds", default="gaussian,features,near_copies,constant")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset_dir", help="real features as well: a folder as for training")
    parser.add_argument("--images", type=int, default=200, help="of each class, for the real features")
    parser.add_argument("--output", default="benchmarks", help="folder of the tables")
    options = parser.parse_args()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    real = real_features(options.dataset_dir, options.images) if options.dataset_dir else None
    if real is None:
        print("real features are left out: give a folder of radiographs (make bench DATASET=DIR)")
    for sentence in missing_peers():
        print(sentence)
    for operator in options.operators:
        results = []
        for threads in map(int, options.threads.split(",")):
            torch.set_num_threads(threads)
            for title, rows in tables_of(operator, options, real):
                title = f"{operator}, {title}, {threads} thread{'s' * (threads > 1)}"
                print(f"\n{title}\n\n{as_markdown(rows)}", flush=True)
                results.append({"title": title, "rows": rows})
        (output / f"{operator}.json").write_text(json.dumps({**machine(), "tables": results}, indent=1))
        body = "\n\n".join(f"### {r['title']}\n\n{as_markdown(r['rows'])}" for r in results)
        about = ", ".join(f"{key} {value}" for key, value in machine().items())
        (output / f"{operator}.md").write_text(f"# {operator}\n\n{about}\n\n{body}\n")
    print(f"\nsaved in {output}/")


def tables_of(operator: str, options: argparse.Namespace, real):
    """(title, rows) of each table of one operator."""
    if operator == "streamed":
        yield "1,024 x 200,000 x 512", streamed_table(options.rounds)
        return
    sizes = sizes_of(SMALL[operator] if options.sizes == "small" else options.sizes)
    if operator == "mixup":
        for n, channels in sizes:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                yield f"{n} x {channels} {str(dtype)[6:]}", mixup_table(n, channels, dtype, options.rounds)
        return
    table = search_table if operator == "min_distance" else mining_table
    if real is not None:
        yield f"real features {len(real[0])} x {len(real[1])} x {real[0].shape[1]}", table(*real, options.rounds)
    for kind in options.kinds.split(","):
        for size in sizes:
            yield f"{kind} {' x '.join(map(str, size))}", table(*kinds(kind, *size), options.rounds)


if __name__ == "__main__":
    main()
