"""Web page at /, and a static copy of it that runs the model in the browser.

`page` assembles the HTML from `static/`; `make_examples` (with torch) writes `examples_file`; `static_copy`
writes the copy; `ort_web` provides onnxruntime-web for it.
"""
