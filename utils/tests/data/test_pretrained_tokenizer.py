"""Tokenizers somebody else made: three real families, from folders, files and a Hub on loopback; what each loses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from utils.data.reading.stories import write_stories
from utils.data.tokenizing.pretrained_tokenizer import fetch_tokenizer, load_pretrained, pin_tokenizer
from utils.data.tokenizing.round_trip import count_loss
from utils.data.tokenizing.text_pieces import PIECE
from utils.data.tokenizing.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from utils.tests.models.hub_server import Hub

ROOT = Path(__file__).parents[3]
STORIES = write_stories(20_000)
LONG = write_stories(2 * PIECE) + "été  two\n\n\tÀ 漢字 (x) 😀 e\u0301 \r\n" * 500


def gpt2_like() -> tuple[Backend, dict]:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator([STORIES], trainer)
    return backend, {"model_max_length": 1024}  # GPT-2's own names no roles


def bert_like() -> tuple[Backend, dict]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        [STORIES], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_truncation(16)
    backend.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    roles = {
        "pad": "[PAD]",
        "unk": "[UNK]",
        "cls": "[CLS]",
        "sep": "[SEP]",
        "mask": {"content": "[MASK]", "lstrip": True},
    }
    return backend, {"tokenizer_class": "BertTokenizer", **{f"{role}_token": token for role, token in roles.items()}}


def llama_like() -> tuple[Backend, dict]:
    trained = Backend(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")  # only to train, as sentencepiece does
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        [STORIES], trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    learned = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Backend(models.BPE(learned["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = trained.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "pad_token": None}
    return backend, {"tokenizer_class": "LlamaTokenizer", **roles, "chat_template": "{{ bos_token }}"}


FAMILIES = {"gpt2": gpt2_like, "bert": bert_like, "llama": llama_like}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    """The files of each family, as its repository has them."""
    root = tmp_path_factory.mktemp("published")
    for name, make in FAMILIES.items():
        backend, config = make()
        (root / name).mkdir()
        (root / name / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def hub(monkeypatch, tmp_path, published):
    with Hub() as server:
        quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        places = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "TBT_CACHE": str(tmp_path / "cache")}
        for name, value in {**quiet, **places}.items():
            monkeypatch.setenv(name, value)
        for name, folder in published.items():
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            server.put(
                f"acme/{name}", {**files, "model.safetensors": b"weights", "README.md": b"hello", "t.py": b"1/0"}
            )
        yield server


PROGRAM = """
import json, sys
from utils.data.tokenizing.pretrained_tokenizer import fetch_tokenizer, load_pretrained, pin_tokenizer
for words in json.loads(sys.argv[1]):
    try:
        folder = fetch_tokenizer(*words)
        made = load_pretrained(*words)
        files = sorted(path.name for path in folder.iterdir())
        said = [pin_tokenizer(*words), str(folder), files, made.origin, made.vocab_size]
    except ValueError as error:
        said = str(error)
    print(json.dumps(said))
