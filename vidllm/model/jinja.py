"""The two words chat templates use beyond jinja2's own: `{% generation %}` blocks and `raise_exception(...)`."""

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks an assistant's words; rendered, it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body's nodes in place of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def refuse(message: str) -> None:
    """What a template calls on a conversation it does not accept."""
    raise TemplateError(message)
