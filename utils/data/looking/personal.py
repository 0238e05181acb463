"""Strings that look personal or secret: e-mail, phone, IBAN, card, address, key. Shown masked; knows no person."""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SHOWN = 3  # masked examples that are kept of each kind
KEPT = 2  # letters and digits of a found string that a mask leaves
LOCAL, DOMAIN = re.compile(r"[A-Za-z0-9._%+-]{1,64}\Z"), re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
# Digits in groups, whatever they turn out to be: one pass finds phones, cards, social security and IP numbers.
NUMBERS = re.compile(r"(?<![\w.,/:+-])[+(]{0,2}\d(?:[ .()/-]{0,2}\d){6,22}(?![\w/-]|[.,:]\d)")
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
PHONE = re.compile(
    r"\+[1-9](?:[ ./()-]{0,2}\d){7,14}"  # international
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}"  # North America
    r"|\(?0[1-9]\d{1,3}\)?[ /-]\d{3,4}[ -]?\d{3,4}"  # with a trunk 0: 030 1234567, 020 7946 0958
    r"|0[1-9](?:[ .]\d\d){4}"  # France
)
SOCIAL = re.compile(r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}")  # numbers never given out are left aside
CARD = re.compile(r"(?:4|5[1-5]|2[2-7]|3[0-9]|6[05])\d+")  # Visa, Mastercard, American Express, JCB, Diners, Discover
ADDRESS = re.compile(r"(?:(?:0|[1-9]\d{0,2})\.){3}(?:0|[1-9]\d{0,2})")
SMALL = 20  # four numbers below it read as a version, not as an address
# How long an account number is in each country that has them (ISO 13616 registry).
IBAN_LENGTHS = {
    word[:2]: int(word[2:])
    for word in (  # noqa: SIM905
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 "
        "FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 "
        "LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 "
        "SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}
# What a key begins with, and all of it. A text without the beginning is not searched for the rest.
KEYS = [
    (begin, re.compile(rf"(?<![A-Za-z0-9_]){pattern}"))
    for begin, pattern in (
        ("hf_", r"hf_[A-Za-z0-9]{30,}"),
        ("gh", r"gh[pousr]_[A-Za-z0-9]{30,}"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{30,}"),
        ("glpat-", r"glpat-[A-Za-z0-9_-]{20,}"),
        ("AKIA", r"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("ASIA", r"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("AIza", r"AIza[A-Za-z0-9_-]{35}"),
        ("sk-", r"sk-(?=[A-Za-z0-9_-]{0,60}\d)[A-Za-z0-9_-]{24,}"),
        ("xox", r"xox[abprs]-[A-Za-z0-9-]{10,}"),
        ("-----BEGIN ", r"-----BEGIN (?:[A-Z]{2,10} )?PRIVATE KEY-----"),
    )
]


@dataclass
class Personal:
    """What was found: how many of each kind, and a few, masked, with where they stand."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, where: str = "") -> None:
        """Look through one more text."""
        for kind, found in personal_strings(text):
            self.counts[kind] = self.counts.get(kind, 0) + 1
            shown = self.examples.setdefault(kind, [])
            if len(shown) < SHOWN:
                shown.append(f"{mask(found)} ({where})" if where else mask(found))

    @property
    def total(self) -> int:
        """How many, of all kinds."""
        return sum(self.counts.values())


def personal_strings(text: str) -> Iterator[tuple[str, str]]:
    """(kind, string) of everything in a text that looks personal or secret. Handle with care: not masked."""
    for name, search in SEARCHES.items():
        yield from ((name or kind, found) for kind, found in search(text))


def mask(found: str) -> str:
    """The shape of a string without what it says: the first two letters or digits, a star for each of the others."""
    left, shown = min(KEPT, max(1, len(found) // 4)), []
    for character in found[:40]:
        left -= character.isalnum()
        shown.append(character if left >= 0 or not character.isalnum() else "*")
    return "".join(shown) + ("..." if len(found) > 40 else "")


def masked(text: str) -> str:
    """A text with everything personal in it masked, for a report."""
    for _, found in list(personal_strings(text)):
        text = text.replace(found, mask(found))
    return text


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number is right (ISO/IEC 7812-1)."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def iban_is_right(found: str) -> bool:
    """Whether an IBAN has its country's length and its check digits (ISO 13616, modulo 97)."""
    packed = found.replace(" ", "")
    if IBAN_LENGTHS.get(packed[:2]) != len(packed):
        return False
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


def _emails(text: str) -> Iterator[tuple[str, str]]:
    at = text.find("@")
    while at >= 0:  # from the sign outwards: no pattern has to walk through every word
        local, domain = LOCAL.search(text[max(0, at - 64) : at]), DOMAIN.match(text, at + 1)
        if local and domain and local[0].strip(".") and not domain[0].lower().endswith((".png", ".jpg", ".svg")):
            yield "", f"{local[0].strip('.')}@{domain[0]}"
        at = text.find("@", at + 1)


def _ibans(text: str) -> Iterator[tuple[str, str]]:
    for found in IBAN.finditer(text):
        words = found[0].split(" ")
        while words:  # the pattern may have taken the word behind it along
            if iban_is_right(" ".join(words)):
                yield "", " ".join(words)
                break
            words.pop()


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    for match in NUMBERS.finditer(text):
        kind = _kind(match[0], text[max(0, match.start() - 9) : match.start()].lower())
        if kind:
            yield kind, match[0]


def _kind(found: str, before: str) -> str:
    """What a group of digits is, "" if nothing personal. `before` is what stands before it."""
    if ADDRESS.fullmatch(found):
        parts = [int(part) for part in found.split(".")]
        version = max(parts) < SMALL or before.rstrip().endswith(("version", "v", "release"))
        return "" if max(parts) > 255 or version or not ipaddress.ip_address(found).is_global else "IP address"
    if SOCIAL.fullmatch(found):
        return "US social security number"
    digits = re.sub(r"\D", "", found)
    if CARD.fullmatch(digits) and 14 <= len(digits) <= 19 and set(found) <= set("0123456789 -") and luhn(digits):
        return "card number" if len(set(digits)) > 1 else ""
    return "phone number" if PHONE.fullmatch(found) and not before.endswith("isbn ") else ""


def _keys(text: str) -> Iterator[tuple[str, str]]:
    for begin, pattern in KEYS:
        if begin in text:
            yield from (("", found[0]) for found in pattern.finditer(text))


SEARCHES: dict[str, Callable[[str], Iterator[tuple[str, str]]]] = {
    "e-mail address": _emails,
    "bank account (IBAN)": _ibans,
    "": _numbers,
    "secret key": _keys,
}
