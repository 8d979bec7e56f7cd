"""WSCXR here beside the authors' recipe and anomalib's PatchCore: same images, same machine, same backbone.

    python tests/benchmarks/peers.py compare SOURCE WORK --images 250,500,1000 --peers ours,authors,anomalib

SOURCE is a data set with a test part. Every peer runs in a process of its own, which is measured from outside (`os.wait4`:
start-up counts; processor time with threads and children; largest resident memory of one process), and gives one JSON line.
More images than SOURCE has are perturbed copies: timing only. The authors' recipe is timed for `--epochs` epochs, and the time
of 100 is what happens before them plus 100 epochs of the mean length; `authors FOLDER --epochs 100` runs them all.

The authors' recipe is written here from its description, none of their code: images squashed to 256 pixels, last stage, p = 5;
500 random normals, half of their patches chosen by the approximate greedy rule, a flat faiss index; r = 0.2; one linear layer
without bias; Adam, 2e-4, weight decay 1e-5; batches of 8 images; features recomputed in every epoch.
anomalib runs with MALLOC_MMAP_THRESHOLD_=4194304: with glibc's own setting the loop of its coreset comes to hold 19 GB at 250
images (temporaries of 20 MB that no hole fits), so the setting is in its favour.
Needs faiss-cpu for `authors` and anomalib for `anomalib`; a peer that cannot be imported ends with a message, the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs"
SIZE, NEIGHBOURHOOD, RETENTION, EPOCHS = 256, 5, 0.2, 100


def prepare(source: str, folder: Path, images: int, k: int = 8, seed: int = 0) -> None:
    """A folder of `images` normals, k abnormals per class and the test part of `source`; more normals are perturbed copies."""
    import torch
    from PIL import Image

    from monai_wscxr.data import perturbation
    from monai_wscxr.data.datalist import load_datalist
    from monai_wscxr.data.selection import choose_few_shot

    data = load_datalist(source)
    normal = [item["image"] for item in data["training"] if item["label"] == 0]
    abnormal = choose_few_shot([item for item in data["training"] if item["label"] == 1], k, seed, strict=True)
    random.Random(seed).shuffle(normal)
    changes = [
        perturbation.brighter,
        perturbation.darker,
        perturbation.flatter,
        perturbation.harder,
        perturbation.cropped,
    ]
    for place in ("train/normal", "test/normal"):
        (folder / place).mkdir(parents=True)
    for number in range(images):
        file, turn = Path(normal[number % len(normal)]), number // len(normal)
        target = folder / "train" / "normal" / f"{file.stem}_copy{turn}{file.suffix}"
        if turn == 0:
            shutil.copyfile(file, target.with_name(file.name))
            continue
        with Image.open(file) as picture:
            grey = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
            image = grey.reshape(1, picture.height, picture.width).float() / 255
        image = changes[(turn - 1) % len(changes)](image, random.Random(number))
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(target, quality=95)
    for item in [*abnormal, *data["test"]]:
        part = "train" if item in abnormal else "test"
        place = folder / part / ("normal" if item["label"] == 0 else f"abnormal/{item['class']}")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item["image"], place / Path(item["image"]).name)


def say(**values: Any) -> None:
    """One JSON line, at once."""
    print(json.dumps(values), flush=True)


class Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def __call__(self) -> dict[str, float]:
        """Seconds so far."""
        return {"wall": time.perf_counter() - self.began[0], "cpu": time.process_time() - self.began[1]}


# --- the authors' recipe -------------------------------------------------------------------------------------------


def greedy_coreset(rows: Any, share: float, seed: int, dimensions: int = 128, starts: int = 10) -> Any:
    """Approximate k-centre greedy choice (Roth et al., 2022): random projection, distances to a few random starts first."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    projected = rows @ (torch.randn(rows.shape[1], dimensions, generator=draw) / dimensions**0.5)
    first = torch.randperm(len(rows), generator=draw)[:starts]
    nearest = torch.cdist(projected, projected[first]).mean(1)
    norms = projected.square().sum(1)
    chosen = []
    for _ in range(int(share * len(rows))):
        new = int(nearest.argmax())
        chosen.append(new)
        squared = norms + norms[new] - 2 * (projected @ projected[new])
        nearest = torch.minimum(nearest, squared.clamp(min=0).sqrt())
        nearest[new] = 0
    return torch.tensor(chosen)


