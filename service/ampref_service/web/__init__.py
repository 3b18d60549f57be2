"""The pages: routes that render the catalog with Jinja2, and the style sheets and scripts that they load (docs/pages.md)."""
