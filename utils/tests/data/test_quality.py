"""Each check of the quality report finds what it is for, and is silent about text that is fine."""

import json
import random
import tracemalloc

import pytest

from utils.data.documents import Document
from utils.data.looking.quality import check_documents, words_of
from utils.data.looking.report import SEVERITIES
from utils.data.looking.scripts import in_words, script_shares
from utils.data.tokenizing.tokenizer import build_tokenizer

WORDS = "the river ran below an old stone bridge where two foxes watched seven boats carry salt over cold water".split()  # noqa: SIM905


def text(seed: int, words: int = 60) -> str:
    """A paragraph of its own."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randrange(100)) for _ in range(words))


def fine(n: int = 40) -> list[Document]:
    return [Document(text(i), f"a.txt:{i + 1}") for i in range(n)]


def check(*more: Document, of: int = 40, **options):
    return check_documents([*fine(of), *more], **options)


def test_fine_text_is_fine():
    report = check()
    assert report.worst == "ok"
    assert all(finding.severity == "ok" and not finding.advice for finding in report.findings)
    assert report["documents"].number == 40
    assert report["documents"].values["characters"] == sum(len(text(i)) for i in range(40))
    assert report.note == ""


@pytest.mark.parametrize("documents", [[], [Document(""), Document(" \n\t")]])
def test_only_the_impossible_stops(documents):
    report = check_documents(documents)
    assert report.worst == "stop"
    assert len(report.findings) == 1
    assert ("there are no documents" if not documents else "all 2 documents are empty") in str(report)


def test_empty_documents_are_counted_and_named():
    found = check(Document("", "b.csv:7"), Document("  \n", "b.csv:9"))["documents"]
    assert (found.severity, found.values["empty"]) == ("note", 2)
    assert "2 of them empty, the first: b.csv:7, b.csv:9" in found.told
    assert check(*[Document("")] * 10)["documents"].severity == "warning"


def test_lengths_as_percentiles_and_bars():
    documents = [Document("x" * n) for n in range(1, 101)]
    found = check_documents(documents)["length"]
    assert found.values["least"] == 1
    assert 50 <= found.values["median"] <= 51
    assert found.values["most"] == 100
    assert sum(found.values["counts"]) == 100
    assert found.values["counts"] == [1, 2, 4, 8, 16, 32, 37]
    assert found.values["edges"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert found.picture.count("<rect") == 7
    short = check_documents([Document("x" * (1 + i % 9)) for i in range(100)])["length"]
    assert (short.severity, "data.document" in short.advice) == ("note", True)


def test_longest_line():
    found = check(Document("a\n" + "x" * 200_000 + "\nb", "c.txt:1"))["longest line"]
    assert (found.severity, found.number, "c.txt:1" in found.told) == ("note", 200_000, True)


def test_copies_and_near_copies():
    copy, near = text(3), text(5).replace("7", "8", 1) + " end"
    report = check(Document(copy, "b.txt:1"), Document(near, "b.txt:2"))
    assert (report["duplicates"].number, report["duplicates"].severity) == (1, "note")
    assert "b.txt:1 of a.txt:4" in report["duplicates"].told
    assert report["near duplicates"].number == 1
    assert "b.txt:2 of a.txt:6" in report["near duplicates"].told
    many = check(*fine(10))["duplicates"]
    assert (many.severity, many.number, many.values["share"]) == ("warning", 10, 0.2)
    assert "data.duplicates=drop" in many.advice


@pytest.mark.parametrize(
    ("bad", "name", "severity"),
    [
        ("caf\ufffd", "replaced", "warning"),
        ("cafÃ© au lait, itâ€™s", "mojibake", "warning"),
        ("bell\x07", "controls", "note"),
        ("\ufeffjoined", "marks", "note"),
    ],
)
def test_encoding_trouble(bad: str, name: str, severity: str):
    report = check(Document(f"{text(99)} {bad} {text(98)}", "b.txt:1"))
    found = report["encoding"]
    assert found.severity == severity
    assert {key for key, number in found.values.items() if number} == {name}
    assert found.advice


def test_what_is_written_with_accents_is_no_trouble():
    good = "Ein Café in Zürich, naïve Ñandú, São João, ÂNGULO, NÃO, “Ãlt”, Привет, 漢字 and 😀\tend."
    assert check(Document(good))["encoding"].severity == "ok"


def test_line_ends():
    assert check(Document("a\nb\nc"))["line ends"].severity == "ok"
    assert check_documents([Document("a\r\nb\r\nc")])["line ends"].severity == "ok"
    mixed = check(Document("a\r\nb\nc\rd"))["line ends"]
    assert (mixed.severity, mixed.values) == ("note", {"\\n": 1, "\\r\\n": 1, "\\r": 1})
    assert check_documents([Document("a\rb\rc")])["line ends"].severity == "note"


def test_scripts_of_letters():
    assert script_shares("aé ª") == {"Latin": 1.0}
    shares = script_shares("abcd где 漢字 かナ 한글 αΩ שלום 12 !?")
    assert shares["Latin"] == pytest.approx(4 / 19)
    assert set(shares) == {"Latin", "Cyrillic", "Han", "Hiragana", "Katakana", "Hangul", "Greek", "Hebrew"}
    assert script_shares("1 2 !") == {}
    assert in_words({"Latin": 0.95, "Greek": 0.05}) == "Latin 95 %, Greek 5.0 %"
    mixed = check(Document("где " * 3000))["scripts"]
    assert mixed.severity == "note"
    assert "Cyrillic" in mixed.told


def test_lines_that_stand_everywhere():
    foot = "Copyright 2020 by nobody, all rights reserved"
    documents = [Document(f"{text(i)}\n{foot if i % 2 else ''}\n") for i in range(40)]
    found = check_documents(documents)["repeated lines"]
    assert (found.severity, found.number) == ("warning", 0.5)
    assert f"in 50 %: '{foot}'" in found.told
    assert check_documents(documents[:10])["repeated lines"].severity == "ok"  # too few to say


def test_personal_strings_are_masked_wherever_they_are_shown():
    secret = "jane.roe@mail.example.com"
    documents = [Document(f"{text(i)}\nquestions to {secret} please\n", f"a:{i}") for i in range(30)]
    report = check_documents(documents)
    assert report["personal data"].severity == "warning"
    assert report["personal data"].values["counts"] == {"e-mail address": 30}
    assert report["repeated lines"].severity == "warning"
    for shown in (str(report), report._repr_html_(), json.dumps(report.to_dict())):
        assert secret not in shown
        assert "mail.example" not in shown
        assert "ja**.***@" in shown


def test_classes_and_answers():
    labelled = [Document(text(i), label="no" if i % 20 else "yes") for i in range(40)]
    found = check_documents(labelled)["classes"]
    assert (found.severity, found.number, found.values["counts"]) == ("warning", 19.0, {"no": 38, "yes": 2})
    assert check_documents(labelled[1:9])["classes"].severity == "warning"  # one class only
    balanced = [Document(text(i), label=str(i % 2)) for i in range(40)]
    assert check_documents(balanced)["classes"].severity == "ok"
    pairs = [Document(text(i), target=text(i + 100) if i else " ") for i in range(40)]
    assert check_documents(pairs)["answers"].number == 1
    chat = Document("", messages=({"role": "user", "content": "hi there"},))
    assert words_of(chat) == "hi there"
    assert check_documents([chat])["answers"].told == "1 of 1 records have no answer"


def test_tokens_that_say_nothing():
    tokenizer = build_tokenizer("char", text(1))
    report = check_documents([Document(text(1) + "XYZ")], tokenizer=tokenizer)
    found = report["unknown tokens"]
    assert (found.severity, found.number) == ("warning", pytest.approx(3 / (len(text(1)) + 3)))
    assert "X Y Z" in found.told
    assert report["tokens"].number == 1.0
    assert check(tokenizer=build_tokenizer("byte", ""))["unknown tokens"].severity == "ok"


def test_no_more_than_the_limit_is_read():
    def endless():
        i = 0
        while True:
            yield Document(text(i), f"a.txt:{i}")
            i += 1

    report = check_documents(endless(), limit_characters=20_000)
    assert report["documents"].values["characters"] == 20_000
    assert report.note.startswith("Looked at the first 20,000 characters (")
    whole = check_documents([Document("x" * 20_000)], limit_characters=20_000)
    assert whole.note == ""


def test_memory_does_not_grow_with_the_text():
    long = text(1, 4000)

    def peak(n: int) -> int:
        tracemalloc.start()
        check_documents(Document(f"{i} " + long, f"a.txt:{i}") for i in range(n))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(400) < peak(200) + 1_000_000  # of 6 million characters more


def test_the_report_draws_itself_in_every_way():
    report = check(*[Document("<script>alert(1)</script>  over and over again", "<b>.txt")] * 30)
    page = report._repr_html_()
    assert "<script" not in page
    assert "<b>.txt" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr") == page.count("</tr>") == len(report.findings)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert all(finding["severity"] in SEVERITIES for finding in report.to_dict()["findings"])
    assert max(map(len, str(report).splitlines())) <= 110
    assert str(report).splitlines()[0].startswith("Quality: ")
    with pytest.raises(KeyError):
        report["nothing of the kind"]
