"""Finding pictures: how noise becomes one, what stands between two prompts, where prompts live, what settings do.

Knows no host: a view asks a `Model` (`lib_masknoise.hosts.diffusers.exploring` is one) for contexts, passes and
pictures. `views` makes a view and writes it into a folder.
"""

from lib_masknoise.explore.model import Model, Moment, Recording, Stop

__all__ = ["Model", "Moment", "Recording", "Stop"]
