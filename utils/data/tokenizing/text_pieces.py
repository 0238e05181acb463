"""A long text cut where no token reaches over the cut, and text made fit for UTF-8; knows nothing of vocabularies."""

from collections.abc import Iterator

PIECE = 1 << 16  # characters the library gets as one text: one call on a whole book is slow


def pieces(text: str, size: int = PIECE, anywhere: bool = True) -> Iterator[str]:
    """The text in parts of at most `size` characters, cut before a word, where no token reaches over the cut.

    A text without single spaces is cut anywhere: the ids are right all the same, but some tokens are shorter. Without
    `anywhere` such a part grows until there is a space.
    """
    start = 0
    while len(text) - start > size:
        space = text.rfind(" ", start + 1, start + size)
        # A run of spaces is one pre-token; only a space between two words is a safe place.
        while space > start and not _between_words(text, space):
            space = text.rfind(" ", start + 1, space)
        if space <= start and not anywhere:
            space = text.find(" ", start + size)
            while space >= 0 and not _between_words(text, space):
                space = text.find(" ", space + 1)
            if space < 0:
                break
        end = space if space > start else start + size
        yield text[start:end]
        start = end
    yield text[start:]


def _between_words(text: str, space: int) -> bool:
    return not text[space - 1].isspace() and not text[space + 1 : space + 2].isspace() and space + 1 < len(text)


def without_surrogates(text: str) -> str:
    """The text as UTF-8 can hold it: two halves of a character are joined, and a lone half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
