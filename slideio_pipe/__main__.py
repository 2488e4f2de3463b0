"""``python -m slideio_pipe`` is ``slideio-pipe``."""

from slideio_pipe.commands.app import main

if __name__ == "__main__":
    main()
