"""Ask whether a model is sound, in a process that may be lost; a hang, a crash or a hunger for memory is an answer.

This side runs nothing of the model's. It reads lines of JSON from the other (`utils/validation/worker.py`), trusts
none of them, and starts it again after the check that killed it.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from utils.jobs.box import Box, Ending, Limits
from utils.jobs.describe import WORDS, clean_facts, clean_findings, last_words, plain, start_for
from utils.jobs.find_model import FoundModel
from utils.models.diagnose import diagnose
from utils.models.findings import ExportError, Finding
from utils.models.inspect_code import inspect_code
from utils.models.source import check_files
from utils.runtime.files import read_regular, scratch_folder
from utils.validation.report import KIND_ENDS, Check, Report

POLL = 0.1  # seconds
CHECK_SECONDS = {1: 120.0, 2: 120.0, 3: 300.0}  # a check that takes longer hangs
FIRST = (1, "shapes")  # every other check needs it
MOST_TIMES = 40  # as long as one check may take: what all of them may take together
CRASHES = 3  # after so many ends in mid-check the rest is not asked
MOST = 64_000_000  # bytes of answers
MOST_ROWS = 1_000  # of them
INTERFACE_WHY = "Every check, and training, calls the model in the way found here."
WALLS_WHY = "The model's code is somebody's program: it runs in a process of its own, which can reach nothing of yours."


def validate(
    found: FoundModel,
    tiers: Sequence[int] = (1,),
    trust_sha256: str = "",
    seed: int = 0,
    seconds: float = 0.0,
    started: Callable[[str], None] = lambda name: None,
) -> Iterator[Check]:
    """Every answer about a model as soon as it is there: its code, the walls it runs behind, then the tiers' checks.

    `started` is told the name of each check as it begins. A check that takes longer than `seconds` (0: 2 minutes, in
    tier 3 5 minutes) is ended, and that is its answer. Raises ValueError where its code may not run here.
    """
    told = set()
    if 1 in tiers:
        for check in map(_printable, _code_checks(found)):
            told.add(check.name)
            yield check
        if "no-model" in told:
            return  # there is nothing to open
    started("opening the model")
    for group in ([tier for tier in tiers if tier < 3], [tier for tier in tiers if tier == 3]):
        if group:
            answers = _ask(found, group, trust_sha256, seed, seconds, started)
            yield from (check for check in answers if check.name not in told)


def title(name: str, tiers: Sequence[int] = (1,)) -> str:
    """What a report about the model of that name is called."""
    if 1 in tiers:
        return f"Is {name} sound?"
    return f"How does {name} behave?" if 2 in tiers else f"Can {name} learn?"


def unreadable(error: ExportError) -> list[Check]:
    """The checks of an export whose files cannot even be read, so that nothing more can be asked."""
    return [_printable(_as_check(finding)) for finding in error.findings]


# --- what is known before anything runs --------------------------------------------------------------------------


def _code_checks(found: FoundModel) -> Iterator[Check]:
    """What can be read from an export without running it: what its code touches, and what cannot work."""
    if found.code is None:
        return
    folder = found.code.parent
    try:
        config = check_files(folder)
    except ExportError as error:
        yield from map(_as_check, error.findings)
        return
    text = found.code.read_text(encoding="utf-8")
    reading, source = inspect_code(text), found.source
    origin = ", ".join(
        f"{what} {value}" for what, value in (
            ("by", source and source.owner), ("revision", source and source.revision), ("sha256", found.sha256)
        ) if value
    )  # fmt: skip
    touching = bool(reading.counts) or bool(reading.problem)
    lines = [f"line {use.line}: {use.what}: {use.code}" for use in reading.uses[:8]]
    yield Check(
        "code",
        "warn" if touching else "pass",
        "; ".join([reading.summary, *lines, f"{reading.lines} lines, {origin}"]),
        "touches nothing outside the model",
        "Read those lines. This reading is a lint and no wall: what keeps the code in is the check `walls`."
        if touching
        else "",
        values=reading.to_dict() | {"sha256": found.sha256, "source": source.to_dict() if source else None},
        why="A model needs arithmetic only; what opens files or the network deserves a look before it runs.",
    )
    yield from map(_as_check, diagnose(text, config))


def _as_check(finding: Finding) -> Check:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    return Check(
        finding.code,
        finding.severity,
        f"{place}: {finding.message}",
        "",
        finding.fix,
        values=finding.to_dict(),
    )


def _printable(check: Check) -> Check:
    """The same check; of the lines of a stranger's code in it only what can be printed."""
    return replace(check, **{name: plain(getattr(check, name)) for name in ("name", "measured", "advice")})


