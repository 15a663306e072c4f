"""The command line, installed as `vidllm_cli`: one file per command, each parses, calls the library, prints."""
