"Build `_site/` as `_quarto.yml` describes it, from the executed pages: with Quarto where it is installed, otherwise with Sphinx."
import ast, inspect, os, re, shutil, subprocess, textwrap, tokenize
from copy import deepcopy
from html import escape
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import groupby
from pathlib import Path

import yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from fastcore.xtras import dict2obj, obj2dict
from fastcore.docments import docments
from nbdev.frontmatter import _fm2dict
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs
from nbdev.showdoc import BasicMarkdownRenderer
from docs import pages
from docs.pages import PLOTLY, WIDGET, root, settings
from mamba_interp.report import Figure, only_writer, site_assets

staged, sphinx, static, site = (root/o for o in ('_build/staged', '_build/sphinx', '_build/static', '_site'))
quarto = yaml.safe_load((root/'_quarto.yml').read_text())

# --- API entries -------------------------------------------------------------------------------------------------

def arguments(sym):
    "What a function or class takes, as its source says it: (name, type, default, comment) per argument, then per return value under 'returns'."
    source = textwrap.dedent(inspect.getsource(sym))
    node, comments = ast.parse(source).body[0], {o.start[0]: o.string.lstrip('# ') for o in tokenize.generate_tokens(StringIO(source).readline) if o.type == tokenize.COMMENT}
    text = lambda o: ast.unparse(o) if o else ''
    init = next((o for o in node.body if isinstance(o, ast.FunctionDef) and o.name == '__init__'), None) if inspect.isclass(sym) else node
    if not init: return [(o.target.id, text(o.annotation), text(o.value), comments.get(o.end_lineno, '')) for o in node.body if isinstance(o, ast.AnnAssign)]
    a, said = init.args, docments(sym, args_kwargs=True)
    plain = [*a.posonlyargs, *a.args]
    found = [*zip(plain, [None]*(len(plain)-len(a.defaults)) + a.defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults), *([(a.kwarg, None)] if a.kwarg else [])]
    rows = [({a.vararg: '*', a.kwarg: '**'}.get(o, '') + o.arg, text(o.annotation), text(d), said.get(o.arg) or '') for o,d in found if o.arg not in ('self', 'cls')]
    result = ('returns', text(init.returns), '', said.get('return') or '')
    return rows + [result]*(not inspect.isclass(sym) and any(result[1:]))

def code_span(text):
    "`text` as code inside a table, where a bar would end the cell."
    if not text: return ''
    return f'<code>{escape(text, quote=False)}</code>'.replace('|', '&#124;') if '|' in text else f'`{text}`'

def in_table(text):
    "Markdown that may stand in a table: bars are entities, and code that holds one is HTML."
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(code_span(o[1:-1]) if o[:1] == '`' and '|' in o else o.replace('|', '&#124;') for o in parts)

class Entry(BasicMarkdownRenderer):
    "An API entry: heading, source link, signature, sentence, table of arguments."
    def _repr_markdown_(self):
        rows = arguments(self.sym)
        sig = ', '.join(k + (f'={d}' if d else '') for k,_,d,_ in rows if k != 'returns')
        used = [i for i in range(4) if i == 0 or any(o[i] for o in rows)]
        line = lambda cells: '| ' + ' | '.join(cells[i].replace('\n', ' ') for i in used) + ' |'
        kind = lambda t: code_span(t.replace('|', 'or'))
        row = lambda k,t,d,m: line((f"**{k.replace('*', '')}**", kind(t), code_span(d), in_table(m)))
        table = [line(('', 'type', 'default', '')), line(['---']*4)] + [row(*o) for o in rows]
        url = f"{settings['git_url']}/blob/{settings['branch']}/{self.sym.__module__.replace('.', '/')}.py#L{inspect.getsourcelines(self.sym)[1]}"
        return '\n\n'.join([f"{'#'*self.title_level} {self.nm}", f'```python\n{self.nm}({sig})\n```', f"{inspect.getdoc(self.sym) or ''} [source]({url}){{.source}}", *(['\n'.join(table)] if rows else [])])

# --- staging: what both builders read ------------------------------------------------------------------------------

def joined(outputs):
    "Outputs in their order, with neighbouring prints as one."
    out = []
    for o in outputs:
        together = out and 'name' in o and out[-1].get('name') == o['name']
        if together: out[-1]['text'] = [''.join(out[-1]['text']) + ''.join(o['text'])]
        else: out.append(o)
    return out