"""


def run(*words: tuple[str, ...], before: str = "") -> list:
    """What fetching each of these gives, in a process of its own: the Hub's library reads its settings once."""
    done = subprocess.run([sys.executable, "-c", before + PROGRAM, json.dumps(words)], cwd=ROOT, env=dict(os.environ),
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_special_tokens_and_what_goes_around_a_text(published):
    gpt2, bert, llama = (load_tokenizer(published[name]) for name in ("gpt2", "bert", "llama"))
    assert (gpt2.end_id, gpt2.bos_id, gpt2.prefix, gpt2.suffix) == (0, None, [], [])
    assert (bert.pad_id, bert.mask_id, bert.end_id, bert.prefix, bert.suffix) == (0, 4, None, [2], [3])
    assert (llama.bos_id, llama.end_id, llama.pad_id, llama.prefix, llama.suffix) == (1, 2, None, [1], [])
    assert llama.chat_template == "{{ bos_token }}"
    assert len(bert.encode("once upon a time " * 20)) >= 80  # its truncation and padding are for its own model
    assert bert.encode("[MASK] <|endoftext|>").count(4) == gpt2.encode("<|endoftext|>").count(0) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_in_parts_has_the_ids_of_the_whole(published, family):
    tokenizer = load_tokenizer(published[family])
    backend = Backend.from_file(str(published[family] / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    whole = backend.encode(LONG, add_special_tokens=False).ids
    assert len(list(tokenizer.encode_parts(LONG))) > 2
    assert tokenizer.encode(LONG) == whole == tokenizer.encode_batch([LONG])[0]
    spans = list(tokenizer.encode_spans(LONG))
    assert [token for token, _, _ in spans] == whole
    read = {i: tokenizer.token_text(i).strip().lower().removeprefix("##") for i in set(whole)}
    assert all(LONG[a:b].strip().lower() == read[i] for i, a, b in spans if read[i].isalpha() and LONG[a:b].isascii())
    solid = "é" * (PIECE + 5)
    assert tokenizer.encode(solid) == backend.encode(solid, add_special_tokens=False).ids


def test_what_each_loses_is_said(published):
    texts = ["Once upon a time.", "Zoë  says:\n\tNO! 😀", "漢字"]
    gpt2, bert, llama = (count_loss(load_tokenizer(published[name]), texts) for name in ("gpt2", "bert", "llama"))
    assert (gpt2.lost, llama.lost) == (0, 0)
    assert set(bert.kinds) == {"upper case", "characters it does not know"}
    assert bert.lost > 5
    assert "'Once upon a t' comes back as 'once upon a t'" in str(
        count_loss(load_tokenizer(published["bert"]), texts[:1])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_again_transformers_reads_the_same(published, family, tmp_path):
    auto = pytest.importorskip("transformers").AutoTokenizer
    tokenizer = load_tokenizer(published[family])
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "kind": "hub", "ref": "acme/x", "revision": ""}')
    again, theirs = load_tokenizer(tmp_path), auto.from_pretrained(tmp_path)
    for text in ("Once upon a time, Zoë said: é😀\n\n x", " a  b ", "\0\r\n"):
        assert again.encode(text) == tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert theirs(text)["input_ids"] == tokenizer.prefix + tokenizer.encode(text) + tokenizer.suffix
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for role in ("bos", "eos", "pad", "mask", "cls", "sep", "unk"):
        assert (getattr(theirs, f"{role}_token") or "") == tokenizer.special(role) == again.special(role)
    assert (again.prefix, again.suffix) == (tokenizer.prefix, tokenizer.suffix)


def test_words_begin_where_each_family_marks_them(published):
    for family, text in (("gpt2", "Once upon"), ("bert", "once upon"), ("llama", "Once upon")):
        tokenizer = load_tokenizer(published[family])
        begins, inside = tokenizer.begins_word()
        ids = tokenizer.encode(text + " xyzzyq")
        starts = [i for i, token in enumerate(ids) if i == 0 or begins[token] or not inside[ids[i - 1]]]
        assert len(starts) == 3, family
        assert len(ids) > 3


def test_the_hub_gives_the_tokenizer_and_nothing_else(hub):
    (commit, folder, files, origin, size), = run(("acme/gpt2",))  # fmt: skip
    assert len(commit) == 40
    assert files == ["tokenizer.json", "tokenizer_config.json"]
    assert origin == {"kind": "pretrained", "name": "acme/gpt2", "revision": commit}
    assert size == 400
    assert not any("safetensors" in path or path.endswith(".py") for path in hub.seen)
    newer = hub.put("acme/gpt2", hub.repos["acme/bert"]["main"])
    latest, old = run(("acme/gpt2", "main"), ("hf://acme/gpt2", commit))
    assert (latest[0], old[0], old[1]) == (newer, commit, folder)
    hub.broken = 500
    assert run(("acme/gpt2", commit))[0][1] == folder  # a commit that is here needs no network
    hub.broken = 0


def test_what_the_hub_refuses_is_said_in_words(hub):
    hub.put("acme/gated", {})
    hub.gated = {"acme/gated"}
    hub.put("acme/text", {"README.md": b"hello"})
    words = {
        ("acme/none",): "data.tokenizer=acme/none: no such repository on the Hub, nor a folder here",
        ("acme/gated",): "data.tokenizer=acme/gated: its owner asks for consent first",
        ("acme/gpt2", "v9"): "data.tokenizer=acme/gpt2 at revision v9: there is no such revision",
        ("acme/text",): "data.tokenizer=acme/text has no tokenizer.json, nor a vocabulary to make one from",
        ("wordpeace",): "nor owner/name of the Hub. Did you mean wordpiece?",
        ("a/b/c",): "data.tokenizer=a/b/c is neither one of auto, model, char, byte, bpe, wordpiece, unigram, nor",
        ("model",): "data.tokenizer=model is for a model that comes with a tokenizer",
    }
    for said, result in zip(words.values(), run(*words), strict=True):
        assert said in result
    hub.broken = 429
    assert "rate limit is used up (429)" in run(("acme/gpt2",))[0]
    hub.shutdown()
    hub.server_close()
    assert "the Hub cannot be reached" in run(("acme/gpt2",))[0]
    missing = "import sys; sys.modules['huggingface_hub'] = None\n"
    assert "huggingface_hub is not installed: pip install" in run(("acme/gpt2",), before=missing)[0]


def test_folders_and_files(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = published["bert"]
    assert fetch_tokenizer(str(folder)) == folder == fetch_tokenizer(str(folder / "tokenizer.json"))
    assert fetch_tokenizer("model", own=folder) == folder
    (tmp_path / "mine.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert load_pretrained("mine.json").encode("once") == load_tokenizer(folder).encode("once")
    assert load_pretrained("mine.json").mask_id == 4  # told by its usual name
    assert pin_tokenizer(str(folder)) == pin_tokenizer("bpe") == pin_tokenizer("model") == ""
    ours = build_tokenizer("unigram", STORIES, 300)
    ours.save(tmp_path)
    assert load_pretrained(str(tmp_path)).origin == {"kind": "unigram"}
    with pytest.raises(ValueError, match="is on this machine and has no revisions: leave data.tokenizer_revision out"):
        fetch_tokenizer(str(folder), "main")
    (tmp_path / "words.txt").write_text("a")
    with pytest.raises(
        ValueError, match=r"data.tokenizer=words.txt is no tokenizer.json: name that file, or the folder"
    ):
        fetch_tokenizer("words.txt")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is not JSON"):
        load_pretrained(str(tmp_path))


def test_an_older_vocabulary_is_converted(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("TBT_CACHE", str(tmp_path / "cache"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "once", "up", "##on"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    made = load_pretrained(str(tmp_path))
    assert made.encode("Once upon") == [5, 6, 7]
    assert (made.prefix, made.suffix, made.mask_id) == ([2], [3], 4)
    assert fetch_tokenizer(str(tmp_path)) == fetch_tokenizer(str(tmp_path))
    (tmp_path / "vocab.txt").rename(tmp_path / "spiece.model")
    with pytest.raises(ValueError, match="it finds no vocabulary in them; does tokenizer_config.json name the right"):
        fetch_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(
        ValueError, match=r"no tokenizer.json, only spiece.model, and transformers cannot convert it: .*sente"
    ):
        fetch_tokenizer(str(tmp_path))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="only spiece.model, which transformers can convert: pip install transformers"):
        fetch_tokenizer(str(tmp_path))


def test_a_tokenizer_is_never_code(published, tmp_path):
    files = {path.name: path.read_bytes() for path in published["llama"].iterdir()}
    config = {**json.loads(files["tokenizer_config.json"]), "auto_map": {"AutoTokenizer": ["code.Evil", None]}}
    for name, data in {**files, "tokenizer_config.json": json.dumps(config).encode()}.items():
        (tmp_path / name).write_bytes(data)
    tokenizer: Tokenizer = load_pretrained(str(tmp_path))
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "tokenizer_config.json").read_text()
