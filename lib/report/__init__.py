"""What a person sees: pages, site, tables and figures in notebooks, the recording page. Their words stand in `lib/templates`."""

import jinja2

from lib import paths, results

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(paths.TEMPLATES), autoescape=lambda name: name.endswith(".html.j2"),
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
TEMPLATES.filters |= results.NAMED | {
    "number": results.format_number, "interval": results.format_interval, "score": results.format_score,
    "whole": "{:.0f}".format, "thousands": "{:,}".format,
}  # fmt: skip