def shown_outputs(cell):
    "A processor: outputs as both builders show them: plotly as the HTML that `figures.js` draws, no progress bars, no warnings."
    if cell.cell_type != 'code': return
    cell.outputs = joined(o for o in cell.get('outputs', []) if o.get('name') != 'stderr' and WIDGET not in o.get('data', {}))
    for o in cell.outputs:
        if PLOTLY in o.get('data', {}):
            drawing = o.data.pop(PLOTLY)
            if 'text/html' not in o.data: o.data['text/html'] = [Figure(obj2dict(drawing)).to_table()]

class fill_entries(Processor):
    "Show what `show_doc` says of the exported module, without running the page's cells again."
    def begin(self): self.module = next((c.directives_['default_exp'][0].removesuffix('.__init__') for c in self.nb.cells if 'default_exp' in c.directives_), None)
    def cell(self, cell):
        if cell.cell_type != 'code' or not (call := re.search(r'^show_doc\(.*', cell.source, re.M | re.S)): return
        entry = eval(call[0], dict(vars(import_module(f"{settings['lib_path']}.{self.module}")), show_doc=Entry))
        cell.outputs = [dict2obj(dict(output_type='display_data', metadata={}, data={'text/markdown': [entry._repr_markdown_()]}))]

class entries_in_order(Processor):
    "nbdev adds the entries of a cell with several definitions last one first; here they come as written."
    def begin(self):
        runs = [(added, list(o)) for added,o in groupby(self.nb.cells, lambda c: bool(getattr(c, 'has_sd', 0)))]
        self.nb.cells = [c for added,run in runs for c in (run[::-1] if added else run)]

class Staged(FilterDefaults):
    "nbdev's processors, with our API entries in place of its own, then ours."
    def base_procs(self):
        ours = {add_show_docs: [add_show_docs, entries_in_order], exec_show_docs: [fill_entries]}
        return [p for o in super().base_procs() for p in ours.get(o, [o])] + [shown_outputs]

def html_name(page):
    "Where a page stands on the site: `circuits/graph.html` for `circuits/02_graph`."
    return f'{pages.plain(page)}.html'

def beside(target, name):
    "The address of one page of the site as another links to it."
    return os.path.relpath(target, Path(name).parent)

def link_names(text, anchors, name):
    "On the page `name`: links to pages, and nbdev's absolute links to API entries, as links within the site, to the nearest entry that there is."
    base = re.escape(f"{settings['doc_host']}{settings['doc_baseurl']}/")
    def near(m):
        page, anchor = m[1], (m[2] or '').lstrip('#')
        while anchor and anchor not in anchors.get(page, ()): anchor = anchor.rpartition('.')[0]
        return beside(page, name) + ('#'+anchor if anchor else '')
    text = re.sub(rf'{base}([\w./-]+\.html)(#[\w.-]+)?', near, text)
    return re.sub(r'\]\(((?:\.\./)?(?:\w+/)?)(?:\d\d_)?(\w+)\.ipynb(#[\w.-]+)?\)', r'](\1\2.html\3)', text)

def stage():
    "Write every page, processed, to `_build/staged`, as Quarto reads it; returns {html name: notebook}."
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    done = {}
    for page in pages.names():
        nb = read_nb(pages.built/f'{page}.ipynb' if pages.latest(page) else pages.nbs/f'{page}.ipynb')
        Staged()(nb)
        nb.metadata.pop('widgets', None)  # no widget is shown, and their state would load require.js
        done[html_name(page)] = nb
    text = lambda o: ''.join(o.data['text/markdown'])
    entries = lambda nb: [o for c in nb.cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
    anchors = {k: {m.lower() for o in entries(nb) for m in re.findall(r'^#+ (\S+)$', text(o), flags=re.M)} for k,nb in done.items()}
    for name,nb in done.items():
        for c in nb.cells:
            if c.cell_type == 'markdown': c.source = link_names(c.source, anchors, name)
        for o in entries(nb): o.data['text/markdown'] = link_names(text(o), anchors, name)
        write_to(staged, name, nb)
    return done

def write_to(folder, name, nb):
    "Write a page under the name that it has on the site."
    file = (folder/name).with_suffix('.ipynb')
    file.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, file)

def copy_static(folder):
    "The scripts and styles that every page shares, each once."
    folder.mkdir(parents=True, exist_ok=True)
    for name,text in site_assets().items(): (folder/name).write_text(text)
    for o in (root/'docs'/'site.css', root/'docs'/'favicon.svg', *Path(find_spec('ziamath').origin).parent.glob('fonts/STIXTwoMath*')): shutil.copy(o, folder)

