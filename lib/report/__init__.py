"""What a person sees: pages, site, tables and figures in notebooks, the recording page."""
