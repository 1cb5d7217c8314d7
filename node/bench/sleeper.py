"""What waking up costs on this machine: a trio program that does next to nothing, so many times a second.

`python -m node.bench.sleeper WAKE_UPS_PER_S`, until it is killed. On an idle virtual machine a wake-up may cost
milliseconds of processor time, whoever wakes; a daemon's idle share means something only beside this one's.
"""

import sys

import trio

CHECKPOINTS = 10  # about what a heartbeat takes: a few tasks, each under a timeout


async def main(interval_s: float) -> None:
    """Sleep, and do a little."""
    while True:
        await trio.sleep(interval_s)
        for _ in range(CHECKPOINTS):
            with trio.move_on_after(1):
                await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    trio.run(main, 1 / float(sys.argv[1]))
