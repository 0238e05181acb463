"""How often tier 1 names a planted defect and blames a sound model: prints the table of docs/validation.md.

python -m benchmarks.validation_rates [SEEDS]
"""

import sys
import warnings
from collections import defaultdict

import torch

from utils.tests.validation.zoo import BLOCK, V
from utils.tests.validation.zoo_bad import BAD
from utils.tests.validation.zoo_good import GOOD, WARNED
from utils.validation import gradients, speed
from utils.validation.tier1 import CHECKS, run_tier1


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gradients.LEARN_SECONDS, speed.SECONDS = 120.0, 0.0  # verdicts must not depend on how busy the machine is
    planted, named, missed = defaultdict(int), defaultdict(int), []
    asked, failed, warned = defaultdict(int), defaultdict(int), defaultdict(int)
    for seed in range(seeds):
        for name, defect in BAD.items():
            found = check(defect.make, defect.task, seed)[defect.check]
            planted[defect.check] += 1
            right = found.status == defect.status
            named[defect.check] += right
            missed += [] if right else [f"{name} (seed {seed}): {found.status}, {found.measured}"]
        for name, (make, task) in GOOD.items():
            for found in check(make, task, seed).values():
                asked[found.name] += found.status != "skip"
                failed[found.name] += found.status == "fail"
                warned[found.name] += found.status == "warn" and found.name not in WARNED.get(name, ())
                if found.status == "fail" or (found.status == "warn" and found.name not in WARNED.get(name, ())):
                    missed.append(f"{name} (seed {seed}): {found.name} {found.status}, {found.measured}")
    print("| check | defects planted | named by this check | sound models asked | false fail | false warn |")
    print("|---|---|---|---|---|---|")
    for name in CHECKS:
        print(f"| {name} | {planted[name]} | {named[name]} | {asked[name]} | {failed[name]} | {warned[name]} |")
    sums = [sum(column.values()) for column in (planted, named, asked, failed, warned)]
    print("| all | " + " | ".join(map(str, sums)) + " |")
    print(
        f"\n{len(BAD)} defects and {len(GOOD)} sound models, {seeds} {'seed' if seeds == 1 else 'seeds'} each.",
        *missed,
        sep="\n",
    )


def check(make, task: str, seed: int) -> dict:
    torch.manual_seed(seed)
    return {found.name: found for found in run_tier1(make(), V, BLOCK, seed=seed, task=task).checks}


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
