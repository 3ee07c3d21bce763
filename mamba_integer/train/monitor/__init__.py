"""Mission Control: a local web page, and one JSON snapshot, of training runs as they go. Needs the standard library alone.

`runs` reads what a run writes, `server` serves it with the page beside it: monitor.html, monitor.css, monitor.js.
"""
