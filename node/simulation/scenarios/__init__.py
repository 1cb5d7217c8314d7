"""The scenarios that Agora ships: each module is one story, told by `async def story(world)`.

The first line of a module's docstring is what `agora sim list` says of it. Nothing is registered anywhere: a file in
this directory is a scenario.
"""
