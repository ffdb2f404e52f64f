import os
import signal
import threading

import pytest

from calmctl.errors import RunFailed
from calmctl.runtime import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_sentence_and_the_former_handler_comes_back(number):
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunFailed, match=r"^interrupted; go on tomorrow$"), interruptible("go on tomorrow"):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not come through")
    assert signal.getsignal(signal.SIGTERM) is former


def test_other_errors_pass_and_other_threads_may_use_it():
    with pytest.raises(ZeroDivisionError), interruptible("x"):
        raise ZeroDivisionError
    done = []

    def work():
        with interruptible("x"):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
