"""Several processes for tests of what they do together: `python -m tests.helpers.ranks CASE WORLD FOLDER`.

One process imports everything and forks the ranks, which is much faster than torchrun; they meet as under torchrun, through
the environment. A case is a function of this file; it writes what it found to FOLDER/RANK.pt. The ranks' statuses are printed.
"""

import itertools
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs"
OPTIONS = {
    "image_size": 64,
    "k": 1,
    "epochs": 3,
    "min_batches": 5,
    "batch_size": 20,  # 68 rows: 20, 20, 20, 8, which 2 and 4 ranks share out equally
    "false_positive_rate": 0.3,
    "progress": False,
}


def banks(kind):
    """Queries and banks in which ties and near-ties lie on the borders between ranks; the same in every process."""
    import torch

    draw = torch.Generator().manual_seed(3)
    query = torch.randn(37, 24, generator=draw)
    bank = torch.randn(101, 24, generator=draw)
    if kind == "copies":  # every query's nearest row lies in every rank's part
        bank = torch.cat([bank[:20]] * 5)
    elif kind == "float64":  # distances that differ, but not after rounding to float32
        query, bank = query.double(), bank.double()
        bank = torch.cat([query + 1e-3, query + 1e-3 * (1 - 1e-12), query + 1e-3])
    elif kind == "few":  # fewer rows than ranks
        bank = bank[:3]
    return query, bank


KINDS = ("random", "copies", "float64", "few")


def least_memory(query, bank):
    """Find the smallest memory with which a bank in a file is searched: in blocks of 32 rows."""
    from monai_wscxr.bank import plan_search
    from monai_wscxr.errors import InputError

    memory = 1000
    while True:
        try:
            assert plan_search(len(query), 10**6, bank.shape[1], bank.dtype, memory).block_rows < 40
            return memory
        except InputError:
            memory += 1000


def search(rank, world, folder):
    """Sharded search of tensors and of a bank in a file."""
    import torch

    from monai_wscxr.bank import BankFile, nearest, save_rows
    from monai_wscxr.system import processes as distributed

    device = distributed.join_processes()
    found = {}
    for kind in KINDS:
        query, bank = banks(kind)
        query = query.to(device)
        found[kind] = nearest(query, bank.to(device))
        path = folder / f"{kind}.safetensors"
        if rank == 0:
            save_rows(path, bank)
        distributed.wait_for_all()
        found[kind + " in a file"] = nearest(query, BankFile(path), least_memory(query, bank))
        parts = [torch.empty(0)] * world
        torch.distributed.all_gather_object(parts, distributed.row_share(len(bank)))
        assert parts[0][0] == 0
        assert parts[-1][1] == len(bank)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(parts))
    assert distributed.from_first({"rank": rank}) == {"rank": 0}
    torch.save({kind: [part.cpu() for part in parts] for kind, parts in found.items()}, folder / f"{rank}.pt")
    distributed.leave()


def workflow(folder, **options):
    """A started training of the bundle; of all ranks together where there are several."""
    from monai.bundle import create_workflow

    files = [str(CONFIGS / "train.yaml")]
    if int(os.environ["WORLD_SIZE"]) > 1:
        files.append(str(CONFIGS / "multi_gpu_train.yaml"))
    return create_workflow(
        config_file=files,
        workflow_type="train",
        run_id="training",
        logging_file=False,
        dataset_dir=str(folder.parent / "data"),
        output_dir=str(folder / "run"),
        **{**({} if len(files) > 1 else {"device": "cpu"}), **OPTIONS, **options},
    )


def training(rank, world, folder):
    """A training with an empty feature cache: what each rank has at its end."""
    import torch
    from ignite.engine import Events

    from monai_wscxr.features.running import NetworkRunner

    os.environ["MONAI_WSCXR_CACHE"] = str(folder / "cache")
    forwarded = []
    forward = NetworkRunner.forward
    NetworkRunner.forward = lambda self, *given: (forwarded.append(len(given[0])), forward(self, *given))[1]
    started = workflow(folder)
    trainer = started.parser.get_parsed_content("train#trainer")
    losses = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    started.run()
    extractor = started.parser.get_parsed_content("extractor")
    banks = trainer.state.banks
    mined = banks.mined
    network = started.parser.get_parsed_content("network")
    torch.save(
        {
            "counts": (
                extractor.done.extracted,
                extractor.done.reused,
            ),  # before the bank is asked for again
            "rows": extractor.bank(banks.split.normal).rows,
            "mined": mined.bank.rows,
            "origin": [mined.bank.origin(row) for row in range(len(mined.bank))],
            "distance": mined.distance,
            "state": network.state_dict(),
            "losses": losses,
            "forwarded": sum(forwarded),
        },
        folder / f"{rank}.pt",
    )
    started.finalize()


def dying(rank, world, folder):
    """The last rank is killed in the second epoch; the others must end, with a sentence."""
    from ignite.engine import Events

    from monai_wscxr.system.processes import lost_process

    os.environ["MONAI_WSCXR_CACHE"] = str(folder / "cache")
    started = workflow(folder)
    trainer = started.parser.get_parsed_content("train#trainer")

    def die(engine):
        if rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), die)
    try:
        started.run()
        started.finalize()
    except RuntimeError as error:
        (folder / f"{rank}.txt").write_text(str(lost_process(error)))
        raise SystemExit(3) from None


def main(case, world, folder):
    """Fork the ranks and wait for all of them."""
    import torch._dynamo
    import torch.distributed.nn
    import torch.distributed.run

    import monai_wscxr.data.transforms
    import monai_wscxr.training.artefact_handler
    import monai_wscxr.training.mining_handler  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        process = os.fork()
        if process == 0:
            status = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
                torch.set_num_threads(1)
                globals()[case](rank, world, Path(folder))
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        ranks.append(process)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]
    print("statuses", json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
