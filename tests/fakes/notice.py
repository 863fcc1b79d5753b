"""A task of an array element that has it told, while it works, that its time is nearly over."""

import os
import signal


class Notice:
    """Instead of arguments it has the signal sent, when its method is looked up."""

    arguments = ()

    @property
    def method(self) -> str:
        os.kill(os.getpid(), signal.SIGUSR2)
        return "__repr__"
