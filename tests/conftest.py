"""What all tests rest on."""

from __future__ import annotations

import signal

import torch

# A shell that starts the tests in the background has SIGINT ignored, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side: threads of each would only wait for those of the others.
torch.set_num_threads(1)
