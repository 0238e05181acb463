"""What looks personal is found and never shown; what only looks like it from afar is not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.looking.personal import Personal, iban_is_right, luhn, mask, masked, personal_strings

TEXTS = Path(__file__).parents[4] / "shared" / "data"

FOUND = [
    ("e-mail address", "jo.doe+news@mail.example.com"),
    ("phone number", "+1 415-555-2671"),
    ("phone number", "+49 (0)30 901820"),
    ("phone number", "(415) 555-2671"),
    ("phone number", "415.555.2671"),
    ("phone number", "030 1234567"),
    ("phone number", "020 7946 0958"),
    ("phone number", "06 12 34 56 78"),
    ("bank account (IBAN)", "DE89 3704 0044 0532 0130 00"),
    ("bank account (IBAN)", "GB82WEST12345698765432"),
    ("card number", "4111 1111 1111 1111"),
    ("card number", "5500-0000-0000-0004"),
    ("card number", "378282246310005"),
    ("US social security number", "123-45-6789"),
    ("IP address", "93.184.216.34"),
    ("secret key", "hf_" + "aB3" * 12),
    ("secret key", "ghp_" + "aB3" * 12),
    ("secret key", "AKIAIOSFODNN7EXAMPLE"),
    ("secret key", "sk-" + "aB3-" * 12),
    ("secret key", "-----BEGIN RSA PRIVATE KEY-----"),
]
INNOCENT = [
    "on 2024-01-02 at 10:11:12, or 01.02.2003, 1939-1945, 3/4/2001",
    "ISBN 978-3-16-148410-0, isbn 0-306-40615-2, ISBN 0 306 40615 2",
    "version 1.2.3.4, v10.20.30.40, 2.11.0.1, 10.0.0.1, 192.168.1.1, 127.0.0.1, 999.1.2.3",
    "1,234,567,890 people; 3.14159265358979; 0x1234567890; 123456789012; 1 2 3 4 5 6 7 8 9 10 11 12",
    "1600 1700 1800 1900 2000; 1990/1991; 5 000 000 000; 000-12-3456; 123-00-4567",
    "4111 1111 1111 1112, 4444 4444 4444 4444, DE88 3704 0044 0532 0130 00, a @ b, user@host, @name, x@-@y",
    "hf_short, sk-learn-is-a-package-with-a-long-name, ghost_stories_and_other_tales_of_the_old_town",
]


@pytest.mark.parametrize(("kind", "string"), FOUND)
def test_found_whole_and_masked(kind: str, string: str):
    text = f"Write to {string}, or not."
    assert list(personal_strings(text)) == [(kind, string)]
    assert string not in masked(text)
    assert masked(text).endswith(", or not.")


@pytest.mark.parametrize("text", INNOCENT)
def test_not_found(text: str):
    assert list(personal_strings(text)) == []


@pytest.mark.parametrize("name", ["tinyshakespeare", "wikitext2-valid", "wikitext2-test"])
def test_real_prose_raises_no_alarm(name: str):
    path = TEXTS / f"{name}.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    assert list(personal_strings(path.read_text(encoding="utf-8"))) == []


def test_counts_and_a_few_examples_with_where_they_stand():
    personal = Personal()
    for i in range(10):
        personal.add(f"mail u{i}@example.org", f"file.txt:{i}")
    assert personal.counts == {"e-mail address": 10}
    assert personal.total == 10
    assert personal.examples["e-mail address"] == [f"u{i}@*******.*** (file.txt:{i})" for i in range(3)]


def test_no_pattern_takes_forever():
    """Texts made to make a pattern try again and again: half a megabyte each, within the test's seconds."""
    for text in ("1 " * 250_000, "a@" * 250_000, "sk-" * 170_000, "DE89 " * 100_000, "(0" * 250_000, "1" * 500_000):
        assert all(string for _, string in personal_strings(text))


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
@settings(deadline=None, max_examples=100)
def test_a_mask_leaves_two_letters_at_most(text: str):
    shown = mask(text)
    assert sum(c.isalnum() for c in shown.removesuffix("...")) <= 2
    assert len(shown) <= 43


@given(st.integers(10**11, 10**17))
@settings(deadline=None, max_examples=100)
def test_one_check_digit_fits_every_number(number: int):
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


def test_a_wrong_digit_breaks_an_account():
    right = "DE89370400440532013000"
    assert iban_is_right(right)
    for i in range(2, len(right)):
        wrong = right[:i] + str((int(right[i]) + 1) % 10) + right[i + 1 :]
        assert not iban_is_right(wrong)
    assert not iban_is_right(right[:-1])
    assert not iban_is_right("XX" + right[2:])
