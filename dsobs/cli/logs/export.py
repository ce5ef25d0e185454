"""`dsobs logs export`: templates, lifecycle and roles as JSON, for those who install them in their own way."""

import argparse
import sys
from typing import Any

from dsobs.cli.options import add_config_options, load_config

WHAT = ("all", "templates", "roles")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the command."""
    parser = subparsers.add_parser(
        "export",
        help="print templates, lifecycle and roles as JSON",
        description="Prints one JSON object: for each path of Elasticsearch's API the body to PUT there. `roles` "
        "alone prints role names with their definitions.",
    )
    parser.add_argument("what", nargs="?", choices=WHAT, default="all", help="default: all")
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0."""
    import orjson

    from dsobs.config.logs import Elasticsearch
    from dsobs.logs.indices.roles import roles
    from dsobs.logs.indices.templates import resources

    logs = load_config(args).logs
    settings = logs.elasticsearch or Elasticsearch(urls=("http://127.0.0.1:9200",))
    settings = settings.model_copy(update={"index": logs.index})
    made: dict[str, Any] = {}
    if args.what == "roles":
        made = roles(settings)
    else:
        if args.what == "all":
            made = {f"_security/role/{name}": role for name, role in roles(settings).items()}
        made |= {resource.path: resource.body for resource in resources(settings)}
    sys.stdout.write(orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
    return 0