# --- Sphinx, where there is no Quarto --------------------------------------------------------------------------------

KINDS = {'fig-': 'Figure', 'tbl-': 'Table'}   # what Quarto numbers and captions

def numbered(options):
    "Label -> what it is called, such as 'Figure 2' or 'Table 1', for the cells' options in order."
    out = {}
    for prefix,kind in KINDS.items():
        labels = [o['label'] for o in options if o.get('label', '').startswith(prefix)]
        out |= {label: f'{kind} {i+1}' for i,label in enumerate(labels)}
    return out

def front_page(source):
    "A page's front matter as its title and its sentence."
    front = _fm2dict(source)
    return f"# {front['title']}\n\n:::{{container}} lead\n{front['description']}\n:::"

def as_is(cell): return '\n\n'.join(''.join(o.data['text/markdown'] if 'data' in o else o.text) for o in cell.outputs)

def sphinx_cells(nb):
    "The staged cells as MyST reads them: Quarto's cell options become tags, captions and anchors."
    options = [pages.options(c) for c in nb.cells]
    called = numbered(options)
    refer = lambda m: f'[{called[m[1]]}](#{m[1]})' if m[1] in called else m[0]
    markdown = lambda s: mk_cell(re.sub(r'(?<![\w`])@((?:fig|tbl)-[\w-]+)', refer, s), 'markdown')
    for c,o in zip(nb.cells, options):
        if c.cell_type == 'raw': yield markdown(front_page(c.source))
        elif c.cell_type == 'markdown': yield markdown(c.source)
        elif o.get('output') == 'asis': yield markdown(as_is(c))
        elif o.get('include', True):
            c.source = re.sub(r'^(\s*#\s*\|.*\n?)+', '', c.source)
            if not o.get('output', True): c.outputs = []
            c.metadata['tags'] = ['remove-input']*(not o.get('echo', True)) + ['hide-input']*bool(o.get('code-fold'))
            if o.get('label') in called: yield from labelled(c, o, called[o['label']], markdown)
            else: yield c

def labelled(cell, options, called, markdown):
    "A cell with a caption: its code, then the anchor, so that a link lands on what is shown, then its output; tables are captioned above."
    label = options['label']
    caption = f"**{called}.** {options[label[:4].replace('-', '') + '-cap']}"
    if options.get('echo', True):
        code = deepcopy(cell)
        code.outputs = []
        code.id = f'{cell.id}-code'
        yield code
    cell.metadata['tags'] = ['remove-input']
    above = label.startswith('tbl-')
    yield markdown(f'<a id="{label}"></a>')
    if above: yield markdown(f':::{{container}} table-caption\n{caption}\n:::')
    yield cell
    if not above: yield markdown(f':::{{container}} figure-caption\n{caption}\n:::')

def shelves():
    "The sidebar: (front page of a shelf, its pages) per shelf, as names on the site without their ending."
    on = {s: [pages.plain(o) for o in pages.names() if pages.shelf_of(o) == s] for s in pages.SHELVES}
    return [(f'{s}/index', [o for o in v if o != f'{s}/index']) for s,v in on.items() if v]

def toctree(entries, **options):
    lines = [':hidden:', *(f':{k}: {v}' for k,v in options.items()), '', *(f'/{o}' for o in entries)]
    return mk_cell('```{toctree}\n' + '\n'.join(lines) + '\n```', 'markdown')

def build_with_sphinx(done):
    "Sphinx with `docs/conf.py`; returns its warnings."
    from sphinx.cmd.build import build_main
    for o in (sphinx, root/'_build'/'html'): shutil.rmtree(o, ignore_errors=True)
    sphinx.mkdir(parents=True)
    copy_static(static)
    below = {'index': [front for front,_ in shelves()], **dict(shelves())}
    for name,nb in done.items():
        nb.cells = list(sphinx_cells(nb))
        if on := below.get(name.removesuffix('.html')): nb.cells.append(toctree(on))
        write_to(sphinx, name, nb)
    log, built = root/'_build'/'sphinx.log', root/'_build'/'html'  # myst-nb leaves copies of the pages beside its output
    code = build_main(['-q', '-E', '-c', str(root/'docs'), '-w', str(log), '-d', str(root/'_build'/'doctrees'), str(sphinx), str(built)])
    if code: raise RuntimeError(f'Sphinx could not build the site: {log.read_text()[-3000:]}')
    return built, log.read_text()

# --- Quarto ----------------------------------------------------------------------------------------------------------

