"""The user's own function changes, keeps or drops each document, and what is wrong with it is said in its own words."""

import re

import pytest

from utils.config.schema import DataConfig
from utils.data.documents import Document
from utils.data.reading.hooks import hook_key, load_hook
from utils.data.reading.sources import read_documents, source_key


def hook(folder, code, name="change", file="mine.py"):
    (folder / file).write_text(code)
    return f"{folder}/{file}:{name}"


def applied(folder, body, document=None):
    function = load_hook(hook(folder, f"def change(document):\n    {body}\n"))
    return function(document or Document("Hello", "a.txt line 3", side="val", part=2))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return {**document, 'text': document['text'].lower()}", "hello"),
        ("document['text'] += '!'; return document", "Hello!"),
        ("document['text'] += '!'; return True", "Hello"),
        ("return None", None),
        ("return False", None),
        ("pass", None),
    ],
)
def test_a_document_is_changed_kept_or_left_out(tmp_path, body, text):
    found = applied(tmp_path, body)
    assert (found and found.text) == text
    assert found is None or (found.where, found.side, found.part) == ("a.txt line 3", "val", 2)


def test_a_hook_sees_what_is_there_and_may_add_and_take_away(tmp_path):
    assert applied(tmp_path, "return {'text': ' '.join(document)}").text == "text"
    pair = Document("q", target="a", label="3")
    assert applied(tmp_path, "return {'text': ' '.join(document)}", pair) == Document("text target label")
    assert applied(tmp_path, "return {'text': 'x', 'target': 'y', 'label': 4}") == Document(
        "x", "a.txt line 3", "y", "4", None, "val", 2
    )
    chat = Document("", messages=({"role": "user", "content": "Hi"},))
    longer = "document['messages'].append({'role': 'gpt', 'content': ' '.join(document)}); return document"
    assert applied(tmp_path, longer, chat).messages == (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "messages"},
    )
    assert chat.messages == ({"role": "user", "content": "Hi"},), "the hook's copy is its own"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "return 3",
            "returned the number 3; it must return a dict (the document, changed), True (keep it) or None or False",
        ),
        ("return 'x'", "returned the text 'x'; it must return a dict"),
        ("return {'text': 3}", "returned a dict whose text holds the number 3, not text"),
        ("return {}", "returned a dict whose text is missing"),
        ("return {'txt': 'a'}", "returned a dict with txt; it may have text, target, label, messages"),
        ("return {'text': 'a', 'label': []}", "returned a dict whose label holds an empty list, not a class"),
        ("return {'messages': ['a']}", "returned a dict whose messages, message 1 is the text 'a'"),
        ("return {'text': '\\ud800'}", "returned a dict whose text holds half a character"),
    ],
)
def test_what_a_hook_may_not_return_is_said_with_the_document(tmp_path, body, said):
    with pytest.raises(ValueError, match=re.escape(f"data.hook={tmp_path}/mine.py:change on a.txt line 3: {said}")):
        applied(tmp_path, body)


def test_an_error_in_a_hook_names_its_line_and_the_document(tmp_path):
    said = f"data.hook={tmp_path}/mine.py:change failed on a.txt line 3: KeyError: 'title' (line 2)"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        applied(tmp_path, "return document['title']")


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        ("import re\ndef a(d): pass\ndef b(d): pass\n", "change", "mine.py has no function change; it has a, b"),
        ("change = 3\n", "change", "has no function change; it has none"),
        ("def change(d):\nreturn d\n", "change", "mine.py line 2 is not Python: expected an indented block"),
        (
            "import nothing_of_that_name\n",
            "change",
            "cannot be imported: ModuleNotFoundError: No module named 'nothing_of_",
        ),
        ("x = 1\n1 / 0\n", "change", "cannot be imported: ZeroDivisionError: division by zero (line 2)"),
    ],
)
def test_a_hook_that_cannot_be_loaded_says_why(tmp_path, code, name, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        load_hook(hook(tmp_path, code, name))


def test_a_hook_s_file_must_be_there_and_be_python(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.py \(looked in /"):
        load_hook(f"{tmp_path}/none.py:change")
    with pytest.raises(ValueError, match="is not Python: its name must end in .py"):
        load_hook(hook(tmp_path, "def change(d): pass\n", file="mine.txt"))
    with pytest.raises(ValueError, match="^data.hook=mine.py is not file.py:function$"):
        load_hook("mine.py")


def test_a_hook_is_applied_to_every_document_and_part_of_the_key(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    code = "def change(d):\n    return {'text': d['text'].upper()} if 'o' in d['text'] else None\n"
    code += "def keep(d): return True\n"
    config = DataConfig(source="text", path=f"{tmp_path}/a.txt", document="line", hook=hook(tmp_path, code))
    assert [(one.text, one.where) for one in read_documents(config)] == [
        ("ONE", "a.txt line 1"),
        ("TWO", "a.txt line 2"),
    ]
    keys = [source_key(config), source_key(config.model_copy(update={"hook": f"{tmp_path}/mine.py:keep"}))]
    hook(tmp_path, code + "# another\n")
    keys += [source_key(config), source_key(config.model_copy(update={"hook": ""}))]
    assert len({str(key) for key in keys}) == 4
    (tmp_path / "sub").mkdir()
    assert hook_key(hook(tmp_path / "sub", code)) == keys[0]["hook"]
