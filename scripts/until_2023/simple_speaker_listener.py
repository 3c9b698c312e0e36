"""`simple_speaker_listener`, whose moves show early."""

from mpe2 import simple_speaker_listener_v4

from scripts.until_2023 import older

parallel_env = older(simple_speaker_listener_v4)