# --- what the boxed process says ---------------------------------------------------------------------------------


def _ask(
    found: FoundModel, tiers: list[int], trust_sha256: str, seed: int, seconds: float, started: Callable[[str], None]
) -> Iterator[Check]:
    """The answers of one boxed process after another, until every check was asked or too many ended in one."""
    skip: list[str] = []
    for attempt in range(CRASHES):
        with scratch_folder("validate") as folder, _Asking(folder, tiers, started) as asking:
            asking.start(found, skip, trust_sha256, seed, seconds)
            if attempt == 0 and 1 in tiers and found.code is not None:
                yield _walls(asking.box)
            yield from asking.answers(first=attempt == 0 and 1 in tiers)
            if asking.done:
                return
            if asking.current or not skip:
                yield asking.lost()
            if asking.current in (None, FIRST):
                break  # it would not come further the next time either
            skip += asking.asked
    yield Check("the rest", "skip", "not asked: the model ends the process that asks it", tier=tiers[-1])


class _Asking:
    """One boxed process, and how far it came."""

    def __init__(self, folder: Path, tiers: list[int], started: Callable[[str], None]) -> None:
        self.started = started
        self.folder, self.out, self.tiers = folder, folder / "answers.jsonl", tiers
        self.asked: list[str] = []  # "tier/name" of each check begun
        self.current: tuple[int, str] | None = None
        self.done = False
        self.ending = Ending(0, "")
        self.hung = 0.0  # seconds after which it was given up
        self.nonsense = ""  # why its answers were not read on

    def __enter__(self) -> "_Asking":
        self.log = (self.folder / "log.txt").open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "box"):
            self.box.close()
        self.log.close()

    def start(self, found: FoundModel, skip: list[str], trust_sha256: str, seed: int, seconds: float) -> None:
        """Start it. Raises ValueError where the code may not run here."""
        self.seconds = seconds
        read = [*found.read, *(_text_for(found, trust_sha256) if 3 in self.tiers else ())]
        self.box: Box = start_for(
            found, trust_sha256, "utils.validation.worker:main",
            {"kind": found.kind, "where": found.place, "name": found.name, "tiers": self.tiers, "skip": skip,
             "out": str(self.out), "seed": seed},
            read=read, write=[self.folder], limits=Limits(memory_bytes=_memory()), stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def answers(self, first: bool) -> Iterator[Check]:
        """Each answer as it comes, until the process ends or hangs."""
        seen, began = 0, time.monotonic()
        since = began
        while True:
            alive = self.box.alive()
            try:
                rows = self._rows()
                for row in rows[seen:]:
                    since = time.monotonic()
                    yield from map(_clean, self._take(row, first))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.nonsense = plain(f"{type(error).__name__}: {error}"[:WORDS])
                break
            seen = len(rows)
            if not alive:
                break
            limit = self.seconds or CHECK_SECONDS[self.current[0] if self.current else self.tiers[0]]
            now = time.monotonic()
            if now - since > limit or now - began > MOST_TIMES * limit:  # who never ends to answer hangs, too
                self.hung = limit if now - since > limit else MOST_TIMES * limit
                break
            time.sleep(POLL)
        self.ending = self.box.close()

    def _rows(self) -> list[dict[str, Any]]:
        try:
            lines = read_regular(self.out, MOST).split(b"\n")[:-1]  # what follows the last line feed is not whole
        except FileNotFoundError:
            return []
        if len(lines) > MOST_ROWS:
            raise ValueError(f"{len(lines):,} answers, and at most {MOST_ROWS:,} are read")
        return [json.loads(line) for line in lines]

    def _take(self, row: dict[str, Any], first: bool) -> Iterator[Check]:
        if "begin" in row:
            if type(row["tier"]) is not int or row["tier"] not in self.tiers or not isinstance(row["begin"], str):
                raise ValueError("a check that was not asked for")
            self.current = (row["tier"], row["begin"])
            self.asked.append(f"{self.current[0]}/{self.current[1]}")
            self.started(plain(self.current[1][:WORDS]))
        elif "check" in row:
            (check,) = Report.from_dict({"title": "", "checks": [row["check"]]}).checks
            yield check
        elif "findings" in row:
            yield from map(_as_check, clean_findings(row["findings"]))
        elif "error" in row:
            advice = "The model could not be built: open that line."
            yield Check("built", "fail", str(row["error"])[:WORDS], "builds from its config", advice)
        elif "facts" in row and first:
            yield from _facts(clean_facts(row["facts"]))
        self.done = self.done or "done" in row

    def lost(self) -> Check:
        """The answer to the check that the process did not survive."""
        tier, name = self.current or (self.tiers[0], "built")
        how = f"did not end within {self.hung:g} s" if self.hung else self.ending.words or "ended in silence"
        how = f"wrote answers that cannot be read ({self.nonsense})" if self.nonsense else how
        said = last_words(self.log)
        measured = f"the process that ran the model {how}" + (f"; its last words: {said}" if said else "")
        advice = "Look for an endless loop, huge tensors, or code that ends or attacks the process it runs in."
        return _clean(Check(name, "fail", measured, "an answer", advice, tier=tier))


def _facts(facts: dict[str, Any]) -> Iterator[Check]:
    """What the model was taken to be, and what is odd about it."""
    vocabulary, longest = f"vocabulary {facts['vocab_size']:,}", f"at most {facts['block_size']:,} tokens"
    kind = f"{facts['class']}, {facts['task']}, {vocabulary}, {longest}"
    measured = f"{kind}{KIND_ENDS}{'; '.join(facts['notes'])}".removesuffix(KIND_ENDS)
    values = {key: facts[key] for key in ("class", "task", "vocab_size", "block_size")}
    yield Check("interface", "pass", measured[:WORDS], "found and understood", values=values, why=INTERFACE_WHY)
    yield from (_as_check(Finding(**finding)) for finding in facts["findings"])


def _clean(check: Check) -> Check:
    """The same check with nothing but plain text, numbers and a figure that can be drawn. Raises ValueError."""
    (clean,) = Report.from_dict({"title": "", "checks": [asdict(check)]}).checks
    return clean


def _walls(box: Box) -> Check:
    standing = [wall.wall for wall in box.walls if wall.stands]
    gone = [f"{wall.wall} ({wall.how})" for wall in box.walls if not wall.stands]
    measured = f"{len(standing)} of {len(box.walls)} walls stand, each tried just now: {', '.join(standing)}"
    if gone:
        measured += f". Missing: {'; '.join(gone)}"
    status = "pass" if box.isolated else "warn"
    advice = "" if box.isolated else "Not isolated: it runs because you consented to its sha256. docs/untrusted-code.md"
    return Check("walls", status, measured, "the essential ones stand", advice, why=WALLS_WHY)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _text_for(found: FoundModel, trust_sha256: str) -> list[Path]:
    """The stories in the tokens that tier 3 will ask for, made here: the boxed process cannot write the cache."""
    from utils.data.storing.token_store import open_store
    from utils.jobs.describe import describe_model
    from utils.validation.tier3 import tier3_data

    facts = describe_model(found, trust_sha256)
    return [open_store(tier3_data(facts["vocab_size"], facts["block_size"])).folder]