def raw_html(output):
    "HTML as a raw block: for an output of type `text/html` Quarto would load require.js and jQuery from another host."
    if 'text/html' not in output.get('data', {}): return
    html = ''.join(output.data.pop('text/html')).strip()
    fence = '`'*max(3, 1 + max(map(len, re.findall('`+', html)), default=0))
    output.data['text/markdown'] = [f'{fence}{{=html}}\n{html}\n{fence}\n']

def entry_names(nb):
    "The names of the page's API entries, as written in their headings."
    texts = (''.join(o.data['text/markdown']) for c in nb.cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {}))
    return list(dict.fromkeys(m for o in texts for m in re.findall(r'(?m)^#+ (\S+)$(?=\n\n```python)', o)))

def with_anchors(nb):
    "An API entry stands under its own name, as with Sphinx, and a section that is called the same under `name-section`."
    names = {o.lower() for o in entry_names(nb)}
    entered = set()
    def entry(m):
        known, anchor = m[2].lower() in entered, m[2].lower()
        entered.add(anchor)
        return m[0] if known or anchor not in names else f'{m[1]} {m[2]} {{#{anchor}}}'
    def section(m):
        slug = re.sub(r'[^\w.-]', '', re.sub(r'[\s]+', '-', m[2].strip().lower().replace('`', '')))
        return f'{m[1]} {m[2]} {{#{slug}-section}}' if slug in names and '{#' not in m[2] else m[0]
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = outside_fences(c.source, r'(?m)^(#+) (.+)$', section)
        for o in c.get('outputs', []):
            text = ''.join(o.get('data', {}).get('text/markdown', ''))
            if text: o.data['text/markdown'] = [re.sub(r'(?m)^(#+) (\S+)$(?=\n\n```python)', entry, text)]

def outside_fences(text, pattern, new):
    "Replace `pattern` everywhere but inside fenced code."
    parts = re.split(r'(?ms)(^```.*?^```)', text)
    return ''.join(o if o.startswith('```') else re.sub(pattern, new, o) for o in parts)

def titles(done): return {k.removesuffix('.html'): nb.frontmatter_['title'] for k,nb in done.items()}

def quarto_settings(done):
    "`_quarto.yml` with a folding section of the sidebar for each shelf, and without the scripts, which each page names from its own folder."
    found, called = deepcopy(quarto), titles(done)
    found['website']['sidebar']['contents'] += [dict(section=called[front], href=f'{front}.ipynb', contents=[f'{o}.ipynb' for o in on]) for front,on in shelves()]
    del found['format']['html']['include-in-header']
    return found

def with_scripts(nb, name):
    "The scripts that draw figures, named from the page's folder, in its front matter."
    header = quarto['format']['html']['include-in-header'][0]['text'].replace('src="', 'src="' + '../'*name.count('/'))
    cell = next(c for c in nb.cells if c.cell_type == 'raw')
    front = _fm2dict(cell.source) | {'include-in-header': [dict(text=header)]}
    cell.source = '---\n' + yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=10**6) + '---'

def stage_for_quarto(done):
    "Write what Quarto renders: pages whose HTML is raw and whose entries have their anchors, styles, scripts and settings."
    for name,nb in done.items():
        with_scripts(nb, name)
        with_anchors(nb)
        for c in nb.cells:
            for o in c.get('outputs', []): raw_html(o)
        write_to(staged, name, nb)
    copy_static(staged)
    shutil.copy(root/'docs'/'site.scss', staged)
    (staged/'_quarto.yml').write_text(yaml.safe_dump(quarto_settings(done), allow_unicode=True, sort_keys=False))

def build_with_quarto(done):
    "Render with Quarto; returns the folder and its warnings, of which it gives none."
    stage_for_quarto(done)
    subprocess.run(['quarto', 'render', staged], check=True)
    return staged/quarto['project']['output-dir'], ''

# --- both --------------------------------------------------------------------------------------------------------------

def build():
    "Build the site and put it in place of the older one, which stays until the new one is whole; returns the builder's warnings."
    with only_writer(root/'_build'):
        folder, warnings = (build_with_quarto if shutil.which('quarto') else build_with_sphinx)(stage())
        old = root/'_build'/'old_site'
        shutil.rmtree(old, ignore_errors=True)
        if site.exists(): os.replace(site, old)
        os.replace(folder, site)
        shutil.rmtree(old, ignore_errors=True)
    print(f'The site is in {site.resolve()}: `make serve` shows it, or open {(site/"index.html").resolve()}')
    return warnings

if __name__ == '__main__': build()