class Images:
    """Images as the authors read them: RGB, squashed, ImageNet-like normalisation; for a DataLoader."""

    def __init__(self, files: Sequence[Path], backbone: Any) -> None:
        from torchvision import transforms

        self.files = list(files)
        self.chain = transforms.Compose(
            [
                transforms.Resize((SIZE, SIZE)),
                transforms.ToTensor(),
                transforms.Normalize(backbone.mean, backbone.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.chain(Image.open(self.files[index]).convert("RGB"))


class Recipe:
    """The authors' training, as described."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        import torch
        from torch.utils.data import DataLoader

        from monai_wscxr.features.backbones import create_backbone
        from monai_wscxr.features.patches import PatchFeatures

        torch.manual_seed(seed)
        self.seed = seed
        self.features = PatchFeatures(create_backbone("efficientnet_lite0", ["4"]), NEIGHBOURHOOD).eval()

        def loader(place: str, shuffled: bool = False) -> Any:
            files = sorted(path for path in (folder / place).rglob("*") if path.is_file())
            return DataLoader(Images(files, self.features.backbone), batch_size=8, shuffle=shuffled)

        self.normal, self.abnormal = loader("train/normal", shuffled=True), loader("train/abnormal")
        self.tests = loader("test/normal"), loader("test/abnormal")
        self.discriminator = torch.nn.Linear(self.features.channels, 1, bias=False)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-5)
        self.mined = torch.empty(0)

    def patches(self, batch: Any) -> Any:
        """Patch features [B*h*w, C] of a batch."""
        import torch

        from monai_wscxr.features.patches import to_rows

        with torch.no_grad():
            return to_rows(self.features(batch))

    def mine(self) -> None:
        """Bank of 500 random normals, its coreset, the index, and the abnormal patches farthest from it."""
        import faiss
        import torch
        from torch.utils.data import DataLoader, Subset

        draw = torch.Generator().manual_seed(self.seed)
        some = torch.randperm(len(self.normal.dataset), generator=draw)[:500].tolist()
        bank = torch.cat([self.patches(b) for b in DataLoader(Subset(self.normal.dataset, some), batch_size=8)])
        bank = bank[greedy_coreset(bank, 0.5, self.seed)]
        abnormal = torch.cat([self.patches(batch) for batch in self.abnormal])
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank.numpy())
        squared, _ = index.search(abnormal.numpy(), 1)
        order = torch.from_numpy(squared[:, 0]).argsort(descending=True)
        self.mined = abnormal[order[: int(RETENTION * len(order))]]

    def step(self, normal: Any) -> float:
        """One step on the normal patches of a batch and as many mixed ones."""
        import torch

        partner = self.mined[torch.randint(len(self.mined), (len(normal),))]
        alpha = torch.empty(len(normal), 1).uniform_(0.1, 1.0)
        mixed = alpha * partner + (1 - alpha) * normal
        loss = self.discriminator(normal).clamp(min=0).mean() + (1 - self.discriminator(mixed)).clamp(min=0).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def auroc(self) -> float:
        """On the test part: maximum of the patch scores."""
        import torch

        from monai_wscxr.evaluation.metrics import auroc

        with torch.no_grad():
            parts = [
                [self.discriminator(self.patches(b)).reshape(len(b), -1).amax(1) for b in test] for test in self.tests
            ]
        normal, abnormal = (torch.cat(part) for part in parts)
        labels = [0] * len(normal) + [1] * len(abnormal)
        return float(auroc(labels, torch.cat([normal, abnormal]).numpy()))


def authors(folder: Path, epochs: int, seed: int = 0, remember: bool = False) -> None:
    """The authors' recipe; one line for what comes before the epochs, one per epoch, one at the end.

    `remember` keeps the patch features of the first epoch: the same training without what makes it long, for its AUROC.
    """
    import torch

    began = time.process_time()
    recipe = Recipe(folder, seed)
    clock = Clock()
    recipe.mine()
    say(stage="bank, coreset, mining", **clock())
    kept: dict[int, Any] = {}
    spent = []
    for epoch in range(1, epochs + 1):
        clock = Clock()
        if remember:
            if not kept:
                files = torch.utils.data.DataLoader(recipe.normal.dataset, batch_size=8)
                for number, image in enumerate(p for b in files for p in recipe.patches(b).reshape(len(b), -1, 320)):
                    kept[number] = image
            order = torch.randperm(len(kept)).split(8)
            losses = [recipe.step(torch.cat([kept[i] for i in part.tolist()])) for part in order]
        else:
            losses = [recipe.step(recipe.patches(batch)) for batch in recipe.normal]
        spent.append(clock())
        say(stage=f"epoch {epoch}", loss=sum(losses) / len(losses), **spent[-1])
    auroc = recipe.auroc()
    mean = sum(second["cpu"] for second in spent) / epochs
    say(peer="authors", auroc=auroc, epochs=epochs, cpu_epoch=mean, cpu_process=time.process_time() - began)


# --- anomalib ------------------------------------------------------------------------------------------------------


def anomalib(folder: Path, size: int = SIZE, layers: Sequence[str] = ("blocks.6",)) -> None:
    """anomalib's PatchCore, fit and test through its engine; last stage of the same network with the same weights."""
    import torch
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Patchcore
    from lightning.pytorch.callbacks import Callback

    from monai_wscxr.evaluation.metrics import auroc
    from monai_wscxr.features.backbones import create_backbone

    class Scores(Callback):
        """Scores as they come: anomalib's own AUROC wants them scaled to [0, 1], and rounds large ones to 1."""

        def __init__(self) -> None:
            self.scores: list[float] = []
            self.labels: list[int] = []

        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            self.scores += outputs.pred_score.flatten().tolist()
            self.labels += batch.gt_label.int().flatten().tolist()

    classes = sorted(path.name for path in (folder / "test" / "abnormal").iterdir())
    data = Folder(
        name="peers",
        root=folder,
        normal_dir="train/normal",
        normal_test_dir="test/normal",
        abnormal_dir=[f"test/abnormal/{name}" for name in classes],
        train_batch_size=8,
        eval_batch_size=8,
        num_workers=0,
        val_split_mode="none",
    )
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=list(layers),
        pre_trained=False,
        pre_processor=Patchcore.configure_pre_processor(image_size=(size, size)),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    body = model.model.feature_extractor.feature_extractor
    missing = body.load_state_dict(
        create_backbone("efficientnet_lite0", ["4"]).body.state_dict(), strict=False
    ).missing_keys
    if missing:
        raise SystemExit(f"the weights do not fit anomalib's network: {missing[:3]}")
    torch.manual_seed(0)
    root = folder / "anomalib"
    kept = Scores()
    engine = Engine(
        accelerator="cpu", devices=1, logger=False, callbacks=[kept], limit_val_batches=0, default_root_dir=root
    )
    clock = Clock()
    engine.fit(model, datamodule=data)
    fit = clock()
    engine.test(model, datamodule=data)
    say(peer="anomalib", auroc=float(auroc(kept.labels, kept.scores)), fit=fit, fit_and_test=clock())


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(folder: Path, evaluate: bool = True) -> None:
    """The README's commands, with defaults and an empty feature cache; `evaluate` adds the test part and its report."""
    output = folder / "ours"
    os.environ["MONAI_WSCXR_CACHE"] = str(folder / "ours-cache")
    for name, config in (("training", "train"), ("evaluating", "evaluate"))[: 1 + evaluate]:
        command = [sys.executable, "-m", "monai.bundle", "run", name, "--config_file", str(CONFIGS / f"{config}.yaml")]
        command += ["--dataset_dir", str(folder), "--output_dir", str(output), "--device", "cpu"]
        command += ["--progress", "false"] if name == "training" else []
        subprocess.run(command, check=True, stdout=sys.stderr)
    stages = json.loads((output / "artefact.json").read_text())["training"]["seconds"]
    auroc = json.loads((output / "metrics.json").read_text())["honest"]["auroc"] if evaluate else None
    say(peer="ours", auroc=auroc, stages=stages)


# --- measuring -----------------------------------------------------------------------------------------------------


def measured(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """Run a command; its last JSON line with wall time, processor time and peak memory of the whole process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    assert process.stdout is not None
    lines = [json.loads(line) for line in process.stdout if line.startswith("{")]
    _, status, usage = os.wait4(process.pid, 0)
    found = {**lines[-1], "before": next((x for x in lines if x.get("stage")), None)} if lines else {}
    return {
        **found,
        "exit": os.waitstatus_to_exitcode(status),
        "wall_s": round(time.perf_counter() - began, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def compare(source: str, work: Path, images: Sequence[int], peers: Sequence[str], epochs: int) -> None:
    """Every peer on every number of images; one JSON line each."""
    for count in images:
        folder = work / f"normals_{count}"
        if not folder.exists():
            prepare(source, folder, count)
        for peer in peers:
            for left in ("ours", "ours-cache", "anomalib"):
                shutil.rmtree(folder / left, ignore_errors=True)
            command = [sys.executable, __file__, peer, str(folder)]
            command += ["--epochs", str(epochs)] if peer == "authors" else []
            result = measured(command, **({"MALLOC_MMAP_THRESHOLD_": str(4 << 20)} if peer == "anomalib" else {}))
            if peer == "authors" and result["exit"] == 0:
                result["cpu_100_epochs_s"] = round(result["cpu_s"] + (EPOCHS - epochs) * result["cpu_epoch"], 1)
            say(images=count, **{**result, "peer": peer})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare", help="a folder of so many normals")
    command.add_argument("source")
    command.add_argument("folder", type=Path)
    command.add_argument("--images", type=int, required=True)
    command = commands.add_parser("authors", help="the authors' recipe")
    command.add_argument("folder", type=Path)
    command.add_argument("--epochs", type=int, default=EPOCHS)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--remember", action="store_true")
    command = commands.add_parser("anomalib", help="anomalib's PatchCore")
    command.add_argument("folder", type=Path)
    command = commands.add_parser("ours", help="this package")
    command.add_argument("folder", type=Path)
    command = commands.add_parser("compare", help="all of them, measured")
    command.add_argument("source")
    command.add_argument("work", type=Path)
    command.add_argument("--images", default="250,500,1000")
    command.add_argument("--peers", default="ours,authors,anomalib")
    command.add_argument("--epochs", type=int, default=3)
    given = vars(parser.parse_args())
    name = given.pop("command")
    if name == "compare":
        given["images"] = [int(n) for n in given["images"].split(",")]
        given["peers"] = given["peers"].split(",")
    {"prepare": prepare, "authors": authors, "anomalib": anomalib, "ours": ours, "compare": compare}[name](**given)


if __name__ == "__main__":
    main()
