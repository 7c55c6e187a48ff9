"""A callback's request to stop, and the user's Ctrl-C, in every way it may come."""

import ctypes
import functools
import signal
import threading

import pytest

from flatmin.dynamics._interrupts import is_request


def caught(action):
    """Call ``action``, and return the KeyboardInterrupt that it ends with."""
    with pytest.raises(KeyboardInterrupt) as info:
        action()
    return info.value


def request():
    raise KeyboardInterrupt


def request_again():
    try:
        request()
    except KeyboardInterrupt:
        raise


def press():
    signal.raise_signal(signal.SIGINT)


def press_with_clean_up():
    try:
        press()
    except KeyboardInterrupt:
        raise  # the user's is still the user's
    finally:
        len([])


def stop_thread():
    """Do to this thread what a debugger, or another thread, does to stop it."""
    ident = ctypes.c_ulong(threading.get_ident())
    kind = ctypes.py_object(KeyboardInterrupt)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, kind)
    for _ in range(1000):
        len([])


def by_statement(signum, frame):
    request()


def with_setting(setting, signum, frame):
    raise KeyboardInterrupt(setting)


class Handler:
    def method(self, signum, frame):
        raise KeyboardInterrupt

    def __call__(self, signum, frame):
        raise KeyboardInterrupt


HANDLERS = {
    "python's": signal.default_int_handler,
    "function": by_statement,
    "method": Handler().method,
    "object": Handler(),
    "partial": functools.partial(functools.partial(with_setting), 3),
}


@pytest.fixture(params=HANDLERS)
def handler(request):
    before = signal.signal(signal.SIGINT, HANDLERS[request.param])
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("action", [request, request_again])
@pytest.mark.usefixtures("handler")
def test_a_request(action):
    assert is_request(caught(action))


@pytest.mark.parametrize("action", [press, press_with_clean_up, stop_thread])
@pytest.mark.usefixtures("handler")
def test_the_users(action):
    assert not is_request(caught(action))


@pytest.mark.parametrize("kind", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_request_where_no_handler_is_pythons(kind):
    before = signal.signal(signal.SIGINT, kind)
    try:
        assert is_request(caught(request))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("action", "expected"), [(request, True), (stop_thread, False)]
)
def test_in_a_thread(action, expected):
    found = []
    thread = threading.Thread(target=lambda: found.append(is_request(caught(action))))
    thread.start()
    thread.join()
    assert found == [expected]
