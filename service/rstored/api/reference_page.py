"""``/docs``: the OpenAPI document as one page, without scripts, which loads nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881 }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 small { font-weight: normal; opacity: .6 } h2 { margin-top: 2.5rem } h4 { margin: 1rem 0 .3rem }
code, pre { font: 13px/1.5 ui-monospace, monospace }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; border-radius: 6px }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0 } details > div { padding: 0 1rem 1rem }
summary { padding: .5rem .8rem; cursor: pointer; display: flex; gap: .8rem; align-items: baseline; flex-wrap: wrap }
summary b { color: #fff; border-radius: 4px; padding: 0 .5rem; min-width: 4rem; text-align: center; font-size: 12px }
.get b { background: #2a7 } .post b { background: #37c } .put b { background: #b70 }
.delete b { background: #c33 } .head b { background: #777 } summary span { opacity: .7 }
table { border-collapse: collapse; width: 100% }
td { padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
nav a { margin-right: 1rem }
"""


def reference_page(document: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = document["info"]
    sections: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            sections[operation["tags"][0]].append(_operation(path, method, operation))
    tags = document["tags"]
    links = "".join(f'<a href="#{escape(tag["name"])}">{escape(tag["name"])}</a>' for tag in tags)
    body = "".join(
        f'<h2 id="{escape(tag["name"])}">{escape(tag["name"])}</h2><p>{_prose(tag["description"])}</p>'
        + "".join(sections[tag["name"]])
        for tag in tags
    )
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f'<p>{_prose(info["description"])}</p><nav>{links}<a href="#shapes">shapes</a>'
        f'<a href="openapi.json">openapi.json</a></nav>{body}<h2 id="shapes">shapes</h2>{schemas}</html>'
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<p>{_prose(operation['description'])}</p>"]
    if operation.get("parameters"):
        rows = "".join(
            f"<tr><td><code>{escape(parameter['name'])}</code></td>"
            f"<td>{parameter['in']}{', required' if parameter.get('required') else ''}</td>"
            f"<td>{_prose(parameter.get('description', ''))}</td></tr>"
            for parameter in operation["parameters"]
        )
        parts.append(f"<h4>Parameters</h4><table>{rows}</table>")
    if "requestBody" in operation:
        parts.append(f"<h4>Body</h4>{_contents(operation['requestBody']['content'])}")
    parts.append("<h4>Answers</h4>")
    for status, response in operation["responses"].items():
        contents = {} if int(status) >= 400 else response.get("content", {})
        parts.append(f"<p><code>{status}</code> {_prose(response['description'])}</p>{_contents(contents)}")
    return (
        f'<details class="{method}" id="{escape(operation["operationId"])}">'
        f"<summary><b>{method.upper()}</b><code>{escape(path)}</code>"
        f"<span>{escape(operation['summary'])}</span></summary><div>{''.join(parts)}</div></details>"
    )


def _contents(contents: dict[str, Any]) -> str:
    shown = []
    for media_type, content in contents.items():
        if media_type == "application/msgpack":
            shown.append("<p><code>application/msgpack</code>: the same shape</p>")
            continue
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        link = f' <a href="#shape-{escape(name)}">{escape(name)}</a>' if name else ""
        shown.append(
            f"<p><code>{escape(media_type)}</code>{link}</p><pre>{escape(_example(content.get('example')))}</pre>"
        )
    return "".join(shown)


def _schema(name: str, schema: dict[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return (
        f'<details id="shape-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div><pre>{text}</pre></div></details>"
    )


def _example(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)


def _prose(text: str) -> str:
    """Text as HTML, with its `code` in code elements."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
