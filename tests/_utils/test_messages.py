"""What is quoted of others' errors is text, whatever their classes do."""

import pytest

from flatmin._utils.messages import first_line, message, shown


class Text(str):
    def __format__(self, spec):
        raise RuntimeError


class ToldError(ValueError):
    """Raises, or returns, what it is given when it is asked for its text."""

    def __str__(self):
        if isinstance(self.args[0], BaseException):
            raise self.args[0]
        return self.args[0]

    __repr__ = __str__


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("plain", "plain"),
        (Text("of a class"), "of a class"),
        ("half \ud800 of a pair", "half \\ud800 of a pair"),
        ("", ""),
        (3, "no message: str of this ToldError raised TypeError"),
        (OSError(), "no message: str of this ToldError raised OSError"),
        (RecursionError(), "no message: str of this ToldError raised RecursionError"),
    ],
)
def test_a_message_is_plain_text(given, text):
    found = message(ToldError(given))
    assert found == text
    assert type(found) is str
    assert first_line(ToldError(given)) == text or (
        text == "" and first_line(ToldError(given))
    )
    failed = text.startswith("no message")
    assert shown(ToldError(given)) == ("<ToldError>" if failed else text)


def test_an_interrupt_is_none():
    for quote in (message, shown):
        with pytest.raises(KeyboardInterrupt):
            quote(ToldError(KeyboardInterrupt()))
