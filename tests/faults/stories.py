"""Many slow cases at once: most of a case's time goes into waiting for leases and for group members to be missed.

A story is a generator which does something, yields what it waits for, and goes on with what that returned. One thread tells
all stories of a module in turns.
"""

import inspect
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.stacks import Databases
from tests.support.world import Kafka, World

Story = Generator[Callable[[], Any], Any, None]
Teller = Callable[[World, Path], Story]

AT_ONCE = 4  # beside other test workers: stories wait for leases, and a starved machine would let them run out
WAIT_SECONDS = 60.0


@dataclass
class Told:
    """How a story went. `failure`: what it raised, if it did not end well."""

    world: World
    failure: Exception | None = None

    def well(self) -> None:
        """Raises what the story raised."""
        if self.failure:
            raise self.failure


@dataclass
class _Running:
    story: Story
    told: Told
    waits_for: Callable[[], Any] | None = None
    until: float = 0.0

    def go_on(self) -> bool:
        """One step further if what it waits for has come; False at its end."""
        try:
            value = self.waits_for() if self.waits_for else None
            if self.waits_for and not value:
                if time.monotonic() > self.until:
                    raise AssertionError(f"did not come true within {WAIT_SECONDS} s; last: {value!r}")
                return True
            self.waits_for = self.story.send(value)
            self.until = time.monotonic() + WAIT_SECONDS
        except StopIteration:
            return False
        except Exception as failure:
            # An assertion tells more with the line of the story that waited.
            self.told.failure = _within(self.story, failure)
            return False
        return True


def _within(story: Story, failure: Exception) -> Exception:
    if inspect.getgeneratorstate(story) == inspect.GEN_CLOSED:  # raised in the story itself
        return failure
    try:
        story.throw(failure)
    except StopIteration:
        return failure
    except Exception as raised:
        return raised
    return failure


def tell(
    stories: Mapping[str, Teller],
    kafka: Kafka,
    databases: Databases,
    template: str,
    factory: pytest.TempPathFactory,
) -> dict[str, Told]:
    """Tell all stories, AT_ONCE of them at a time, each in a world of its own."""
    told: dict[str, Told] = {}
    waiting = list(stories.items())
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                name, teller = waiting.pop(0)
                folder = factory.mktemp("story")
                world = World(kafka, databases, template, folder)
                told[name] = Told(world)
                running.append(_Running(teller(world, folder), told[name]))
            for one in list(running):
                if not one.go_on():
                    running.remove(one)
                    one.told.world.close()
            time.sleep(0.1)
    finally:
        for one in running:
            one.told.world.close()
    return told
