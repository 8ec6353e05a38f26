"Sphinx settings, read from `_quarto.yml`; `docs.site` writes the pages that they apply to."
import re
from html import escape
import yaml
from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.transforms import SphinxTransform
from sphinx.util.logging import getLogger
from docs.pages import root, settings

quarto = yaml.safe_load((root/'_quarto.yml').read_text())
website = quarto['website']
project = html_title = website['title']
author, copyright = settings['author'], settings['copyright']
extensions = ['myst_nb']
exclude_patterns = ['_quarto.yml']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'   # a table that a cell displays is a table
smartquotes = False
nb_mime_priority_overrides = [('html', 'text/html', 0)]
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist', 'attrs_inline']
myst_all_links_external = True
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
html_theme = 'furo'
html_static_path = ['../_build/static']
html_css_files = quarto['format']['html']['css']
html_js_files = [(o, {'defer': ''}) for o in re.findall(r'<script src="(.+?)"', quarto['format']['html']['include-in-header'][0]['text'])]
html_theme_options = dict(top_of_page_buttons=[], footer_icons=[dict(name='Source', url=website['repo-url'], html='Source', **{'class': ''})])
html_favicon = f"../_build/static/{website['favicon']}"
html_use_index = html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_math_renderer = 'mathml'

def mathml(node, **kwargs):
    "A formula as MathML, or its source and a warning where it holds an unknown command."
    tex = re.sub(r'\\([bB]igg?)(?![a-zA-Z])', r'\\\1l', re.sub(r'\\dots(?![a-zA-Z])', r'\\ldots', node.astext()))
    try: return latex2mathml.tex2mathml(tex, **kwargs)
    except MathError as e:
        getLogger(__name__).warning(f'{e} in the formula {tex}', location=node)
        return f'<code>{escape(tex)}</code>'

def inline_math(self, node):
    self.body.append(mathml(node))
    raise nodes.SkipNode

def block_math(self, node):
    self.body.append(f'<div class="math">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode

class EntryIds(SphinxTransform):
    "An API entry stands under its own name, where nbdev's links look for it: `#scan_by_step`, `#site.parse`."
    default_priority = 400
    def apply(self):
        sections = list(self.document.findall(nodes.section))
        body = lambda o: next((x.astext() for x in o[1:] if not isinstance(x, nodes.system_message)), '')  # docutils puts its complaint of a second heading of that name first
        entries = {o: o[0].astext().lower() for o in reversed(sections) if body(o).startswith(o[0].astext()+'(')}
        first = {v: o for o,v in entries.items()}
        for o in sections: o['ids'] = [entries[o]] if first.get(entries.get(o)) is o else [f'{i}-section' if i in first else i for i in o['ids']]

def setup(app):
    "Formulas become MathML while the site is built, so that they need no script to be read."
    app.add_html_math_renderer('mathml', (inline_math, None), (block_math, None))
    app.add_transform(EntryIds)
