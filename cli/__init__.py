"""The command line, installed as `vidllm_cli`: one file per command, each parses, calls the library, prints."""


def start() -> int:
    """What `vidllm` runs: `main.main`, with the imports before it, which a person may interrupt, too."""
    try:
        from .main import main

        return main()
    except KeyboardInterrupt:
        return 130  # `output.INTERRUPTED`, which may not be there yet
