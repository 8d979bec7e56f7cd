"""The Slurm and Kubernetes examples: they parse, and what they run exists."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monai_wscxr.training.options import check_options

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
BATCH, JOB = EXAMPLES / "train.sbatch", EXAMPLES / "pytorchjob.yaml"


def test_the_batch_script_is_bash():
    subprocess.run(["bash", "-n", str(BATCH)], check=True)


def test_shellcheck_has_no_complaint():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", str(BATCH)], check=True)


def test_the_batch_script_gives_torchrun_what_it_needs(tmp_path):
    """Run it with stand-ins for Slurm's commands and look at what reaches torchrun.

    The list of machines is longer than a pipe holds: a script that stops reading it after the first would end there.
    """
    for name, body in (("scontrol", "echo first-host; seq -f host-%g 100000"), ("srun", 'shift; printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = BATCH.read_text().replace("project=/shared/monai_wscxr", f"project={ROOT}")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    environment["SLURM_JOB_ID"] = "77"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    arguments = done.stdout.splitlines()
    assert arguments[0].endswith("/torchrun")
    from torch.distributed.run import parse_args

    parsed = parse_args(arguments[1:])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_id) == ("2", "4", "77")
    assert (parsed.rdzv_backend, parsed.rdzv_endpoint) == ("c10d", "first-host:29500")
    check_command([parsed.training_script, *parsed.training_script_args])
    lines = BATCH.read_text().splitlines()
    options = [line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")]
    known = {"--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--mem", "--time"}
    assert set(options) == known | {"--requeue", "--open-mode"}


def check_command(words):
    """The words after torchrun's own options are a training of this bundle, with options that it has."""
    assert words[:3] == ["monai.bundle", "run", "training"]
    place = words.index("--config_file") + 1
    configs = yaml.safe_load(words[place])
    here = [str(ROOT / "bundles" / Path(c).relative_to(Path(c).parents[2])) for c in configs]
    assert [Path(c).name for c in here] == ["train.yaml", "multi_gpu_train.yaml"]
    assert all(Path(c).is_file() for c in here)
    check_options([*words[1:place], str(here), *words[place + 1 :]])


def test_the_job_has_the_fields_of_the_published_definition():
    """Names from kubeflow.org_pytorchjobs.yaml (v1) and the core API; a misspelt one would be dropped in silence."""
    job = yaml.safe_load(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    spec = job["spec"]
    assert set(spec) <= {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"}
    assert isinstance(spec["nprocPerNode"], str)
    elastic = {"maxReplicas", "maxRestarts", "metrics", "minReplicas", "nProcPerNode", "rdzvBackend", "rdzvConf"}
    assert set(spec["elasticPolicy"]) <= elastic | {"rdzvHost", "rdzvId", "rdzvPort", "standalone"}
    assert "nProcPerNode" not in spec["elasticPolicy"]  # deprecated, and refused beside nprocPerNode
    policy = {"activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "schedulingPolicy", "suspend"}
    assert set(spec["runPolicy"]) <= policy | {"ttlSecondsAfterFinished"}
    assert spec["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")
    assert set(spec["pytorchReplicaSpecs"]) == {"Worker"}  # with an elastic policy there is no master
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert set(worker) == {"replicas", "restartPolicy", "template"}
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert worker["replicas"] == spec["elasticPolicy"]["minReplicas"] == spec["elasticPolicy"]["maxReplicas"]
    pod = worker["template"]["spec"]
    assert set(pod) <= {"containers", "volumes", "terminationGracePeriodSeconds"}
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert all(isinstance(word, str) for word in container["command"])
    assert container["command"][:2] == ["torchrun", "-m"]
    check_command(container["command"][2:])
    assert all(isinstance(variable["value"], str) for variable in container["env"])
