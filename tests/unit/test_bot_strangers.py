from __future__ import annotations

from bot.strangers import MOST, SILENCE_S, Strangers


def test_once_an_hour() -> None:
    """A stranger is answered once, and after an hour once more; others are not affected."""
    strangers = Strangers()
    assert strangers.meet("a", 0.0)
    assert not strangers.meet("a", 1.0)
    assert strangers.meet("b", 2.0)
    assert not strangers.meet("a", SILENCE_S - 0.1)
    assert strangers.meet("a", SILENCE_S)
    assert not strangers.meet("a", SILENCE_S + 1)
    assert not strangers.meet("b", SILENCE_S + 1)


def test_memory_is_bounded() -> None:
    """A crowd fills the memory, and is answered no more until there is room again."""
    strangers = Strangers()
    answered = sum(strangers.meet(str(number), number * 0.001) for number in range(10 * MOST))
    assert answered == MOST
    assert len(vars(strangers)["_answered"]) == MOST
    assert strangers.meet("late", SILENCE_S + 1)
