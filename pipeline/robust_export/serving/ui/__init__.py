"""The page for people: what a server shows at /, and a copy of it that needs no server.

`page` (the HTML), `examples` (the attacks that it shows, as a file of the bundle), `attack` (makes them, with
torch), `copy` (the page with a model that visitors' browsers run), `ort_web` (what runs it there).
"""
