"""``slideio-pipe docs``: open the documentation in the browser, or find the pages that answer a question."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict

from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import print_json, reported, say, warn


@reported
def docs(
    question: options.Question = None,
    count: options.HitCount = 5,
    no_browser: options.NoBrowser = False,
    as_json: options.Json = False,
) -> None:
    """Open the documentation in the browser, or print the pages that answer a question. It needs no internet.

    Example: [bold]slideio-pipe docs[/]

    Ask a question: [bold]slideio-pipe docs a slide has no mpp[/]
    """
    from slideio_pipe.commands.documentation.site_files import site_folder
    from slideio_pipe.commands.documentation.site_search import find_pages

    site = site_folder()
    url = (site / "index.html").as_uri()
    # "docs find QUESTION" is what some type first.
    words = question[1:] if question and question[0] == "find" and len(question) > 1 else question or []
    if words:
        hits = find_pages(site, " ".join(words), count)
        links = [f"{site.as_uri()}/{hit.location}" for hit in hits]
        if as_json:
            print_json([{**asdict(hit), "url": link} for hit, link in zip(hits, links, strict=True)])
            return
        for hit, link in zip(hits, links, strict=True):
            say(f"{hit.page}: {hit.section}" if hit.section else hit.page, style="bold")
            if hit.excerpt:
                say(f"  {hit.excerpt}")
            say(f"  {link}", copied=True)
        if not hits:
            say(f"no page has these words; all pages: {url}", copied=True)
    elif as_json:
        print_json({"url": url})
    else:
        say(f"open {url}", copied=True)
        if not no_browser and not webbrowser.open(url):
            warn("no browser was found; open the link yourself")
