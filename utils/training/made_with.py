"""What a run was made with, and so how exactly it can be gone on with."""

import torch

from utils.config.load import config_hash
from utils.config.schema import RunConfig, TrainConfig
from utils.data.storing.token_store import TokenStore
from utils.runs.folder import RunFolder, now
from utils.runtime.device import describe, multiplies_bf16
from utils.runtime.environment import environment


def write_meta(
    run: RunFolder,
    config: RunConfig,
    store: TokenStore,
    device: torch.device,
    precision: str,
    task: str,
    used: TrainConfig,
    compiled: bool,
) -> list[str]:
    """Write once what this run is and was made with; gives back in words why a resume here would round otherwise.

    `used` is `config.train` with what auto stands for in it. Nothing said: the same hardware, software and settings.
    """
    made_with = {
        "torch": torch.__version__,
        "device": describe(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_products": multiplies_bf16(device),  # in which Muon works, whatever the precision
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
    }
    made_with |= {
        name: getattr(used, name) for name in ("batch_size", "optimizer") if getattr(config.train, name) in (0, "auto")
    }
    if compiled:
        made_with["compiled"] = True
    meta = run.read_json("meta")
    if not meta:
        made_in = run.read_json("environment") or environment()  # a launcher may have looked: a box sees less
        run.write_json("environment", made_in)
        meta = {
            "run": run.name,
            "created": now(),
            "config_hash": config_hash(config),
            "git_commit": made_in["git_commit"],
            "seed": config.train.seed,
            "task": task,
            "source": run.read_json("source").get("source"),  # where a model from elsewhere came from
            "data": store.fingerprint,
            "data_made_of": store.info["made_of"],
            "tokenizer": store.tokenizer.fingerprint,
            "made_with": made_with,
        }
        run.write_json("meta", meta)
    was = meta["made_with"]
    # What auto had found may be named now, and what an older version did not write down cannot be compared.
    changed = [f"{key}: {was[key]} -> {new}" for key, new in made_with.items() if was.get(key, new) != new]
    if not made_with["deterministic"]:
        changed.append("GPU algorithms may not repeat bit for bit: train.deterministic=true")
    if compiled:
        changed.append("compiled, and what is compiled depends on which shapes came before")
    return changed
