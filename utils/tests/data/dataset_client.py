"""A process that reads datasets of the Hub and is told what to do: their client reads the environment only once."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVE = """
import json, os, sys, traceback
from huggingface_hub.utils import http_backoff
from utils.config.schema import DataConfig
from utils.data.reading import hub_client, hub_source, sources
from utils.data.documents import Skipped

def pin(**settings):
    config = DataConfig(source="hub", **settings)
    mine, whole, notes = hub_source.pin_hub(config.mixture[0] if config.mixture else config, config)
    return {"mine": mine, "whole": whole, "notes": notes, "settings": {**settings, **mine, **whole}}

def prepare(split="train", **settings):
    told, config = [], DataConfig(source="hub", **settings)
    hub_source.prepare_hub(config, config, split, lambda *words: told.append(words))
    return told

def read(split="train", **settings):
    config, skipped = DataConfig(source="hub", **settings), Skipped()
    of = skipped if config.on_bad_row == "skip" else None
    documents = hub_source.hub_documents(config, config, split, of)
    found = [[one.text, one.where, one.target, one.label, one.messages] for one in documents]
    return {"documents": found, "skipped": skipped.first}

def documents(**settings):
    config, _ = sources.pin(DataConfig(source="hub", **settings))
    sources.prepare_source(config)
    key = sources.source_key(config)
    return {"documents": [[one.text, one.side, one.where] for one in sources.read_documents(config)], "key": key}

def spool(split="train", **settings):
    config = DataConfig(source="hub", **settings)
    return str(hub_source._spool(config, config, split))

def steps(size):
    hub_client.fetch.__defaults__ = (size,)

def token(value):
    os.environ.pop("HF_TOKEN", None)
    if value:
        os.environ["HF_TOKEN"] = value

hub_client.WAIT = 0.01
http_backoff.__kwdefaults__.update(base_wait_time=0.001)
print("ready", end="", file=sys.stderr, flush=True)
for line in sys.stdin:
    what, settings = json.loads(line)
    try:
        answer = {"result": globals()[what](**settings)}
    except ValueError as error:
        answer = {"error": str(error)}
    except BaseException:
        answer = {"crash": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
"""


class Client:
    """A process that reads datasets, and is told what to do line by line."""

    def __init__(self, environment: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE], cwd=ROOT, env=environment, text=True, stderr=stderr,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip

    def ask(self, what: str, /, **settings) -> dict:
        self.process.stdin.write(json.dumps([what, settings]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "crash" not in answer, answer["crash"]
        return answer

    def do(self, what: str, /, **settings):
        """The result of what must work."""
        answer = self.ask(what, **settings)
        assert "result" in answer, answer
        return answer["result"]

    def error(self, what: str, /, **settings) -> str:
        """The message of what must not."""
        answer = self.ask(what, **settings)
        assert "error" in answer, answer
        return answer["error"]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)
